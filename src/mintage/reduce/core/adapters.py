"""Where things are in the vision transformers of transformers and timm, never what to do with them.

Both libraries build the same pre-norm block; only the names differ, and what comes after each branch (dropout, layer
scale, stochastic depth). Adding a family is one `BlockParts` row.

Not here: windowed, convolutional or relative-position attention (Swin, BEiT), rotary positions (EVA, DINOv3), padded
patches (NaFlex).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mintage.errors import UserError
from mintage.measure.cost import count_flops
from mintage.reduce.core.schedule import Anatomy

__all__ = ["SUPPORTED", "Adapter", "adapter_for"]

SUPPORTED = "ViT, DeiT, DINOv2 (with registers too), CLIP vision and SigLIP vision of transformers; timm's ViT"

Undo = Callable[[], None]


@dataclass(frozen=True)
class BlockParts:
    """Names within one family's transformer: its blocks, and of a block the parts of both branches in order."""

    layers: str
    norm1: str
    attention: str
    after1: tuple[str, ...]
    norm2: str
    mlp: str
    after2: tuple[str, ...]
    prefix: Callable[[Any], int]
    projection: str = "embeddings.patch_embeddings.projection"


_VIT = ("layernorm_before", "attention", ("dropout",), "layernorm_after", "mlp", ("dropout",))
_DINO = ("norm1", "attention", ("layer_scale1", "drop_path"), "norm2", "mlp", ("layer_scale2", "drop_path"))
_CLIP = ("layer_norm1", "self_attn", (), "layer_norm2", "mlp", ())
_TIMM = ("norm1", "attn", ("ls1", "drop_path1"), "norm2", "mlp", ("ls2", "drop_path2"))

FAMILIES: dict[str, BlockParts] = {
    "transformers.models.vit.modeling_vit.ViTModel": BlockParts("layers", *_VIT, lambda m: 1),
    "transformers.models.deit.modeling_deit.DeiTModel": BlockParts("layers", *_VIT, lambda m: 2),
    "transformers.models.dinov2.modeling_dinov2.Dinov2Model": BlockParts("encoder.layer", *_DINO, lambda m: 1),
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersModel": BlockParts(
        "encoder.layer", *_DINO, lambda m: 1 + m.config.num_register_tokens
    ),
    "transformers.models.clip.modeling_clip.CLIPVisionModel": BlockParts(
        "encoder.layers", *_CLIP, lambda m: 1, "embeddings.patch_embedding"
    ),
    "transformers.models.siglip.modeling_siglip.SiglipVisionModel": BlockParts(
        "encoder.layers", *_CLIP, lambda m: 0, "embeddings.patch_embedding"
    ),
    "timm.models.vision_transformer.VisionTransformer": BlockParts(
        "blocks", *_TIMM, lambda m: m.num_prefix_tokens, "patch_embed.proj"
    ),
}

