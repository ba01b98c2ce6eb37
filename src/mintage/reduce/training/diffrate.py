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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mintage.errors import UserError
from mintage.reduce.contract import Anatomy, Evidence, Reducer, TokenState
from mintage.reduce.core.adapters import adapter_for
from mintage.reduce.diffrate import DiffRate, RateSchedule, merge_into_important, write_schedules
from mintage.reduce.training.images import Report, TrainingImages, accuracy, logits_of, on_device, silent
from mintage.train import Settings, train

__all__ = ["MaskedDiffRate", "Rate", "RateProxy", "RateSearch", "Rates", "expected_macs", "masked_softmax"]
__all__ += ["reduce_masked", "search_schedule", "train_schedules"]

_ROUNDING = 1e-9  # of an expected count that is whole


# -- rates -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rate:
    """A distribution over how many patches to keep, seen as numbers that have gradients.

    Parameters
    ----------
    kept
        Expected number of tokens, rounded up, the class token among them; backward as if it were not rounded (eq. 5).
    probability
        That the t-th token stays, the class token being number 0: it never rises.
    """

    kept: Float[Tensor, ""]
    probability: Float[Tensor, " tokens"]

    @cached_property
    def count(self) -> int:
        """`kept` as an int."""
        return int(self.kept.item())

    def mask(self, previous: int | None = None) -> Float[Tensor, " tokens"]:
        """1 for the first `kept` tokens and 0 for the others, backward as `probability` (eq. 7).

        Parameters
        ----------
        previous
            Tokens there were before: only those that go now are masked, later ones stay 1.
        """
        place = torch.arange(len(self.probability), device=self.probability.device)
        gone = (place >= self.count) if previous is None else (place >= self.count) & (place < previous)
        return torch.where(gone, 0.0, 1.0) - self.probability.detach() + self.probability


class RateProxy(nn.Module):
    """Logits over numbers of patches to keep: all, all but `granularity`, and so on, at least 1 (section 3.2).

    Parameters
    ----------
    patches
        How many there are.
    granularity
        Step between two candidates; more than `patches` leaves a single one, which keeps all.
    """

    def __init__(self, patches: int, granularity: int = 1) -> None:
        super().__init__()
        self.patches = patches
        candidates = torch.arange(patches, 0, -granularity)
        self.register_buffer("candidates", candidates, persistent=False)
        self.logits = nn.Parameter(torch.zeros(len(candidates)))

    def forward(self) -> Rate:
        """Return the distribution's numbers."""
        share = self.logits.double().softmax(0)  # float64: an expectation of 196.0000001 would be rounded up to 197
        candidates: Tensor = self.candidates  # type: ignore[assignment]
        expected = share @ candidates.double() + 1
        kept = torch.ceil(expected.detach() - _ROUNDING) - expected.detach() + expected
        place = torch.arange(self.patches + 1, device=candidates.device)
        probability = (place[:, None] <= candidates).double() @ share
        return Rate(kept.float(), probability.float())

    @property
    def kept(self) -> int:
        """Tokens kept now, the class token among them."""
        return self.forward().count

    def probability(self) -> Float[Tensor, " tokens"]:
        """Return the probability that each token stays."""
        return self.forward().probability

    def mask(self, previous: int | None = None) -> Float[Tensor, " tokens"]:
        """See `Rate.mask`."""
        return self.forward().mask(previous)


class Rates(nn.Module):
    """Two rate proxies for every block, of pruning and of merging; the first block keeps everything.

    Parameters
    ----------
    layers, patches
        Sizes of the model.
    granularity
        See `RateProxy`.
    prunes, merges
        False: nothing is pruned, or nothing merged (ablations).
    """

    def __init__(
        self, layers: int, patches: int, granularity: int = 1, *, prunes: bool = True, merges: bool = True
    ) -> None:
        super().__init__()

        def proxies(on: bool) -> nn.ModuleList:
            steps = [granularity if on and layer else patches + 1 for layer in range(layers)]
            return nn.ModuleList(RateProxy(patches, step) for step in steps)

        self.patches, self.prune, self.merge = patches, proxies(prunes), proxies(merges)

    def forward(self) -> list[tuple[Rate, Rate]]:
        """Return the rates of pruning and merging of every block."""
        return [(prune(), merge()) for prune, merge in zip(self.prune, self.merge, strict=True)]

    def schedule(self) -> RateSchedule:
        """Return what they say, numbers that do nothing replaced by what is there already."""
        pruned, merged, left = [], [], self.patches + 1
        for prune, merge in self.forward():
            pruned.append(min(left, prune.count))
            left = min(pruned[-1], merge.count)
            merged.append(left)
        return RateSchedule(prune_kept=tuple(pruned), merge_kept=tuple(merged), patches=self.patches)


