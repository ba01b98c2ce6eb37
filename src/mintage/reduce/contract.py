"""The reduce contract: a method decides which tokens go where; the plumbing does the rest.

Use::

    with reducer(model) as session:
        model(pixel_values)
    session.tokens            # how many went into each layer
    session.unmerge(y)        # back to one row per input token

Laws (run by `mintage.testing` over every method and every supported model):

- with everything kept, the output equals the unmodified model's;
- merges conserve the sum of sizes, and the source map is a partition; drops only leave columns empty;
- class, distillation and register tokens are never touched;
- as many tokens stay as `Reducer.kept` says, for every image of the batch;
- an image's result does not depend on the others in its batch;
- under autocast and in training, gradients reach the weights;
- leaving the context restores the model, also after an exception.

A method is a frozen dataclass that extends `Reducer`. Most extend `core.scheduled.Scheduled`, whose strength
is a `Schedule`, and have one function, `Reducer.reduce`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from mintage import reduce as front_door
from mintage.errors import UserError
from mintage.options import check_fields
from mintage.reduce.core.schedule import Anatomy
from mintage.reduce.core.state import Evidence, TokenState

__all__ = ["Anatomy", "Evidence", "Reducer", "TokenState"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reducer(ABC):
    """Which tokens stay, merge or go. Fields of subclasses are the paper's settings with the paper's defaults."""

    hook: ClassVar[Literal["attention", "block"]] = "attention"
    """Where `reduce` acts: between attention and MLP, so that the MLP is spared too, or behind the block."""

    conserves: ClassVar[bool] = False
    """Whether the sum of sizes is conserved, i.e. the method only merges."""

    mixes: ClassVar[bool] = False
    """Whether a token is a weighted sum of all before it: rows of the source map then sum to 1, not its columns."""

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, model: nn.Module, *, trace: bool = False, dense: bool | None = None) -> Any:
        """Attach to a vision transformer of transformers or timm, for the length of a ``with``.

        Parameters
        ----------
        model
            The model, or one that holds it (a classifier, CLIP).
        trace
            Keep the source map, which `mintage.reduce.Attachment.unmerge` and pictures need.
        dense
            Whether the transformer returns one row per patch all the same: of a merged patch the row of its token, of
            a dropped one the last that it had. None: where something in `model` reads its patches one by one, i.e. a
            backbone, a decoder or a language model of transformers; timm without pooling.

        Returns
        -------
        mintage.reduce.Attachment

        Raises
        ------
        UserError
            No supported transformer in `model`, or a reducer is attached already.
        """
        return front_door.Attachment(self, model, trace=trace, dense=dense)

    @abstractmethod
    def kept(self, anatomy: Anatomy) -> tuple[int, ...]:
        """Return how many patch tokens stay after each layer of such a model.

        Raises
        ------
        UserError
            The method cannot serve it.
        """

    @abstractmethod
    def reduce(self, state: TokenState, evidence: Evidence, keep: int) -> TokenState:
        """Return a state of `keep` patches, fewer than it has; called where `kept` says that some must go."""

    def wants_attention(self, layer: int) -> bool:
        """Whether `reduce` reads all attention probabilities of `layer`: they are then computed once, not twice."""
        return False

    @property
    def proportional(self) -> bool:
        """Whether attention counts a token by its size (ToMe, section 3: adds ``log size`` to the scores)."""
        return False

    def attend(self, evidence: Evidence, layer: int) -> Float[Tensor, "batch heads tokens head_dim"] | None:
        """Return the attention output in the place of the model's own; None leaves it to the model."""
        return None

    @property
    def attends(self) -> bool:
        """Whether `attend` ever returns something."""
        return False

    @property
    def masks(self) -> bool:
        """Whether `reduce` is called in every layer and keeps all tokens: masks stand for removal, as in training."""
        return False

    @property
    def fixed(self) -> bool:
        """Whether the method was trained for one setting, so that `at` cannot change its strength."""
        return False

    def fitted(self, model: nn.Module, anatomy: Anatomy) -> Reducer:
        """Return this method as it serves this model; an attachment asks before anything else.

        Raises
        ------
        UserError
            It was trained for another one.
        """
        return self

    def modules(self) -> nn.ModuleDict | None:
        """Return what the method has trained, to be moved along with the model; None for most."""
        return None

    def backbone(self) -> Mapping[str, Tensor]:
        """Return weights that replace the model's own, by name, while it is attached: those tuned along with it."""
        return {}

    def at(self, share: float, anatomy: Anatomy) -> Reducer:
        """Return this method at about `share` of the model's multiply-adds: what benches compare methods by.

        Raises
        ------
        UserError
            The method has no strength to set.
        """
        raise UserError(f"{type(self).__name__} cannot be set to a share of the MACs")

    def unreduced(self) -> Reducer:
        """Return this method with everything kept: it must then change nothing."""
        raise UserError(f"{type(self).__name__} has no setting that keeps everything")

    @classmethod
    @abstractmethod
    def tiny(cls) -> Any:
        """Return a small instance for the laws, whose models have 4 layers, 2 heads of dimension 8, and 16 patches."""
