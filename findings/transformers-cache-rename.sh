#!/usr/bin/env bash
# transformers 5.24.0 renames the key-value cache of every model: `past_key_values` becomes `cache`.
#
# Versions:   transformers 5.24.0 (renamed) beside 5.23.0 (not), torch 2.13.0 (CPU).
# Behaviour:  In 5.24.0 `inspect.signature(model.forward)` has `cache` and no `past_key_values`; outputs have the field
#             `cache`; `generate` hands `cache` to a `custom_generate` function. The old names still work as arguments
#             and as attributes, but warn once per process ("... are deprecated"), and an argument is promised until
#             5.40. Whoever tells a decoder by the parameter `past_key_values`, reads that key from keyword arguments,
#             or binds arguments by the signature, breaks: none of these raises or warns by itself.
# Seen:       see EXPECTED below; the script fails when that changes. It runs without mintage.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python=${PYTHON:-python3}

cat > "$room/show.py" <<'PY'
import inspect
import logging

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

said = []


class Listen(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())


transformers.utils.logging.get_logger("transformers").addHandler(Listen())
sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
model = LlamaForCausalLM(LlamaConfig(vocab_size=10, **sizes, bos_token_id=None, eos_token_id=None)).eval()
ids = torch.tensor([[1, 2, 3]])
names = ("past_key_values", "cache")


def here(known):
    return "+".join(name for name in names if name in known) or "neither"


print("version", transformers.__version__)
print("signature", here(inspect.signature(model.forward).parameters))
out = model(ids, use_cache=True)
print("output", here({field for field in type(out).__dataclass_fields__}))


def own(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    print("custom_generate", here(kwargs))
    return input_ids


model.generate(ids, max_new_tokens=1, do_sample=False, custom_generate=own)
said.clear()
again = model(ids[:, :1], past_key_values=getattr(out, "cache", None) or out.past_key_values, use_cache=True)
again.past_key_values
print("old names work", again.logits.shape[1] == 1, "and warn", any("deprecated" in line for line in said))
PY

"$python" -m venv "$room/env"
pip() { "$room/env/bin/pip" install -q --disable-pip-version-check "$@"; }
pip "torch==2.13.0" # smaller: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
for version in 5.23.0 5.24.0; do
  pip "transformers==$version"
  "$room/env/bin/python" "$room/show.py" >> "$room/seen" 2> "$room/errors" || { cat "$room/errors"; exit 1; }
done

cat > "$room/EXPECTED" <<'EXPECTED'
version 5.23.0
signature past_key_values
output past_key_values
custom_generate past_key_values
old names work True and warn False
version 5.24.0
signature cache
output cache
custom_generate cache
old names work True and warn True
EXPECTED
cat "$room/seen"
diff "$room/EXPECTED" "$room/seen" && echo "as described above"
