#!/usr/bin/env bash
# transformers: `generate(custom_generate=function, streamer=...)` feeds the streamer the prompt and then forgets it.
#
# Versions:   transformers 5.23.0, torch 2.13.0 (CPU).
# Behaviour:  A function that decodes gets neither the `streamer` nor the `tokenizer` of `generate`, though the
#             streamer has already had the prompt (`streamer.put(input_ids)`), and its `end()` is never called, without
#             an error. With `stop_strings` the tokenizer that was passed is not found either: a ValueError asks for the
#             very argument that is there.
# Seen:       see EXPECTED below; the script fails when that changes. It runs without mintage.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python=${PYTHON:-python3}

cat > "$room/show.py" <<'PY'
import transformers
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
model = LlamaForCausalLM(LlamaConfig(vocab_size=10, **sizes, bos_token_id=None, eos_token_id=None)).eval()
letters = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({c: i for i, c in enumerate("abcdefghij")}, [])))
ids = torch.tensor([[1, 2, 3]])


class Listener:
    puts = ends = 0

    def put(self, value):
        self.puts += 1

    def end(self):
        self.ends += 1


def own(model, input_ids, logits_processor, stopping_criteria, generation_config, streamer=None, **kwargs):
    print("given a streamer", streamer is not None, "and a tokenizer", "tokenizer" in kwargs)
    return input_ids


print("version", transformers.__version__)
listener = Listener()
model.generate(ids, max_new_tokens=1, do_sample=False, custom_generate=own, streamer=listener)
print("puts", listener.puts, "ends", listener.ends)
try:
    model.generate(ids, max_new_tokens=1, custom_generate=own, stop_strings=["j"], tokenizer=letters)
except ValueError as error:
    print("stop strings:", "you must pass the model's tokenizer" in str(error))
PY

"$python" -m venv "$room/env"
pip() { "$room/env/bin/pip" install -q --disable-pip-version-check "$@"; }
pip "torch==2.13.0" "transformers==5.23.0" # smaller: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
"$room/env/bin/python" "$room/show.py" > "$room/seen" 2> "$room/errors" || { cat "$room/errors"; exit 1; }

cat > "$room/EXPECTED" <<'EXPECTED'
version 5.23.0
given a streamer False and a tokenizer False
puts 1 ends 0
stop strings: True
EXPECTED
cat "$room/seen"
diff "$room/EXPECTED" "$room/seen" && echo "as described above"