def expected_macs(rates: Sequence[tuple[Rate, Rate]], anatomy: Anatomy) -> Float[Tensor, ""]:
    """Multiply-adds under these rates: a block's tokens are the fewest of three, backward both of its rates (eq. 9)."""
    total = rates[0][0].kept.new_tensor(float(anatomy.fixed), dtype=torch.float64)
    others = anatomy.prefix - 1  # the numbers count one class token
    entering: Any = float(anatomy.patches + anatomy.prefix)
    entered: float = entering
    for prune, merge in rates:
        pruned, merged = prune.kept.double() + others, merge.kept.double() + others
        fewest = min(entered, pruned.item(), merged.item())
        leaving = fewest + (pruned - pruned.detach()) + (merged - merged.detach())
        total = total + 4 * entering * anatomy.dim**2 + 2 * entering * entering * anatomy.dim
        total = total + 2 * leaving * anatomy.dim * anatomy.hidden
        entering, entered = leaving, fewest
    return total


# -- the masked model --------------------------------------------------------------------------------------------------


def masked_softmax(
    scores: Float[Tensor, "batch heads queries tokens"], mask: Float[Tensor, "batch tokens"], eps: float = 1e-6
) -> Float[Tensor, "batch heads queries tokens"]:
    """Softmax over the tokens whose mask is 1, differentiable in the mask; every token sees itself (eq. 8).

    ``(e M + eps / N) / (sum of e M + eps)`` with ``e = exp(scores - max)``: `eps` keeps masked rows finite.
    """
    tokens = scores.shape[-1]
    itself = torch.eye(tokens, dtype=scores.dtype, device=scores.device)
    seen = mask[:, None, None, :].to(scores.dtype) * (1 - itself) + itself
    held = (scores - scores.amax(-1, keepdim=True)).exp() * seen
    return (held + eps / tokens) / (held.sum(-1, keepdim=True) + eps)


def reduce_masked(
    x: Float[Tensor, "batch tokens dim"],
    importance: Float[Tensor, "batch patches"],
    mask: Float[Tensor, "batch tokens"],
    size: Float[Tensor, "batch tokens 1"],
    prune: Rate,
    merge: Rate,
    *,
    prefix: int = 1,
) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch tokens"], Float[Tensor, "batch tokens 1"]]:
    """Sort, mask what is pruned, merge, mask what was merged: what `DiffRate.reduce` does, with all tokens in place.

    Parameters
    ----------
    x
        The residual stream between attention and MLP.
    importance
        The class token's attention to the patches.
    mask
        1 for tokens that are still there; as many in every image.
    size
        What tokens stand for.
    prune, merge
        Rates of this block.
    prefix
        Tokens before the patches.

    Returns
    -------
    x, mask, size
        Sorted by importance. A destination is the plain mean of itself and its sources; a source adds its own size
        times the cosine, at least 1, to its destination's (the authors clamp in training only).
    """
    order = importance.detach().argsort(dim=1, descending=True, stable=True) + prefix
    order = torch.cat([torch.arange(prefix, device=x.device).expand(len(x), -1), order], 1)
    mask, size = mask.gather(1, order), size.gather(1, order[..., None])
    x = x.gather(1, order[..., None].expand_as(x))
    others = prefix - 1  # the rates count one class token

    def over(rate: Rate, previous: int) -> Tensor:
        return functional.pad(rate.mask(previous), (others, 0), value=1.0)

    last = int(mask[0].detach().sum().item()) - others
    if prune.count < last:
        mask = mask * over(prune, last)
    left = min(last, prune.count)
    if merge.count < left:
        x, size = _merged(x, size, merge.count + others, left + others, prefix)
        mask = mask * over(merge, left)
    return x, mask, size


