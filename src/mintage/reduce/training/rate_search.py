"""Find how many tokens each block should prune and merge, by gradient, under a budget of multiply-adds.

Chen et al., ICCV 2023, arXiv 2305.17997, sections 3.2 to 3.4. Every block gets two *rate proxies*: distributions over
how many patches to keep. In training nothing is removed: tokens beyond the expected number are masked out of attention,
hard forward, and backward by the probability that they stay, so that the gradient says whether one more token would
have helped. The model itself is frozen; a few hundred steps move only these distributions. AdamW moves a logit by about
the learning rate a step, so they need ten times the paper's 0.01, which it uses for 3,750 steps, to get as far.

The squared difference from the budget is taken relative to the unmodified model, and its weight of 100 is the paper's 5
per squared GMAC on DeiT-S (4.6 GMACs): in GMACs it would vanish for small models.

Not here: mixup, which the authors train with; a search on images without labels.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from mintage.reduce.contract import Anatomy
from mintage.reduce.training.images import logits_of
from mintage.reduce.training.masked import MaskedDiffRate
from mintage.reduce.training.rates import Rates, expected_macs

__all__ = ["RateSearch"]


class RateSearch:
    """What the training loop needs: rates, batches, and the loss of eq. 10.

    Parameters
    ----------
    rates
        Are searched.
    model
        Frozen.
    batches
        Make the batch of any index: ``pixels`` and ``labels``.
    anatomy
        Sizes of the model.
    share
        Of its multiply-adds, that is aimed at.
    cost_weight
        Of the squared relative difference from the budget.
    smoothing
        Of the labels.
    """

    def __init__(
        self,
        rates: Rates,
        model: nn.Module,
        batches: Callable[[int], dict[str, Tensor]],
        anatomy: Anatomy,
        *,
        share: float,
        cost_weight: float = 100.0,
        smoothing: float = 0.1,
    ) -> None:
        self.module, self.model, self.batches, self.anatomy, self.share = rates, model, batches, anatomy, share
        self.cost_weight, self.smoothing = cost_weight, smoothing

    def batch(self, index: int) -> dict[str, Tensor]:
        """Return pixels and labels."""
        return self.batches(index)

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the smoothed cross-entropy plus the weighted distance from the budget, and both to log."""
        rates = module()
        with MaskedDiffRate(rates=rates)(self.model):
            logits = logits_of(self.model(batch["pixels"])).float()
        task = functional.cross_entropy(logits, batch["labels"], label_smoothing=self.smoothing)
        share = expected_macs(rates, self.anatomy) / self.anatomy.full
        cost = self.cost_weight * (share - self.share) ** 2
        return task + cost.float(), {"task": task.item(), "share": share.item()}
