"""Where things are in the vision transformers of transformers and timm, never what to do with them.

Both libraries build the same pre-norm block; only the names differ, and what comes after each branch (dropout, layer
scale, stochastic depth). The names are in `mintage.reduce.core.families`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mintage.errors import UserError
from mintage.measure.cost import count_flops
from mintage.reduce.core.families import FAMILIES, MEAN_OF_TOKENS, SUPPORTED, BlockParts, pools
from mintage.reduce.core.schedule import Anatomy

__all__ = ["Adapter", "adapter_for"]

Undo = Callable[[], None]


class Adapter:
    """One transformer inside a model, seen the same way whatever library it is from.

    Attributes
    ----------
    model, tower
        What the user has, and the transformer within it.
    layers
        Its blocks.
    prefix
        Leading tokens that are no patches.
    dense
        Whether something in `model` reads the transformer's output row by row.
    averaged
        Whether something in `model` averages it.
    """

    def __init__(self, model: nn.Module, tower: nn.Module, parts: BlockParts) -> None:
        self.model, self.tower, self.parts = model, tower, parts
        self.layers: list[nn.Module] = list(tower.get_submodule(parts.layers).children())
        self.prefix: int = parts.prefix(tower)
        self.timm = any(t.__module__.startswith("timm.") for t in type(tower).__mro__)
        around = [m for m in model.modules() if m is not tower and tower in set(m.modules())]
        unpooled = self.timm and self.tower.attn_pool is None and not self.tower.global_pool
        self.dense = parts.dense or unpooled or not all(pools(m) for m in around)
        self.averaged = any(type(m).__name__ in MEAN_OF_TOKENS for m in around)

    def attention(self, layer: nn.Module) -> nn.Module:
        """Return the attention module of a block."""
        return layer.get_submodule(self.parts.attention)

    def attention_branch(self, layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return what the attention branch of a block adds to the residual stream."""
        out = self.attention(layer)(layer.get_submodule(self.parts.norm1)(x), *args, **kwargs)
        return self._after(layer, out[0] if isinstance(out, tuple) else out, self.parts.after1)

    def mlp_branch(self, layer: Any, x: Tensor) -> Tensor:
        """Return what the MLP branch of a block adds to the residual stream."""
        out = layer.get_submodule(self.parts.mlp)(layer.get_submodule(self.parts.norm2)(x))
        return self._after(layer, out, self.parts.after2)

    @staticmethod
    def _after(layer: nn.Module, out: Tensor, names: tuple[str, ...]) -> Tensor:
        for name in names:
            out = layer.get_submodule(name)(out)
        return out

    def anatomy(self, patches: int | None = None) -> Anatomy:
        """Return the sizes that decide the cost; `patches` of one image, by default of the model's own image size."""
        first = self.layers[0]
        attention: Any = self.attention(first)
        mlp: Any = first.get_submodule(self.parts.mlp)
        tower: Any = self.tower
        dim = int(tower.embed_dim if self.timm else tower.config.hidden_size)
        linear = [m for m in mlp.modules() if hasattr(m, "in_features")]  # quantised ones, too, but no wrapper of them
        inner = [m for m in linear if not any(hasattr(part, "in_features") for part in list(m.modules())[1:])]
        weights = sum(m.in_features * m.out_features for m in inner)
        heads = getattr(attention, "num_attention_heads", None) or attention.num_heads
        size, (rows, columns) = self._image()
        ends = ("classifier", "head", "head_dist")  # DeiT has two classifiers, of names that end alike
        classifier = [m for n, m in self.model.named_modules() if n.rpartition(".")[2].endswith(ends)]
        fixed = sum(m.weight.numel() for m in classifier if isinstance(m, nn.Linear))
        return Anatomy(
            layers=len(self.layers),
            dim=dim,
            hidden=weights // (2 * dim),  # of a gated MLP: the width that costs as much
            patches=rows * columns if patches is None else patches,
            prefix=self.prefix,
            heads=int(heads),
            fixed=fixed + self._embedding_macs(size, rows * columns),
            grid=(rows, columns),
        )

    def _image(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return height and width that the model was made for, and its rows and columns of patches."""
        tower: Any = self.tower
        if self.timm:
            return _pair(tower.patch_embed.img_size), _pair(tower.patch_embed.grid_size)
        size, patch = _pair(tower.config.image_size), _pair(tower.config.patch_size)
        return size, (size[0] // patch[0], size[1] // patch[1])

    def _embedding_macs(self, size: tuple[int, int], patches: int) -> int:
        """Multiply-adds that make tokens of one image."""
        embed = self.tower.get_submodule(self.parts.projection)
        inner = [m for m in embed.modules() if not list(m.children())]
        read = [m for m in inner if isinstance(m, (nn.Conv2d, nn.Linear))]
        if len(read) == 1:  # the plain ones: each patch is read once
            return read[0].weight.numel() * patches
        convolution = next((m for m in inner if isinstance(m, nn.Conv2d)), None)
        if convolution is None:
            return sum(m.weight.numel() for m in read) * patches
        image = torch.zeros(1, convolution.in_channels, *size).to(convolution.weight)
        modes = {m: m.training for m in embed.modules()}
        embed.eval()
        try:
            with torch.no_grad():
                return count_flops(lambda: embed(image)) // 2
        finally:
            for module, training in modes.items():
                module.training = training

    # -- pooling: where a model averages tokens, a merged one counts for all that it stands for --

    def attention_pools(self) -> Iterator[tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]]:
        """Yield modules that pool by attention, and what makes their mask of log sizes [batch, 1, 1, tokens]."""
        tower: Any = self.tower
        if self.timm and tower.attn_pool is not None:
            first = 0 if tower.pool_include_prefix else self.prefix
            yield tower.attn_pool, lambda bias, x: bias[..., first:].to(x.dtype)
        head: Any = getattr(tower, "head", None)
        if isinstance(getattr(head, "attention", None), nn.MultiheadAttention):
            heads = head.attention.num_heads
            yield head.attention, lambda bias, x: bias.to(x.dtype).expand(len(x), heads, 1, -1).flatten(0, 1)

    def scale_output(self, out: Any, sizes: Tensor | None) -> Any:
        """Scale what the transformer returns where the model around it takes the plain mean."""
        if not self.averaged:
            return out
        first = _scaled(out[0], sizes, self.prefix)
        if isinstance(out, tuple):
            return (first, *out[1:])
        out.last_hidden_state = first
        return out

    def pool_timm(self, pool: Callable[..., Tensor], sizes: Tensor | None, x: Tensor, kind: str | None) -> Tensor:
        """Pool as timm's transformer does, where it averages by size."""
        tower: Any = self.tower
        kind = tower.global_pool if kind is None else kind
        if tower.attn_pool is not None or kind not in ("avg", "avgmax"):
            return pool(x, kind)
        mean = pool(_scaled(x, sizes, 0 if tower.pool_include_prefix else self.prefix), "avg")
        return mean if kind == "avg" else 0.5 * (pool(x, "max") + mean)


def _scaled(x: Tensor, sizes: Tensor | None, first: int) -> Tensor:
    """Scale rows so that their plain mean from `first` on is the mean weighted by size."""
    if sizes is None:
        return x
    held = sizes[:, first:]
    weight = held * (held.shape[1] / held.sum(1, keepdim=True))
    return torch.cat([x[:, :first], x[:, first:] * weight.to(x.dtype)], 1)


def _pair(value: Any) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)


