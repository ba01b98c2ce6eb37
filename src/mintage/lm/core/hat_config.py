"""Sizes of HAT's two forms."""

from __future__ import annotations

from typing import Any, ClassVar

from mintage.errors import UserError
from mintage.lm.contract import LMConfig
from mintage.lm.core.backbone import sizes_of

__all__ = ["ConnectorHatConfig", "HatConfig"]


class HatConfig(LMConfig):
    """Sizes of a HAT.

    Parameters
    ----------
    byte_width, byte_layers, byte_heads
        Of the transformers inside words, both alike.
    width, layers, heads
        Of the backbone.
    cut, most
        The rule that cuts words, and the longest word in bytes.
    blocks
        Configuration of the blocks of a pretrained model, where those are the backbone; the sizes are theirs then.

    Raises
    ------
    UserError
        A size is out of range, or another one than that of `blocks`.
    """

    model_type = "mintage-hat"
    sizes: ClassVar = {
        **dict.fromkeys(("byte_width", "width"), 2),
        **dict.fromkeys(("byte_layers", "byte_heads", "layers", "heads", "most"), 1),
    }

    others: ClassVar = ("cut", "blocks")

    byte_width, byte_layers, byte_heads = 96, 2, 4
    width, layers, heads = 224, 4, 4
    cut, most = "hat", 32
    blocks: Any = None

    def __init__(self, **kwargs: Any) -> None:
        if kwargs.get("blocks") is not None:
            for name, value in sizes_of(kwargs["blocks"]).items():
                if kwargs.setdefault(name, value) != value:
                    raise UserError(f"{name}={kwargs[name]}, but the backbone's is {value}; leave it out")
        super().__init__(**kwargs)


class ConnectorHatConfig(HatConfig):
    """Sizes of a HAT with connectors.

    Parameters
    ----------
    near
        Bytes that a byte sees in the stacks over bytes, itself among them.
    key_heads
        Of the connectors; as many as `heads` where it is None.
    head_norm
        Whether queries and keys of the encoder connector are normed in every head.
    """

    model_type = "mintage-hat-connectors"
    sizes: ClassVar = {**HatConfig.sizes, "near": 1}
    others: ClassVar = (*HatConfig.others, "key_heads", "head_norm")

    near, key_heads, head_norm = 128, None, False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
