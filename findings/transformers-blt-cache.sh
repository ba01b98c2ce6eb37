#!/usr/bin/env bash
# transformers' BltForCausalLM writes another text with a cache than without, and without `num_hidden_layers` not at all.
#
# Versions:   transformers 5.24.0, torch 2.13.0 (CPU).
# Behaviour:  A Blt made from a BltConfig raises AttributeError in `forward` and `generate` unless use_cache=False: the
#             cache asks the configuration for `num_hidden_layers`, which BltConfig does not have. With that attribute
#             set by hand, `generate` with a cache (the default) writes greedily another text than without one: its
#             step reads only the new byte, and so finds patches, n-gram hashes and patch states of that byte alone.
#             Nothing warns. Forward without a cache is causal and does not depend on the batch.
# Seen:       see EXPECTED below; the script fails when that changes. It runs without mintage.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python=${PYTHON:-python3}

cat > "$room/show.py" <<'PY'
import torch
import transformers
from transformers import BltConfig, BltForCausalLM

WIDTH = 32


def blocks(width, layers, **more):
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 64}
    return {**sizes, **more}


def made():
    bytes_too = {"vocab_size": 260, "cross_attn_k": 2, "hidden_size_global": 2 * WIDTH}
    config = BltConfig(
        vocab_size=260,
        cross_attn_k=2,
        encoder_hash_byte_group_vocab=100,
        patcher_config={**blocks(16, 1), "vocab_size": 260},
        encoder_config=blocks(WIDTH, 1, **bytes_too),
        decoder_config=blocks(WIDTH, 2, **bytes_too),
        global_config=blocks(2 * WIDTH, 2),
    )
    torch.manual_seed(0)
    return BltForCausalLM(config).eval()


print("version", transformers.__version__)
torch.manual_seed(1)
ids = torch.randint(4, 260, (2, 40))
model = made()
with torch.no_grad():
    entropies = model.model.patcher(ids, patch_size=4, threshold=5.0)[0]
    model.config.patching_threshold = float(entropies.median())
    try:
        model(ids)
        print("forward works")
    except AttributeError as error:
        print("forward: AttributeError", "num_hidden_layers" in str(error))
    whole = model(ids, use_cache=False).logits
    other = ids.clone()
    other[:, 20] = (other[:, 20] + 1) % 256 + 4
    edited = model(other, use_cache=False).logits
    print("causal", torch.allclose(edited[:, :20], whole[:, :20], atol=1e-5))
    print("row alone as in the batch", torch.allclose(model(ids[1:], use_cache=False).logits, whole[1:], atol=1e-5))
    how = {"max_new_tokens": 24, "do_sample": False}
    without = model.generate(ids[:1, :12], use_cache=False, **how)
    model.config.num_hidden_layers = 2
    print("written with a cache is the same", torch.equal(model.generate(ids[:1, :12], use_cache=True, **how), without))
PY

"$python" -m venv "$room/env"
pip() { "$room/env/bin/pip" install -q --disable-pip-version-check "$@"; }
pip "torch==2.13.0" # smaller: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
pip "transformers==5.24.0"
"$room/env/bin/python" "$room/show.py" > "$room/seen" 2> "$room/errors" || { cat "$room/errors"; exit 1; }

cat > "$room/EXPECTED" <<'EXPECTED'
version 5.24.0
forward: AttributeError True
causal True
row alone as in the batch True
written with a cache is the same False
EXPECTED
cat "$room/seen"
diff "$room/EXPECTED" "$room/seen" && echo "as described above"