def adapter_for(model: nn.Module) -> Adapter:
    """Find the vision transformer in `model`.

    Raises
    ------
    UserError
        There is none that is supported, there are several, or its blocks are of another kind.
    """
    found: list[tuple[str, nn.Module, BlockParts]] = []
    for name, tower in model.named_modules():
        for ancestor in type(tower).__mro__:
            parts = FAMILIES.get(f"{ancestor.__module__}.{ancestor.__qualname__}")
            if parts is not None:
                found.append((name, tower, parts))
                break
    if not found:
        raise UserError(f"{type(model).__name__} has no reduce adapter; supported: {SUPPORTED}")
    if len(found) > 1:
        names = ", ".join(name for name, _, _ in found)
        raise UserError(f"{type(model).__name__} has several vision transformers; attach to one of them: {names}")
    adapter = Adapter(model, *found[0][1:])
    _check_blocks(adapter)
    return adapter


def _check_blocks(adapter: Adapter) -> None:
    """Refuse blocks that are not the library's own: what their forward does is not known."""
    tower = type(adapter.tower)
    home = next(t.__module__ for t in tower.__mro__ if f"{t.__module__}.{t.__qualname__}" in FAMILIES)
    for layer in adapter.layers:
        attention = getattr(layer, adapter.parts.attention, None)
        if adapter.timm:
            strange = [m for m, name in ((layer, "Block"), (attention, "Attention")) if type(m).__name__ != name]
        else:
            strange = [m for m in (layer, attention) if type(m).__module__ != home]
        if strange:
            raise UserError(f"this {tower.__name__} has {type(strange[0]).__name__} blocks; supported: {SUPPORTED}")
        for module in (adapter.tower, layer, attention):
            if "forward" in vars(module):
                kind = type(module).__name__
                raise UserError(f"the forward of this {kind} is wrapped (device_map, a patch); take it off first")


def timm_attention(module: Any, x: Tensor, attend: Callable[..., Tensor]) -> Tensor:
    """Run timm's attention module part by part, `attend` in the middle (timm 1.0: norms, gate, projection)."""
    batch, tokens, _ = x.shape
    qkv = module.qkv(x).reshape(batch, tokens, 3, module.num_heads, module.head_dim).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.unbind(0)
    query, key = module.q_norm(query), module.k_norm(key)
    dropout = module.attn_drop.p if module.training else 0.0
    out = attend(query, key, value, scaling=module.scale, dropout=dropout)
    out = getattr(module, "norm", nn.Identity())(out.transpose(1, 2).reshape(batch, tokens, -1))
    if getattr(module, "gate", None) is not None:
        out = out * module.gate(x).sigmoid()
    return module.proj_drop(module.proj(out))


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, dropout: float) -> Tensor:
    """Torch's fused attention."""
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
