"""The draft contract: a drafter guesses a tree of tokens, a verifier keeps the part that the target would have said.

Laws (run by `mintage.testing` over every drafter):

- greedy output equals plain greedy decoding, token for token;
- sampled output follows the target's distribution;
- every tree is well formed: root first, parents before children, within the budget, tokens in the vocabulary;
- a request leaves no trace in another one, except what the paper keeps on purpose;
- rows of a batch equal the same sequences decoded alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from mintage.draft.core.tree import TokenTree
from mintage.draft.core.verify import SampleAndDescend, Verifier
from mintage.draft.core.warp import Warp
from mintage.options import check_fields

__all__ = ["Context", "Drafter", "Scorer"]


@runtime_checkable
class Scorer(Protocol):
    """What a drafter may ask of the target that it drafts for (`mintage.draft.core.target.Target`)."""

    @property
    def model(self) -> Any:
        """The Hugging Face causal LM."""
        ...

    @property
    def vocabulary(self) -> int:
        """Number of logits per position."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its input must be."""
        ...

    def beside(self, model: Any) -> Any:
        """Wrap a draft model like the target; it scores trees of its own."""
        ...


@dataclass
class Context:
    """One sequence of the batch, as a drafter sees it.

    Parameters
    ----------
    ids
        All committed tokens, prompt included; the last one is the root of the next tree.
    prompt_length
        How many of them are the prompt.
    room
        Depth of tree that can still be used: new tokens still wanted, minus one.
    warp
        How the target's tokens are chosen; a sampling drafter warps its own logits with it.
    generator
        Source of all randomness of this request.
    memory
        What drafters remember during this request, keyed by drafter.
    draft_forwards, draft_tokens
        Forwards of a draft model so far, and tokens read by them; drafters with a model add to both.
    """

    ids: Int[Tensor, " length"]
    prompt_length: int
    room: int
    warp: Warp
    generator: torch.Generator | None = None
    memory: dict[Drafter, Any] = field(default_factory=dict)
    draft_forwards: int = 0
    draft_tokens: int = 0

    @property
    def root(self) -> Int[Tensor, ""]:
        """The last committed token."""
        return self.ids[-1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Drafter(ABC):
    """Guesses ahead. Fields of subclasses are the paper's hyper-parameters with the paper's defaults."""

    def __post_init__(self) -> None:
        check_fields(self)

    verifier: ClassVar[Verifier] = SampleAndDescend()
    """Rule for temperature > 0; at temperature 0 every tree is verified by `GreedyMatch`."""

    @property
    def reads_prompt(self) -> bool:
        """Whether `observe` is to be shown the prompt's logits too, as chains whose nodes are all accepted."""
        return False

    @classmethod
    def at_nodes(cls, nodes: int) -> dict[str, str]:
        """Return the settings that draft this many nodes below the root, as a spec writes them.

        By the line that they make over several numbers of nodes; "" is called like the method. Nothing where no shape
        follows a number of nodes.
        """
        return {"": f"budget={nodes}"} if "budget" in {f.name for f in fields(cls)} else {}

    def check(self, target: Scorer) -> None:  # noqa: B027 (optional hook)
        """Refuse a target that this drafter was not trained for.

        Raises
        ------
        UserError
            It is such a target.
        """

    def begin(self, target: Scorer, context: Context) -> None:  # noqa: B027 (optional hook)
        """Get ready for a request on `target`: check the vocabulary, allocate, fill ``context.memory[self]``."""

    @abstractmethod
    def propose(self, context: Context) -> TokenTree:
        """Return a tree whose node 0 is ``context.root``; a tree of the root alone makes a plain decoding step."""

    def observe(  # noqa: B027 (optional hook)
        self, context: Context, tree: TokenTree, logits: Float[Tensor, "nodes vocabulary"], path: Sequence[int]
    ) -> None:
        """Learn from a round: the target's raw logits at every node, and the accepted nodes (root included)."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Drafter:
        """Make a small offline instance for the laws; its targets have `mintage.models.TINY_VOCABULARY` tokens."""

    def __call__(
        self,
        model: Any,
        input_ids: Int[Tensor, "batch length"],
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """Serve as ``model.generate(input_ids, custom_generate=drafter)``.

        transformers hands a function neither the `streamer`, which is taken from its call, nor the tokenizer of
        `stop_strings`: put ``StopStringCriteria(tokenizer, strings)`` among the `stopping_criteria`.
        """
        from mintage.draft import generate_inside_transformers

        return generate_inside_transformers(
            self, model, input_ids, logits_processor, stopping_criteria, generation_config, streamer, model_kwargs
        )
