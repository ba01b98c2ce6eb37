"""Training of HAT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mintage.errors import UserError
from mintage.lm.core.backbone import PretrainedBlocks
from mintage.lm.core.cuts import CutName
from mintage.lm.core.windows import Windows
from mintage.lm.hat import ConnectorHat, ConnectorHatConfig, Hat, HatConfig
from mintage.lm.training.byte_training import ByteTraining
from mintage.options import option

__all__ = ["HatTraining"]


@dataclass(frozen=True, kw_only=True)
class HatTraining(ByteTraining):
    """Train HAT: a transformer over words, between small ones over their bytes."""

    name: ClassVar[str] = "hat"
    examples: ClassVar[tuple[str, ...]] = (
        "mintage train hat notes/ --steps 300 -o my-words",
        "mintage train hat notes/ --cut stride --most 8 -o my-strides",
        "mintage train hat notes/ --style connectors --near 64 -o my-stream",
        "mintage train hat notes/ --backbone smollm2 --freeze-backbone --lr 1e-3 -o my-smol",
    )

    byte_width: int = option(96, "Of the vectors inside words.", least=2)
    byte_layers: int = option(2, "Blocks that read a word's bytes, and as many that spell them.", least=1)
    byte_heads: int = option(4, "Of attention inside words.", least=1)
    width: int | None = option(None, "Of words' vectors; default 224, or the backbone's.", least=2)
    layers: int | None = option(None, "Blocks over words; default 4, or the backbone's.", least=1)
    heads: int | None = option(None, "Of attention over words; default 4, or the backbone's.", least=1)
    cut: CutName = option("hat", "Rule that cuts words: hat, spaces, or stride (every --most bytes).")
    most: int = option(32, "Bytes of the longest word.", least=1)
    backbone: str = option("", "A language model whose blocks run over words: smollm2, a folder, or a hub id.")
    freeze_backbone: bool = option(False, "Train only what stands around the backbone.")
    style: Literal["words", "connectors"] = option(
        "words", "words: spelt one by one, each with an end; connectors: one stream of bytes, as released."
    )
    near: int | None = option(None, "Bytes that one sees in the stream, with connectors; default 128.", least=1)
    key_heads: int | None = option(None, "Heads of the connectors' keys; default as many as --heads.", least=1)
    head_norm: bool = option(False, "Norm queries and keys of the encoder connector in every head.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.style == "words" and self._of_connectors:
            name, value = next(iter(self._of_connectors.items()))
            raise UserError(f"{name}={value}, but words are spelt without connectors; pass style=connectors, too")
        if self.backbone and self._sizes:
            name, value = next(iter(self._sizes.items()))
            raise UserError(f"{name}={value}, but {self.backbone} has its own sizes; leave it out")
        if self.freeze_backbone and not self.backbone:
            raise UserError("a fresh backbone has learnt nothing to freeze; name a trained one, e.g. backbone=smollm2")

    @property
    def _sizes(self) -> dict[str, int]:
        """What was asked of the backbone."""
        asked = {"width": self.width, "layers": self.layers, "heads": self.heads}
        return {name: value for name, value in asked.items() if value is not None}

    @property
    def _of_connectors(self) -> dict[str, Any]:
        """What was asked of connectors."""
        asked = {"near": self.near, "key_heads": self.key_heads, "head_norm": self.head_norm or None}
        return {name: value for name, value in asked.items() if value is not None}

    def build(self, windows: Windows) -> Hat | ConnectorHat:
        """See `ByteTraining.build`."""
        names = ("byte_width", "byte_layers", "byte_heads", "cut", "most")
        sizes: dict[str, Any] = {name: getattr(self, name) for name in names} | self._sizes
        held = PretrainedBlocks.load(self.backbone) if self.backbone else None
        sizes |= {"blocks": held.settings} if held else {}
        if self.style == "connectors":
            model = ConnectorHat(ConnectorHatConfig(**sizes, **self._of_connectors))
            last, start = model.pool.o, model.first
        else:
            model = Hat(HatConfig(**sizes))
            last, start = model.widen, model.start
        if held:
            held.move_in(model, last, start)
            model.backbone.requires_grad_(not self.freeze_backbone)
        return model
