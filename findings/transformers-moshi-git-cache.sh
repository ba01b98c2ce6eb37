#!/usr/bin/env bash
# transformers: with a cache, Moshi and GIT write other text than without one.
#
# Versions:   transformers 5.23.0, torch 2.13.0 (CPU).
# Behaviour:  MoshiForCausalLM masks no window, but its cache drops what is outside `config.sliding_window`: greedy text
#             of a prompt longer than the window differs between `use_cache=True` and `False`. GitForCausalLM forgets
#             in cached steps which tokens of a left-padded row were padding: the row's text differs from the same row
#             decoded alone. Neither raises or warns.
# Seen:       see EXPECTED below; the script fails when that changes. It runs without mintage.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python=${PYTHON:-python3}

cat > "$room/show.py" <<'PY'
import torch
import transformers
from transformers import GitConfig, GitForCausalLM, MoshiConfig, MoshiForCausalLM

sizes = dict(vocab_size=24, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256)


def drawn(model):
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3, generator=draw) if weight.ndim > 1 else None
    model.generation_config.eos_token_id = None
    return model.eval()


def text(model, ids, **settings):
    settings = dict(max_new_tokens=8, do_sample=False, pad_token_id=0) | settings
    return model.generate(ids, **settings)[0, ids.shape[1] :].tolist()


print("version", transformers.__version__)
long = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 1, 4, 1, 5]])
moshi = drawn(MoshiForCausalLM(MoshiConfig(**sizes, num_key_value_heads=2, ffn_dim=48, sliding_window=6)))
print("moshi alike", text(moshi, long) == text(moshi, long, use_cache=False))
git = drawn(GitForCausalLM(GitConfig(**sizes, intermediate_size=48, bos_token_id=1, eos_token_id=2)))
row, padded = torch.tensor([[2, 7, 1, 8, 2]]), torch.tensor([[0] * 10 + [2, 7, 1, 8, 2]])
mask = (torch.arange(15) >= 10).long()[None]
print("git alike", text(git, padded, attention_mask=mask) == text(git, row))
PY

"$python" -m venv "$room/env"
pip() { "$room/env/bin/pip" install -q --disable-pip-version-check "$@"; }
pip "torch==2.13.0" "transformers==5.23.0" # smaller: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
"$room/env/bin/python" "$room/show.py" > "$room/seen" 2> "$room/errors" || { cat "$room/errors"; exit 1; }

cat > "$room/EXPECTED" <<'EXPECTED'
version 5.23.0
moshi alike False
git alike False
EXPECTED
cat "$room/seen"
diff "$room/EXPECTED" "$room/seen" && echo "as described above"