def _merged(x: Tensor, size: Tensor, keep: int, left: int, prefix: int) -> tuple[Tensor, Tensor]:
    index, cosine = merge_into_important(x[:, prefix:left].detach(), keep - prefix)
    index = index[..., None] + prefix
    sources = x[:, keep:left]
    number = torch.ones_like(size).scatter_add(1, index, torch.ones_like(size[:, keep:left]))
    total = x.scatter_add(1, index.expand_as(sources), sources)
    size = size.clamp_min(1)
    gain = (size[:, keep:left] * cosine[..., None].to(size.dtype)).clamp_min(1)
    return total / number.to(x.dtype), size.scatter_add(1, index, gain)


class _Run:
    """What one forward of the masked model carries from layer to layer."""

    mask: Tensor
    importance: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedDiffRate(Reducer):
    """DiffRate as it is trained: every token stays, masks stand for removal.

    Parameters
    ----------
    rates
        Of pruning and merging, by block.
    """

    rates: Sequence[tuple[Rate, Rate]] = ()
    _run: _Run = field(default_factory=_Run, init=False, repr=False)

    def kept(self, anatomy: Anatomy) -> tuple[int, ...]:
        """All of them.

        Raises
        ------
        UserError
            The rates are for other sizes.
        """
        if len(self.rates) != anatomy.layers or len(self.rates[0][0].probability) != anatomy.patches + 1:
            raise UserError(
                f"rates for {len(self.rates)} blocks do not fit a model of {anatomy.layers} blocks and "
                f"{anatomy.patches} patches; search with images of the model's own size"
            )
        return (anatomy.patches,) * anatomy.layers

    @property
    def masks(self) -> bool:
        """Yes."""
        return True

    @property
    def proportional(self) -> bool:
        """Always, as in `DiffRate`."""
        return True

    @property
    def attends(self) -> bool:
        """Always: the softmax is a masked one."""
        return True

    def attend(self, evidence: Evidence, layer: int) -> Float[Tensor, "batch heads tokens head_dim"]:
        """Return attention among the tokens that are still there."""
        query, key = evidence.query.float(), evidence.key.float()
        run, prefix = self._run, key.shape[2] + 1 - len(self.rates[0][0].probability)
        if layer == 0:
            run.mask = query.new_ones(query.shape[0], query.shape[2])
        with torch.autocast(query.device.type, enabled=False):
            scores = query @ key.transpose(2, 3) * evidence.scaling
            if evidence.bias is not None:
                scores = scores + evidence.bias.float()
            weights = masked_softmax(scores, run.mask)
        row = weights[:, :, 0] if prefix else weights.mean(2)
        run.importance = row.mean(1)[:, prefix:]
        return weights.to(evidence.value.dtype) @ evidence.value

    def reduce(self, state: TokenState, evidence: Evidence, keep: int) -> TokenState:
        """Mask and merge."""
        prune, merge = self.rates[state.layer]
        x, self._run.mask, size = reduce_masked(
            state.x, self._run.importance, self._run.mask, state.size, prune, merge, prefix=state.prefix
        )
        return replace(state, x=x, size=size)

    @classmethod
    def tiny(cls) -> MaskedDiffRate:
        """Make one for models of 4 layers and 16 patches."""
        return cls(rates=Rates(4, 16)())


# -- the search --------------------------------------------------------------------------------------------------------


