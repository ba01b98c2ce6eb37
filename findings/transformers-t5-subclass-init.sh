#!/usr/bin/env bash
# A subclass of a T5 outside of transformers draws its fresh attention and feed-forward weights with a deviation of 1.
#
# Versions:   transformers 5.24.0 and 5.20.0, torch 2.13.0 (CPU).
# Behaviour:  T5 draws a query weight with (d_model d_kv)^-0.5: parents such as T5Attention draw their parts' weights.
#             For classes whose module is not transformers' own, `_initialize_weights` passes over modules without
#             weights of their own, so `class Mine(T5Stack): pass` keeps what the parts drew first, a deviation of
#             `initializer_factor` = 1. Nothing is said; such a model's scores are hundreds of times too large, and it
#             hardly learns. Weights that are loaded are not concerned, fresh ones beside loaded ones are.
# Seen:       see EXPECTED below; the script fails when that changes. It runs without mintage.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python=${PYTHON:-python3}

cat > "$room/show.py" <<'PY'
import torch
import transformers
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Stack


class Mine(T5Stack):
    pass


for kind in (T5Stack, Mine):
    torch.manual_seed(0)
    made = kind(T5Config(vocab_size=99, d_model=64, d_kv=16, num_heads=4, d_ff=128, num_layers=2))
    block = made.block[0].layer
    q, wi = block[0].SelfAttention.q.weight, block[1].DenseReluDense.wi.weight
    print(transformers.__version__, kind.__name__, f"q {q.std().item():.2f}", f"wi {wi.std().item():.2f}")
PY

for version in 5.24.0 5.20.0; do
    "$python" -m venv "$room/$version"
    "$room/$version/bin/pip" install -q --disable-pip-version-check transformers==$version torch==2.13.0
    "$room/$version/bin/python" "$room/show.py" 2> /dev/null >> "$room/seen"
done

cat > "$room/EXPECTED" <<'EXPECTED'
5.24.0 T5Stack q 0.03 wi 0.12
5.24.0 Mine q 1.00 wi 1.00
5.20.0 T5Stack q 0.03 wi 0.12
5.20.0 Mine q 1.00 wi 1.00
EXPECTED
cat "$room/seen"
diff "$room/EXPECTED" "$room/seen" && echo "as described above"
