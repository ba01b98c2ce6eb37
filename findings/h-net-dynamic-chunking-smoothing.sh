#!/usr/bin/env bash
# h-net-dynamic-chunking smooths without weighing what the inner network says: the mixture of H-Net's eq. 5 is a sum.
#
# Versions:   h-net-dynamic-chunking 0.5.19, torch 2.13.0 (CPU).
# Behaviour:  H-Net (arXiv 2507.07955, eq. 5) smooths the outputs z of the inner network by z'_t = P_t z_t + (1 - P_t)
#             z'_(t-1), a mixture: where all z are one vector, z' is that vector. The package multiplies the chunks by P
#             before the inner network, and adds z_t + (1 - P_t) z'_(t-1) behind it. The two agree for a linear inner
#             network only. Blocks that normalise what they read do not see the P, and what is handed to the bytes grows
#             with the chunks before: ones become more than one.
# Seen:       see EXPECTED below; the script fails when that changes. It runs without mintage.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python=${PYTHON:-python3}

cat > "$room/show.py" <<'PY'
import torch
from h_net_dynamic_chunking import DynamicSequenceChunker

torch.manual_seed(0)
chunker = DynamicSequenceChunker(16)
with torch.no_grad():
    (chunks, spread, _), found = chunker(torch.randn(1, 64, 16), return_intermediates=True)
    ones = torch.ones_like(chunks)
    handed = spread(ones)[0, :, 0]
    begins = found.boundary_mask[0]
    rest, mixed = 1 - found.probs[0][begins], [torch.tensor(0.0)]
    for one in rest:
        mixed.append(1 + one * mixed[-1])
    print("chunks", 1 < len(rest) < 64)
    print("ones become one", bool((handed - 1).abs().max() < 1e-5))
    print("ones become the sum without weights", torch.allclose(handed[begins], torch.stack(mixed[1:]), atol=1e-4))
    print("chunks were weighed before", torch.allclose(chunks[0], found.residual[0][begins] * found.probs[0][begins, None]))
PY

"$python" -m venv "$room/env"
pip() { "$room/env/bin/pip" install -q --disable-pip-version-check "$@"; }
pip "torch==2.13.0" # smaller: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
pip "h-net-dynamic-chunking==0.5.19"
"$room/env/bin/python" "$room/show.py" > "$room/seen" 2> "$room/errors" || { cat "$room/errors"; exit 1; }

cat > "$room/EXPECTED" <<'EXPECTED'
chunks True
ones become one False
ones become the sum without weights True
chunks were weighed before True
EXPECTED
cat "$room/seen"
diff "$room/EXPECTED" "$room/seen" && echo "as described above"