_MEAN_OF_TOKENS = {  # classifiers that average the tower's output themselves, and whether prefix tokens are in it
    "Dinov2ForImageClassification",
    "Dinov2WithRegistersForImageClassification",
    "CLIPForImageClassification",
    "SiglipForImageClassification",
}


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
    """

    def __init__(self, model: nn.Module, tower: nn.Module, parts: BlockParts) -> None:
        self.model, self.tower, self.parts = model, tower, parts
        self.layers: list[nn.Module] = list(tower.get_submodule(parts.layers).children())
        self.prefix: int = parts.prefix(tower)
        self.timm = not hasattr(tower, "set_attn_implementation")

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
        dim = int(first.get_submodule(self.parts.norm1).weight.shape[0])  # type: ignore[union-attr, index]
        weights = sum(m.weight.numel() for m in mlp.modules() if isinstance(m, nn.Linear))
        heads = getattr(attention, "num_attention_heads", None) or attention.num_heads
        size, own = self._image()
        ends = ("classifier", "head", "head_dist")  # DeiT has two classifiers, of names that end alike
        classifier = [m for n, m in self.model.named_modules() if n.rpartition(".")[2].endswith(ends)]
        fixed = sum(m.weight.numel() for m in classifier if isinstance(m, nn.Linear))
        projection: Any = self.tower.get_submodule(self.parts.projection)
        if size is not None:
            image = torch.zeros(1, 3, *size, dtype=next(projection.parameters()).dtype)
            training = projection.training
            projection.eval()
            with torch.no_grad():
                fixed += count_flops(lambda: projection(image.to(next(projection.parameters()).device))) // 2
            projection.train(training)
        return Anatomy(
            layers=len(self.layers),
            dim=dim,
            hidden=weights // (2 * dim),  # of a gated MLP: the width that costs as much
            patches=own if patches is None else patches,
            prefix=self.prefix,
            heads=int(heads),
            fixed=fixed,
        )

    def _image(self) -> tuple[tuple[int, int] | None, int]:
        """Return height and width that the model was made for, and its number of patches."""
        if self.timm:
            embed: Any = self.tower.patch_embed
            return embed.img_size, embed.num_patches
        config: Any = self.tower.config
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return (height, width), (height // config.patch_size) * (width // config.patch_size)

    # -- pooling: where a model averages tokens, a merged one counts for all that it stands for --

    def pool_by_size(self, sizes: Callable[[], Tensor | None], bias: Callable[[], Tensor | None]) -> Iterator[Undo]:
        """Weight pooled tokens by their size, if the model pools any; yields what takes the change back.

        Parameters
        ----------
        sizes, bias
            Give the sizes [batch, tokens, 1] and the log sizes [batch, 1, 1, tokens] of the forward under way.
        """
        if self.timm:
            tower: Any = self.tower
            if tower.attn_pool is None:
                tower.pool = partial(self._pool, type(tower).pool.__get__(tower), sizes)
                yield lambda: delattr(tower, "pool")
            else:
                yield self._mask_pool(tower.attn_pool, lambda held, _: held, bias, tower.pool_include_prefix)
        elif type(self.model).__name__ in _MEAN_OF_TOKENS:
            yield self.tower.register_forward_hook(lambda _, args, out: self._scale_output(out, sizes())).remove
        head = getattr(self.tower, "head", None)
        if isinstance(getattr(head, "attention", None), nn.MultiheadAttention):
            heads = head.attention.num_heads  # type: ignore[union-attr]
            repeat = lambda held, batch: held.expand(batch, heads, 1, -1).flatten(0, 1)  # noqa: E731
            yield self._mask_pool(head.attention, repeat, bias, True)  # type: ignore[union-attr]

    def _pool(
        self, pool: Callable[..., Tensor], sizes: Callable[[], Tensor | None], x: Tensor, kind: Any = None
    ) -> Tensor:
        tower: Any = self.tower
        if (tower.global_pool if kind is None else kind) == "avg":
            x = _scaled(x, sizes(), 0 if tower.pool_include_prefix else self.prefix)
        return pool(x, kind)

    def _scale_output(self, out: Any, sizes: Tensor | None) -> Any:
        first = _scaled(out[0], sizes, self.prefix)
        if isinstance(out, tuple):
            return (first, *out[1:])
        out.last_hidden_state = first
        return out

    def _mask_pool(
        self, head: nn.Module, shape: Callable[[Tensor, int], Tensor], bias: Callable[[], Tensor | None], whole: bool
    ) -> Undo:
        def add(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
            held = bias()
            if held is not None:
                held = held if whole else held[..., self.prefix :]
                kwargs = {**kwargs, "attn_mask": shape(held.to(args[0].dtype), args[0].shape[0])}
            return args, kwargs

        return head.register_forward_pre_hook(add, with_kwargs=True).remove


def _scaled(x: Tensor, sizes: Tensor | None, first: int) -> Tensor:
    """Scale rows so that their plain mean from `first` on is the mean weighted by size."""
    if sizes is None:
        return x
    held = sizes[:, first:]
    weight = held * (held.shape[1] / held.sum(1, keepdim=True))
    return torch.cat([x[:, :first], x[:, first:] * weight.to(x.dtype)], 1)


def adapter_for(model: nn.Module) -> Adapter:
    """Find the vision transformer in `model`.

    Raises
    ------
    UserError
        There is none that is supported, or its blocks are of another kind.
    """
    for tower in model.modules():
        for ancestor in type(tower).__mro__:
            parts = FAMILIES.get(f"{ancestor.__module__}.{ancestor.__qualname__}")
            if parts is not None:
                found = Adapter(model, tower, parts)
                _check_blocks(found)
                return found
    raise UserError(f"{type(model).__name__} has no reduce adapter; supported: {SUPPORTED}")


def _check_blocks(adapter: Adapter) -> None:
    for layer in adapter.layers:
        attention = adapter.attention(layer) if hasattr(layer, adapter.parts.attention.split(".")[0]) else None
        if adapter.timm and (type(layer).__name__ != "Block" or type(attention).__name__ != "Attention"):
            inner = type(layer).__name__ if type(layer).__name__ != "Block" else type(attention).__name__
            raise UserError(f"this {type(adapter.tower).__name__} has {inner} blocks; supported: {SUPPORTED}")


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
