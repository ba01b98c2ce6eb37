"""Self-slimmed vision transformers: a small trained module makes K tokens of N, each a weighted mean of all of them.

Zong, Li et al., "Self-slimmed Vision Transformer", ECCV 2022, arXiv 2111.12624. The transformer is cut into stages.
Behind the last block of a stage a *token slimming module* weighs all patch tokens anew into fewer; prefix tokens pass
by. Nothing is sorted and nothing gathered, and no shape depends on the image: one product of matrices.

The modules are trained together with the transformer (``mintage train sit-slim``); `SelfSlimmed` puts both in, and
takes both out again. K is in a module's weights: images of another size keep as many tokens, not the same share.

Not here: training and the reverse modules that it needs (`mintage.reduce.training.sit_slim`).

The file is long because sizes, modules and method are one thing here: what is trained decides what is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mintage.errors import UserError
from mintage.options import option
from mintage.reduce.contract import Anatomy, Evidence, Reducer, TokenState
from mintage.reduce.core.trained import TrainedModules, authors_weights

__all__ = ["SelfSlimmed", "Slimming", "TokenSlimming", "stage_counts"]


class TokenSlimming(nn.Module):
    """Make `num_tokens_out` tokens of any number of them (section 3.1).

    ``A = softmax over the tokens of scale * W2 GELU(W1 LN(X))``, and the result is ``A X``: what is summed is not
    normalised.

    Parameters
    ----------
    dim
        Width of a token.
    num_tokens_out
        K.
    hidden_ratio
        Width between the two projections, over `dim`.
    init_std
        Of the projections' first weights. With the paper's 0.02 every new token starts as the mean of all; short
        trainings do better from wider ones.
    """

    def __init__(self, dim: int, num_tokens_out: int, hidden_ratio: float = 0.5, *, init_std: float = 0.02) -> None:
        super().__init__()
        hidden = max(int(dim * hidden_ratio), 1)
        self.norm = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, num_tokens_out)
        self.scale = nn.Parameter(torch.ones(()))
        for linear in (self.fc1, self.fc2):
            nn.init.trunc_normal_(linear.weight, std=init_std)
            nn.init.zeros_(linear.bias)

    def aggregation(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch kept tokens"]:
        """Return A: what share every token has in every new one; its rows sum to 1, its columns to anything."""
        logits = self.fc2(functional.gelu(self.fc1(self.norm(x))))
        return (self.scale * logits).float().softmax(1).transpose(1, 2)  # float32 also under autocast

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch kept dim"]:
        """Return ``A X``."""
        return self.aggregation(x).to(x.dtype) @ x


def stage_counts(patches: int, stages: int, ratio: float = 0.5) -> tuple[int, ...]:
    """Tokens behind every stage but the last: ``int(patches * ratio ** i)``, e.g. 196 to 98, 49, 24.

    Raises
    ------
    UserError
        `ratio` is outside (0, 1), or leaves no token.
    """
    if not 0 < ratio < 1:
        raise UserError(f"ratio={ratio:g} is outside (0, 1); pass the share that every stage keeps, e.g. 0.5")
    counts = tuple(int(patches * ratio**i) for i in range(1, stages))
    if counts and counts[-1] < 1:
        raise UserError(
            f"ratio={ratio:g} leaves none of {patches} patches after {stages - 1} stages; pass a larger one"
        )
    return counts


@dataclass(eq=False)
class Slimming(TrainedModules):
    """The slimming modules of one transformer, and the weights of the transformer that were trained with them.

    Parameters
    ----------
    dim
        Width of the transformer.
    stages
        Blocks of each stage, e.g. ``(1, 1, 1, 11)``; the released models of 14 to 24 blocks have up to (10, 4, 7, 3).
        Empty slims nothing.
    counts
        Patch tokens behind every stage but the last.
    hidden_ratio, init_std
        See `TokenSlimming`.
    backbone, imprint, notes, seed
        See `TrainedModules`.

    Raises
    ------
    UserError
        Stages without blocks, not one count per slimming, or counts that grow or reach zero.
    """

    method: ClassVar[str] = "sit-slim"
    kept: ClassVar[tuple[str, ...]] = ("dim", "stages", "counts", "hidden_ratio")

    dim: int
    stages: Sequence[int]
    counts: Sequence[int]
    _: KW_ONLY
    hidden_ratio: float = 0.5
    init_std: float = 0.02

    def __post_init__(self) -> None:
        self.stages, self.counts = tuple(self.stages), tuple(self.counts)
        times = max(len(self.stages) - 1, 0)
        if any(blocks < 1 for blocks in self.stages):
            raise UserError(f"stages={_listed(self.stages)}: every stage needs a block")
        if len(self.counts) != times:
            raise UserError(f"{len(self.stages)} stages slim {times} times, not {len(self.counts)}")
        if any(after >= before for before, after in pairwise(self.counts)) or min(self.counts, default=1) < 1:
            raise UserError(f"counts={_listed(self.counts)}: every stage must keep fewer, at least one")
        super().__post_init__()

    def build(self) -> Iterator[tuple[int, TokenSlimming]]:
        """Make untrained modules."""
        for layer, left in self.left_behind.items():
            yield layer, TokenSlimming(self.dim, left, self.hidden_ratio, init_std=self.init_std)

    @property
    def left_behind(self) -> dict[int, int]:
        """Which blocks are followed by a slimming, and how many patch tokens it leaves."""
        last = [blocks - 1 for blocks in accumulate(self.stages)][:-1]
        return dict(zip(last, self.counts, strict=True))

    @classmethod
    def new(
        cls, anatomy: Anatomy, stages: Sequence[int], ratio: float = 0.5, *, counts: Sequence[int] = (), **given: Any
    ) -> Slimming:
        """Make untrained modules for a transformer of these sizes.

        Parameters
        ----------
        anatomy
            Its sizes.
        stages, **given
            See `Slimming`.
        ratio
            Share of the patch tokens that every stage keeps.
        counts
            Numbers in the place of `ratio`.
        """
        made = cls(anatomy.dim, stages, counts or stage_counts(anatomy.patches, len(stages), ratio), **given)
        SelfSlimmed(weights=made).kept(anatomy)
        return made

    @classmethod
    def from_official(cls, given: Mapping[str, Any]) -> Slimming:
        """Read weights of the authors' repository (Sense-X/SiT): their names become these modules'.

        Its reverse modules say where a stage ends and are left out, as is the head for token labelling. The
        transformer's own weights keep their names, which are timm's; the released ones are of LV-ViT, which has no
        adapter, so they serve as modules by themselves, or on a transformer trained with the authors' code.

        Parameters
        ----------
        given
            What was saved there: weights by name, or a checkpoint that holds them as ``"model"``.

        Raises
        ------
        UserError
            Slimming or reverse modules are missing, or do not belong together.
        """
        held = authors_weights(given)
        parts = {"norm": "weight.0", "fc1": "weight.1", "fc2": "weight.3"}
        times = len({name.split(".")[1] for name in held if name.startswith("tsm.")})
        depth = len({name.split(".")[1] for name in held if name.startswith("blocks.")})
        try:
            counts = tuple(held[f"tsm.{i}.weight.3.weight"].shape[0] for i in range(times))
            width, dim = held["tsm.0.weight.1.weight"].shape
            first = next(i for i in range(depth) if f"rtsm.{i}.mlp1.fc1.weight" in held)
            left = [held[f"rtsm.{i}.mlp1.fc1.weight"].shape[1] for i in range(first, depth)]
            ends = [first + left.index(count) for count in counts]
            stages = [after - before for before, after in pairwise([-1, *ends, depth - 1])]
            made = cls(dim, stages, counts, hidden_ratio=width / dim)
            for module, i in zip(made.modules.values(), range(times), strict=True):
                own = {f"{a}.{k}": held[f"tsm.{i}.{b}.{k}"] for a, b in parts.items() for k in ("weight", "bias")}
                module.load_state_dict(own | {"scale": held[f"tsm.{i}.scale"].reshape(())})
        except (KeyError, ValueError, RuntimeError, StopIteration) as error:
            said = (str(error).splitlines() or ["no reverse modules"])[0]
            raise UserError(f"no weights of Sense-X/SiT ({said}); expected tsm.*, rtsm.*") from None
        made.backbone = {n: t for n, t in held.items() if not n.startswith(("tsm.", "rtsm.", "aux_head."))}
        return made


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


@dataclass(frozen=True, kw_only=True, eq=False)
class SelfSlimmed(Reducer):
    """A transformer that slims itself (SiT); stages and numbers of tokens come with the weights."""

    hook: ClassVar[Literal["attention", "block"]] = "block"
    mixes: ClassVar[bool] = True

    weights: str | Slimming = option(
        "vit-tiny-cifar10", "A file of mintage train sit-slim, or the name of a model that mintage ships one for."
    )
    _held: dict[str, Slimming] = field(default_factory=dict, init=False, repr=False)

    @property
    def slimming(self) -> Slimming:
        """The modules, read when first asked for."""
        if isinstance(self.weights, Slimming):
            return self.weights
        if "slimming" not in self._held:
            self._held["slimming"] = Slimming.load(self.weights)
        return self._held["slimming"]

    def fitted(self, model: nn.Module, anatomy: Anatomy) -> SelfSlimmed:
        """Refuse a model that the modules were not trained for."""
        held = self.slimming
        if held.imprint is not None:
            held.imprint.check(model, "slimming modules")
        if held.stages and held.dim != anatomy.dim:
            raise UserError(
                f"slimming modules for width {held.dim}, but this {type(model).__name__} is {anatomy.dim} wide; "
                f"train them with {held.again()}"
            )
        return self

    def kept(self, anatomy: Anatomy) -> tuple[int, ...]:
        """Return the patch tokens behind every block; those that a stage begins with stay to its end."""
        held = self.slimming
        if held.stages and sum(held.stages) != anatomy.layers:
            raise UserError(
                f"stages {_listed(held.stages)} have {sum(held.stages)} blocks; this model has "
                f"{anatomy.layers}; train them with {held.again()}"
            )
        if held.counts and held.counts[0] >= anatomy.patches:
            raise UserError(
                f"slimming to {held.counts[0]} tokens needs more than the {anatomy.patches} patches of this image; "
                "pass larger images"
            )
        behind, left, kept = held.left_behind, anatomy.patches, []
        for layer in range(anatomy.layers):
            left = behind.get(layer, left)
            kept.append(left)
        return tuple(kept)

    def reduce(self, state: TokenState, evidence: Evidence, keep: int) -> TokenState:
        """Weigh the patch tokens anew (section 3.1)."""
        module: Any = self.slimming.modules[str(state.layer)]
        return state.mix(module.aggregation(state.x[:, state.prefix :]))

    def modules(self) -> nn.ModuleDict:
        """Return the slimming modules."""
        return self.slimming.modules

    def backbone(self) -> Mapping[str, Tensor]:
        """Return the transformer's weights that were trained with them."""
        return self.slimming.backbone

    @property
    def fixed(self) -> bool:
        """Trained for its numbers of tokens."""
        return True

    def unreduced(self) -> SelfSlimmed:
        """Return a transformer in one stage, with its own weights."""
        return replace(self, weights=Slimming(0, (), ()))

    @classmethod
    def tiny(cls) -> SelfSlimmed:
        """Return one with untrained modules behind the first and the third block."""
        return cls(weights=Slimming(16, (1, 2, 1), (8, 3)))
