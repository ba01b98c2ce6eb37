"""The keep contract: a policy decides which cached tokens stay, and which of them attention reads.

Use::

    with policy(model) as session:
        model.generate(ids)              # or any forward with a cache
    session.cache.nbytes()

Laws (run by `mintage.testing` over every policy):

- with room for everything, logits equal the unmodified model's, bit for bit;
- no token sees a later one, and padding changes nothing;
- the budget, in entries and in bytes, holds after every forward;
- what was dropped is not read again;
- rows of a batch equal the same prompts alone; heads may be grouped;
- a setting that is none of its choices, or out of its range, is refused in one line;
- leaving the context restores the model, also after an exception.

A method is a subclass of `Policy`, of `mintage.keep.core.evict.Evictor` (holds fewer entries) or of
`mintage.keep.core.select.Selector` (holds all, reads fewer).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from mintage import keep as front_door
from mintage.keep.core.step import Geometry, Step
from mintage.keep.core.storage import KeptLayer
from mintage.options import check_fields

__all__ = ["Geometry", "KeptLayer", "Policy", "Step"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Policy(ABC):
    """What to keep and what to read. Fields of subclasses are the paper's settings with the paper's defaults."""

    needs_ranks: ClassVar[bool] = False
    """Whether it takes several processes to differ from the full cache; a bench leaves it out unless it is named."""

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, model: Any) -> Any:
        """Attach to a Hugging Face causal LM, for the length of a ``with``.

        Returns
        -------
        mintage.keep.Attachment

        Raises
        ------
        UserError
            The model, or its attention function, cannot be served; or a policy is attached already.
        """
        return front_door.Attachment(self, model)

    @property
    def reads_prompts_whole(self) -> bool:
        """Whether a prompt read in one piece attends to everything, as in the unmodified model."""
        return True

    @property
    def crops_exactly(self) -> bool:
        """Whether a cropped cache is what it was before the tokens cropped, so that drafted tokens may be read."""
        return True

    @property
    def looks_ahead(self) -> bool:
        """Whether a step is to guess the queries of the next layer (`Step.ahead`)."""
        return False

    def check(self, geometry: Geometry) -> None:  # noqa: B027 (optional hook)
        """Raise a `UserError` if a model of this `geometry` cannot be served."""

    def ceiling(self, layer: KeptLayer) -> int | None:
        """Entries that `layer` will not exceed in decoding, so that no more are allocated; None: it grows."""
        return None

    def store(
        self,
        layer: KeptLayer,
        key: Float[Tensor, "batch groups new dim"],
        value: Float[Tensor, "batch groups new width"],
    ) -> None:
        """Take in new tokens' keys (rotated) and values, before attention."""
        layer.append(key=key, value=value)

    def attend(self, layer: KeptLayer, step: Step) -> Float[Tensor, "batch heads queries width"]:
        """Return the attention output; here over all that is stored."""
        layer.reads = layer["key"].numel() + layer["value"].numel()
        if layer.complete:
            return step.dense()
        return step.attend_to_all(layer)

    def settle(self, layer: KeptLayer, step: Step) -> None:  # noqa: B027 (optional hook)
        """Do what is to be done after attention: gather evidence, shrink."""

    def cropped(self, layer: KeptLayer) -> None:  # noqa: B027 (optional hook)
        """Forget evidence of tokens that were just cropped from `layer`."""

    def at(self, entries: int) -> Policy:
        """Return this policy with room for `entries`, held or read in a decoding step; here all are, whatever it says.

        What benches compare policies by.
        """
        return self

    def unbounded(self) -> Policy:
        """Return this policy with room for everything: it must then change nothing."""
        return self

    @classmethod
    @abstractmethod
    def tiny(cls) -> Policy:
        """Make an instance for the laws, whose models have 2 layers, 4 query and 2 key-value heads of dimension 8."""
