"""What a distilled drafter learns: the target's distribution at every token of the target's own answers.

The recipe is DistillSpec's (Zhou et al., ICLR 2024, arXiv 2310.08461). Not here: the answers
(`mintage.draft.core.answers`), the loop (`mintage.train`).
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mintage.draft.core.answers import Answers
from mintage.draft.core.divergence import divergence
from mintage.errors import UserError

__all__ = ["DrafterRecipe"]


class DrafterRecipe:
    """What the training loop needs: some answers per batch, and the `divergence` at every token.

    Parameters
    ----------
    target
        The frozen model.
    drafter
        From `mintage.draft.core.distilled.cut_drafter`; a float32 copy of its blocks is trained, see `finish`.
    answers, rows
        Answers, and which of them to learn from.
    batch_rows
        Answers per batch.
    overlap
        Share of the loss that is ``1 - sum(min(p, q))``, the chance that a draft is rejected; the rest is the forward
        Kullback-Leibler divergence. Both leave out what the drafter's head does not know.
    seed
        Of the order.
    """

    def __init__(
        self,
        target: Any,
        drafter: Any,
        answers: Answers,
        rows: Sequence[int],
        *,
        batch_rows: int = 16,
        overlap: float = 0.0,
        seed: int = 0,
    ) -> None:
        if not 0 <= overlap <= 1:
            raise UserError(f"overlap={overlap} is outside [0, 1]; pass e.g. 0.5, or 0 for the divergence alone")
        self.drafter, self.answers, self.rows = drafter, answers, list(rows)
        self.batch_rows, self.overlap, self.seed = min(batch_rows, len(self.rows)), overlap, seed
        self.embeddings: nn.Module = target.get_input_embeddings()
        self.head: Tensor = drafter.lm_head.rows
        self.module = copy.deepcopy(drafter.model, memo={id(drafter.model.embed_tokens): None}).float()
        self.module.requires_grad_(True)

    def batch(self, index: int) -> dict[str, Tensor]:
        """Return padded ids, and of every answer token its position, the target's last hidden state and its total."""
        per_epoch = len(self.rows) // self.batch_rows
        epoch, number = divmod(index, per_epoch)
        rows = self._epoch(epoch)[number]
        answers, ids = self.answers, [self.answers.ids[row].long() for row in rows]
        longest = max(map(len, ids))
        spans = [
            torch.arange(answers.given[row] - 1, len(ids[i]) - 1) + i * longest  # predicted one position before
            for i, row in enumerate(rows)
        ]
        return {
            "ids": nn.utils.rnn.pad_sequence(ids, batch_first=True),
            "positions": torch.cat(spans),
            "hidden": torch.cat([answers.hidden[row] for row in rows]),
            "log_total": torch.cat([answers.log_total[row] for row in rows]),
        }

    def _epoch(self, epoch: int) -> list[list[int]]:
        """Return an epoch's batches: rows of similar length together, in random order."""
        if getattr(self, "_order", (-1,))[0] != epoch:
            shuffled = random.Random(f"{self.seed} {epoch}")
            rows = shuffled.sample(self.rows, len(self.rows))
            chunk, batches = 32 * self.batch_rows, []
            for first in range(0, len(rows), chunk):
                part = sorted(rows[first : first + chunk], key=lambda row: len(self.answers.ids[row]))
                batches += [part[i : i + self.batch_rows] for i in range(0, len(part), self.batch_rows)]
            shuffled.shuffle(batches)
            self._order = (epoch, batches)
        return self._order[1]

    def loss(self, module: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Compare the distributions at all answer tokens of the batch."""
        embedded = self.embeddings(batch["ids"]).to(self.head.dtype)
        hidden = module(inputs_embeds=embedded, use_cache=False).last_hidden_state.flatten(0, 1)[batch["positions"]]
        with torch.no_grad():
            teacher = nn.functional.linear(batch["hidden"].to(self.head.dtype), self.head).float()
            log_p = teacher.sub_(batch["log_total"][:, None])
        student = nn.functional.linear(hidden.to(self.head.dtype), self.head)
        return divergence(student, log_p, self.overlap)

    def finish(self) -> None:
        """Copy what was learnt into the drafter, in its own dtype."""
        for mine, learnt in zip(_blocks(self.drafter.model), _blocks(self.module), strict=True):
            mine.data.copy_(learnt.data)


def _blocks(model: Any) -> list[Tensor]:
    return [*model.layers.parameters(), *model.norm.parameters()]