class RateSearch:
    """What the training loop needs: rates, batches, and the loss of eq. 10.

    Parameters
    ----------
    model
        Frozen.
    batches
        Make the batch of any index: ``pixels`` and ``labels``.
    anatomy
        Sizes of the model.
    share
        Of its multiply-adds, that is aimed at.
    granularity, prunes, merges
        See `Rates`.
    cost_weight
        Of the squared relative difference from the budget.
    smoothing
        Of the labels.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[int], dict[str, Tensor]],
        anatomy: Anatomy,
        *,
        share: float,
        granularity: int = 1,
        prunes: bool = True,
        merges: bool = True,
        cost_weight: float = 100.0,
        smoothing: float = 0.1,
    ) -> None:
        self.model, self.batches, self.anatomy, self.share = model, batches, anatomy, share
        self.cost_weight, self.smoothing = cost_weight, smoothing
        self.module = Rates(anatomy.layers, anatomy.patches, granularity, prunes=prunes, merges=merges)

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


def search_schedule(
    lessons: TrainingImages,
    folder: str | Path,
    share: float,
    *,
    steps: int = 400,
    batch_rows: int = 64,
    lr: float = 0.1,
    granularity: int = 1,
    prunes: bool = True,
    merges: bool = True,
    cost_weight: float = 100.0,
    seed: int = 0,
    device: str = "cpu",
    report: Report = silent,
) -> RateSchedule:
    """Search one schedule for a classifier.

    Parameters
    ----------
    lessons
        The classifier and labelled images.
    folder
        Keeps checkpoint and log; a killed search goes on.
    share
        Of the model's multiply-adds, that is aimed at.
    steps, batch_rows, lr, seed
        See `mintage.train.Settings`; AdamW, cosine to a tenth, no weight decay.
    granularity, prunes, merges, cost_weight
        See `RateSearch`.
    device
        ``"cpu"``, or anything else for what accelerate finds.
    report
        Called as ``report(stage, done, of)``.

    Raises
    ------
    UserError
        `share` is outside (0, 1), the model is not supported, a setting is out of range, or `folder` holds another run.
    """
    if not 0 < share < 1:
        raise UserError(f"share={share:g} is outside (0, 1); pass the share of the multiply-adds to aim at, e.g. 0.6")
    if granularity < 1 or not cost_weight > 0:
        raise UserError(f"granularity={granularity}, cost_weight={cost_weight:g}: pass at least 1, and more than 0")
    model = on_device(lessons.classifier.model, device).eval()
    asked = [p for p in model.parameters() if p.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        recipe = RateSearch(
            model,
            lessons.batches(batch_rows, cut=0, seed=seed),
            adapter_for(model).anatomy(),
            share=share,
            granularity=granularity,
            prunes=prunes,
            merges=merges,
            cost_weight=cost_weight,
        )
        settings = Settings(steps=steps, lr=lr, final_lr=0.1, clip=0.0, seed=seed, save_every=50, log_every=10)
        stage = f"search for {share:g}"
        train(recipe, folder, settings, device=device, on_step=lambda done, of: report(stage, done, of))
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)
    found = recipe.module.cpu().schedule()
    return replace(found, share=round(found.share_of(recipe.anatomy), 4))


def train_schedules(
    lessons: TrainingImages,
    output: str | Path,
    *,
    folder: str | Path,
    shares: Sequence[float] = (0.6,),
    command: str = "",
    report: Report = silent,
    **settings: Any,
) -> list[RateSchedule]:
    """Search a schedule for each share, and write them as JSON, with their accuracy on the images held out.

    Parameters
    ----------
    lessons
        The classifier and labelled images.
    output
        File to write, see `mintage.reduce.diffrate.read_schedules`.
    folder
        Keeps a folder per share.
    shares
        Of the model's multiply-adds.
    command
        Kept in the file: what repeats the search.
    report
        Called as ``report(stage, done, of)``.
    **settings
        See `search_schedule`.

    Raises
    ------
    UserError
        As `search_schedule`; no shares.
    """
    if not shares:
        raise UserError("no shares to aim at; pass e.g. 0.8,0.65,0.5")
    made = []
    for share in shares:
        found = search_schedule(lessons, Path(folder) / f"{share:g}", share, report=report, **settings)
        notes: dict[str, Any] = {
            "command": command,
            "model": lessons.classifier.name,
            "data": f"{lessons.data}: {len(lessons.labels)} searched on, {len(lessons.held_out)} held out",
            "aim": share,
            "log": (Path(folder) / f"{share:g}" / "log.jsonl").read_text().splitlines()[-1],
        }
        if len(lessons.held_out):
            notes["held out"] = accuracy(DiffRate(schedule=found), lessons.classifier, lessons.held_out, report)
        made.append(replace(found, notes=notes))
    write_schedules(output, made)
    return made
