"""What a composer learns: to find a token's embedding from its pieces (the warm-up of zett), and to read words whole.

A model reads a text as it is and merged, and behind every merged token its states shall be those behind the last part:
after the first few blocks, where a model puts words together, or after all of them its predictions, which costs five
times as much and is what counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mintage.errors import UserError
from mintage.models import CausalLM
from mintage.retrofit.core.composer import Composer
from mintage.retrofit.core.dynamic_tokenizer import DynamicTokenizer
from mintage.retrofit.core.embeddings import Composed, Parts, pad_parts
from mintage.retrofit.training.blocks import cut_vocabulary, first_blocks

__all__ = ["ComposerRecipe"]

_REDUCTIONS = (0.5, 1.0)  # drawn from evenly
_TRIES = 1000


class ComposerRecipe:
    """What `mintage.train` needs to train a composer.

    Parameters
    ----------
    net, lm
        What is trained, and the model, frozen.
    pieces
        From `pieces_of_texts`.
    warmup
        Batches of the vocabulary alone; later ones are of texts, with a smaller batch of the vocabulary.
    rows
        Texts per batch.
    cut
        Tokens of the vocabulary that are cut per batch of the warm-up.
    layers
        Blocks after which states are compared; all of them: predictions.
    """

    def __init__(
        self,
        net: Composer,
        lm: CausalLM,
        pieces: Sequence[Sequence[int]],
        *,
        warmup: int,
        rows: int = 3,
        cut: int = 128,
        layers: int = 6,
        seed: int = 0,
    ) -> None:
        self.module = net
        self.merger = DynamicTokenizer(lm.tokenizer)
        self.source = Parts(lm.model, self.merger.vocabulary)
        self._model, self._pieces = first_blocks(lm.model, layers), pieces
        self._head: Any = lm.model.get_output_embeddings() if self._model is lm.model.base_model else None
        self._warmup, self._rows, self._cut, self._seed = warmup, rows, cut, seed
        whole, parts = cut_vocabulary(self.merger.vocabulary, net.shape.parts, seed)
        self._whole = torch.tensor(whole)
        self._cut_ids, self._cut_mask = pad_parts(parts, net.shape.parts)

    def batch(self, index: int) -> dict[str, Tensor]:
        """Return tokens that were cut, and from the end of the warm-up on texts."""
        draw = np.random.default_rng((self._seed, index))
        early = index < self._warmup
        batch = self._cut_tokens(draw, self._cut if early else self._cut // 2)
        return batch if early else batch | self._texts(draw)

    def _cut_tokens(self, draw: np.random.Generator, count: int) -> dict[str, Tensor]:
        chosen = torch.from_numpy(draw.choice(len(self._whole), count))
        mask = self._cut_mask[chosen]
        longest = int(mask.sum(1).max())
        return {"whole": self._whole[chosen], "cut": self._cut_ids[chosen, :longest], "cut_mask": mask[:, :longest]}

    def _texts(self, draw: np.random.Generator) -> dict[str, Tensor]:
        some: list[Sequence[int]] = []
        for _ in range(_TRIES):
            piece = self._pieces[int(draw.integers(len(self._pieces)))]
            words = self.merger.merge_ids([piece], reduction=1.0)
            # words of many parts, as in scripts without spaces, are cut short and teach little
            if words.length < len(piece) <= self.module.shape.parts / 2 * words.length:
                some.append(piece)
            if len(some) == self._rows:
                break
        else:
            raise UserError("hardly a text holds words of two to seven tokens; pass texts that are cut smaller")
        merged = self.merger.merge_ids(some, reduction=float(draw.choice(_REDUCTIONS)))
        new = self.source.of([token.surface for token in merged.unique if token.id is None])
        ids, mask = pad_parts([row or [0] for row in new], self.module.shape.parts)
        ends = [[*row[1:], len(piece)] for row, piece in zip(merged.starts, some, strict=True)]
        pad = nn.utils.rnn.pad_sequence
        return {
            "ids": pad([torch.tensor(piece) for piece in some], batch_first=True),
            "unique": torch.tensor([-1 if t.id is None else t.id for t in merged.unique]),
            "parts": ids,
            "parts_mask": mask,
            "places": pad([torch.tensor(row) for row in merged.tokens], batch_first=True, padding_value=-1),
            "ends": pad([torch.tensor(row) - 1 for row in ends], batch_first=True),
        }

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Distance to the vocabulary's embeddings, and to the states or predictions behind words."""
        made = self._compose(module, batch["cut"], batch["cut_mask"])
        scale = self.module.shape.scale
        distances = [((made.input - self.source.input[batch["whole"]].float()) / scale).square().mean()]
        distances.append(((made.output - self.source.output[batch["whole"]].float()) / scale).square().mean())
        vocabulary = (distances[0] + distances[1]) / 2
        if "ids" not in batch:
            return vocabulary, {"vocabulary": vocabulary.item()}
        made = self._compose(module, batch["parts"], batch["parts_mask"])
        rows = self.source.input[batch["unique"].clamp(min=0)].float()
        rows = rows.index_copy(0, (batch["unique"] < 0).nonzero()[:, 0], made.input)
        with torch.no_grad():
            wanted = self._states(input_ids=batch["ids"])
            wanted = wanted.gather(1, batch["ends"][..., None].expand(-1, -1, wanted.shape[-1]))
        got = self._states(inputs_embeds=rows[batch["places"].clamp(min=0)].to(self.source.input.dtype))
        read = batch["places"] >= 0
        name, lost = "states", _apart
        if self._head is not None:
            name, lost = "predictions", self._divergence
        found = lost(got[read], wanted[read])
        return found + 0.1 * vocabulary, {"vocabulary": vocabulary.item(), name: found.item()}

    def _divergence(self, got: Float[Tensor, "tokens width"], wanted: Float[Tensor, "tokens width"]) -> Tensor:
        """Divergence of what is predicted from what was, in nats."""
        told, right = (self._head(states.to(self._head.weight.dtype)).float() for states in (got, wanted))
        told, right = told.log_softmax(-1), right.log_softmax(-1)
        return nn.functional.kl_div(told, right, reduction="batchmean", log_target=True)

    def _compose(self, module: nn.Module, ids: Int[Tensor, "tokens parts"], mask: Tensor) -> Composed:
        return module(self.source.input[ids].float(), self.source.output[ids].float(), mask)

    def _states(self, **given: Tensor) -> Float[Tensor, "texts tokens width"]:
        """States after the first blocks; padding stands behind, where causal attention does not see it."""
        return self._model(**given, use_cache=False).last_hidden_state.float()


def _apart(got: Float[Tensor, "tokens width"], wanted: Float[Tensor, "tokens width"]) -> Tensor:
    """Squared distance of states, as a part of their squared norm."""
    return ((got - wanted).square().sum(-1) / wanted.square().sum(-1)).mean()
