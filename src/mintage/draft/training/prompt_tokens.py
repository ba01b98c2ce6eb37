"""What prompt tokens learn: the distributions that the model itself has later in the same text.

arXiv 2405.18628, section 3. A continuation is cut at random positions; at each cut the prompt tokens see what lies
before it. The model is frozen, and its own tokens never see the prompt tokens, so one forward of the text serves all
cuts and is the teacher as well.

Deviations: several cuts per text and step (the authors take one); the teacher is exact, computed along with the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mintage.draft.core.continuations import Continuation
from mintage.draft.core.guessing import guess_logits
from mintage.draft.core.prompt_tokens import PromptTokens
from mintage.draft.core.target import Target
from mintage.errors import UserError

__all__ = ["PromptTokenRecipe", "distill_loss"]


def distill_loss(
    student: Float[Tensor, "batch distances vocabulary"],
    teacher: Float[Tensor, "batch distances vocabulary"],
    decay: float = 0.8,
) -> Float[Tensor, ""]:
    """KL(teacher || student) in nats, weighted ``decay ** (i - 1)`` at the i-th prompt token (section 3, training).

    Parameters
    ----------
    student, teacher
        Logits at the prompt tokens, and of the model itself after it appended as many of its own tokens.
    """
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1).mean(0)
    weights = decay ** torch.arange(len(divergence), device=divergence.device, dtype=divergence.dtype)
    return (weights * divergence).mean()


class PromptTokenRecipe:
    """What the training loop needs: some texts and cuts per batch, and the distillation loss.

    Parameters
    ----------
    target
        The frozen model; its parameters get no gradients.
    module
        The prompt tokens, which are trained.
    texts
        Continuations to learn from.
    batch_texts, batch_cuts
        Texts per batch, and cuts per text.
    decay
        Weight of a distance relative to the one before it.
    seed
        Of texts and cuts.

    Raises
    ------
    UserError
        No text is long enough to be cut.
    """

    def __init__(
        self,
        target: Target,
        module: PromptTokens,
        texts: Sequence[Continuation],
        *,
        batch_texts: int = 2,
        batch_cuts: int = 32,
        decay: float = 0.8,
        seed: int = 0,
    ) -> None:
        self.target, self.module = target, module
        self.texts = [text for text in texts if len(text.cuts(module.distances)) >= 1]
        if not self.texts:
            raise UserError(f"no continuation is longer than {module.distances} tokens; pass other prompts")
        self.batch_texts, self.batch_cuts = min(batch_texts, len(self.texts)), batch_cuts
        self.decay, self.seed = decay, seed

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Take the next texts of this epoch's order (padded ids) and cut each at random positions (prefix lengths)."""
        per_epoch = len(self.texts) // self.batch_texts
        epoch, number = divmod(index, per_epoch)
        order = torch.randperm(len(self.texts), generator=torch.Generator().manual_seed(self.seed * 7919 + epoch))
        chosen = [self.texts[i] for i in order[number * self.batch_texts :][: self.batch_texts]]
        generator = torch.Generator().manual_seed((self.seed << 32) + index)
        ids = torch.zeros(len(chosen), max(len(text.ids) for text in chosen), dtype=torch.long)
        cuts = torch.zeros(len(chosen), self.batch_cuts, dtype=torch.long)
        for row, text in enumerate(chosen):
            ids[row, : len(text.ids)] = torch.tensor(text.ids)
            possible = torch.tensor(text.cuts(self.module.distances))
            picks = torch.randperm(len(possible), generator=generator)
            cuts[row] = possible[picks.repeat(-(-self.batch_cuts // len(picks)))[: self.batch_cuts]]
        return ids, cuts

    def loss(self, module: Any, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Distil at every cut: prompt token i learns the model's distribution after i more of its own tokens."""
        ids, cuts = (t.to(self.target.device) for t in batch)
        student, own = guess_logits(self.target, ids, cuts, module())
        ahead = cuts[..., None] + torch.arange(student.shape[2], device=cuts.device)
        teacher = own[torch.arange(len(ids), device=cuts.device)[:, None, None], ahead].float()
        loss = distill_loss(student.flatten(0, 1), teacher.flatten(0, 1), self.decay)
        agree = (student.argmax(-1) == teacher.argmax(-1)).float().mean((0, 1))
        return loss, {f"agree at {i + 2}": value for i, value in enumerate(agree.tolist())}
