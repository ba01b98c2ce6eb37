"""Blocks of a pretrained causal language model as a backbone over words: its vocabulary is left out.

A model with such a backbone carries the blocks' configuration and weights in its own folder and needs no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, DynamicCache

from mintage.errors import UserError
from mintage.lm.core.stack import over_rows, stack
from mintage.models import load_causal_model

__all__ = ["PretrainedBlocks", "backbone_of", "over_words", "sizes_of"]

_OF_WORDS = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")
_OF_FILES = ("architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path", "auto_map")

_SAMPLE = b"The moon pulls the water of the sea, and the sea follows the moon; twice a day there are tides."


def sizes_of(settings: Mapping[str, Any]) -> dict[str, int]:
    """Return width, blocks and heads of a configuration of blocks.

    Raises
    ------
    UserError
        It is none, or of a model that transformers does not know.
    """
    try:
        config: Any = AutoConfig.for_model(**settings)
        return {"width": config.hidden_size, "layers": config.num_hidden_layers, "heads": config.num_attention_heads}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(
            f"blocks={str(settings)[:40]}... is no configuration of a decoder; take a model's own"
        ) from None


def backbone_of(config: Any) -> Any:
    """Make the backbone that a configuration tells of: its ``blocks``, or a small Llama's."""
    if config.blocks is None:
        return stack(config.width, config.layers, config.heads)
    made = AutoModel.from_config(AutoConfig.for_model(**config.blocks))
    made.set_input_embeddings(nn.Identity())
    return made


def over_words(blocks: Any, rows: Float[Tensor, "batch words width"], cache: Any = None) -> Tensor:
    """Run a backbone; see `mintage.lm.core.stack.over_rows`.

    Raises
    ------
    UserError
        There are more words than a table of positions has.
    """
    seen = rows.shape[1] + (0 if cache is None else cache.get_seq_length())
    most = getattr(blocks.config, "max_position_embeddings", None) or seen
    if seen > most and any(isinstance(part, nn.Embedding) for part in blocks.modules()):  # a table; others only turn
        raise UserError(f"a text has more than the {most} words that its backbone has positions for; read less")
    return over_rows(blocks, rows, cache)


@dataclass(frozen=True)
class PretrainedBlocks:
    """Blocks that were trained before.

    Parameters
    ----------
    blocks
        What runs over vectors.
    settings
        Their configuration, without a vocabulary; see `backbone_of`.
    scale
        Root mean square of the vectors that they were trained on.
    """

    blocks: Any
    settings: dict[str, Any]
    scale: float

    @classmethod
    def load(cls, name: str) -> PretrainedBlocks:
        """Take them out of a causal language model: ``"smollm2"``, a folder, or a hub id.

        Raises
        ------
        UserError
            There is no such model, its weights are damaged, or its blocks do not run over vectors as a causal stack
            with a cache does.
        """
        model: Any = load_causal_model(name)
        embed, blocks = model.get_input_embeddings(), model.base_model
        with torch.no_grad():
            some = embed(torch.linspace(0, embed.weight.shape[0] - 1, 1024).long()).float()
        settings = {key: value for key, value in blocks.config.to_diff_dict().items() if key not in _OF_FILES}
        settings |= {**dict.fromkeys(_OF_WORDS), "vocab_size": 1, "model_type": blocks.config.model_type}
        blocks.set_input_embeddings(nn.Identity())
        try:
            with torch.device("meta"):
                again = AutoModel.from_config(AutoConfig.for_model(**settings))
                again.set_input_embeddings(nn.Identity())
            fits = {key: held.shape for key, held in again.state_dict().items()}
            if fits != {key: held.shape for key, held in blocks.state_dict().items()}:
                raise ValueError(f"{type(blocks).__name__} has other weights than its configuration tells")
            _try(blocks, sizes_of(settings)["width"])
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"{name}: {type(blocks).__name__} does not run over vectors as a causal decoder does ({reason}); "
                "pass one that does, e.g. smollm2"
            ) from error
        return cls(blocks, settings, float(some.square().mean().sqrt()))

    @torch.no_grad()
    def move_in(self, model: Any, last: nn.Linear, start: Tensor) -> None:
        """Become a model's backbone; its words become as large as the vectors that the blocks know.

        Parameters
        ----------
        model
            Made with `settings`.
        last
            What gives the vectors of its words.
        start
            The one that stands before the first.
        """
        words: list[Any] = []
        hook = last.register_forward_hook(lambda module, given, out: words.append(out))
        model(torch.tensor([list(_SAMPLE)]))
        hook.remove()
        model.backbone = self.blocks
        last.weight.mul_(self.scale / words[0].square().mean().sqrt())
        start.mul_(self.scale / start.square().mean().sqrt())


@torch.no_grad()
def _try(blocks: Any, width: int) -> None:
    """Run blocks over some vectors, at once, with another last one, and with a cache."""
    rows = torch.randn(1, 6, width, generator=torch.Generator().manual_seed(0))
    whole, cache = over_rows(blocks, rows), DynamicCache()
    parts = torch.cat([over_rows(blocks, rows[:, :4], cache), over_rows(blocks, rows[:, 4:], cache)], 1)
    if whole.shape != rows.shape:
        raise ValueError(f"vectors of {width} become {whole.shape[-1]} wide")
    if not torch.allclose(over_rows(blocks, rows[:, :5]), whole[:, :5], atol=1e-3):
        raise ValueError("it sees what comes behind")
    if not torch.allclose(parts, whole, atol=1e-3):
        raise ValueError("it goes on otherwise with a cache")
