"""Last successor: remember what followed each token last time, and draft that chain.

Not here: how successors of tokens that a request has not seen are learnt (`my_tokens.training`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from mintage.draft import Context, Drafter, TokenTree, Topology
from mintage.draft.contract import Scorer
from mintage.errors import UserError
from mintage.options import option
from mintage.weights import Artefact

__all__ = ["LastSuccessor", "Successors"]

FORM = "my-tokens successors, version 1"
AGAIN = "mintage train successors --out successors.safetensors"


@dataclass(frozen=True, eq=False)
class Successors:
    """What the training makes: the likeliest successor of every token."""

    tokens: Int[Tensor, " vocabulary"]

    def save(self, path: Path, notes: Mapping[str, str], /) -> None:
        """Write the file, whole or not at all."""
        sizes = {"vocabulary": len(self.tokens)}
        Artefact({"successors": self.tokens}, sizes, notes=notes).save(path, FORM)

    @classmethod
    def load(cls, path: str | Path) -> Successors:
        """Read what `save` wrote."""
        return cls(Artefact.load(path, FORM, AGAIN).tensors["successors"])


@dataclass(frozen=True, kw_only=True, eq=False)
class LastSuccessor(Drafter):
    """Drafts the chain of last successors. One occurrence decides; there are no statistics."""

    length: int = option(4, "Longest chain to draft.", least=1)
    successors: str | None = option(None, "File for tokens without a last time; made by mintage train successors.")

    @cached_property
    def learnt(self) -> list[int]:
        """Successors of all tokens; none without a file."""
        return [] if self.successors is None else Successors.load(self.successors).tokens.tolist()

    def begin(self, target: Scorer, context: Context) -> None:
        """Refuse a file for another vocabulary."""
        if self.learnt and len(self.learnt) != target.vocabulary:
            raise UserError(
                f"{self.successors} has successors of {len(self.learnt)} tokens, this model has {target.vocabulary}; "
                f"make them with: {AGAIN} --model MODEL"
            )

    def propose(self, context: Context) -> TokenTree:
        """Follow the chain from the last token."""
        after = dict(pairwise(context.ids.tolist()))  # of equal tokens, the last one stays
        chain = [int(context.root)]
        while len(chain) <= self.length and (chain[-1] in after or self.learnt):
            chain.append(after[chain[-1]] if chain[-1] in after else self.learnt[chain[-1]])
        depth = torch.arange(len(chain), device=context.ids.device)
        return TokenTree(
            tokens=torch.tensor(chain, device=context.ids.device),
            topology=Topology.chain(len(chain) - 1),
            confidence=0.4**depth,  # a guess; it lets `union` share its node budget with other drafters
        )

    @classmethod
    def tiny(cls) -> LastSuccessor:
        """Make one for the laws."""
        return cls()
