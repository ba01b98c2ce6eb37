"""A drafter of one's own: remember what followed each token last time, and draft that chain.

Run ``python examples/my_drafter.py``; its tests are ``tests/test_examples.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from mintage.draft import Context, Drafter, TokenTree, Topology, generate
from mintage.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class LastSuccessor(Drafter):
    """Drafts the chain of last successors. Not here: statistics; one occurrence decides.

    Parameters
    ----------
    length
        Longest chain to draft.
    """

    length: int = 4

    def __post_init__(self) -> None:
        if self.length < 1:
            raise UserError(f"length={self.length}; draft at least 1 token")

    def propose(self, context: Context) -> TokenTree:
        after = dict(pairwise(context.ids.tolist()))  # of equal tokens, the last one stays
        chain = [int(context.root)]
        while len(chain) <= self.length and chain[-1] in after:
            chain.append(after[chain[-1]])
        depth = torch.arange(len(chain), device=context.ids.device)
        return TokenTree(
            tokens=torch.tensor(chain, device=context.ids.device),
            topology=Topology.chain(len(chain) - 1),
            confidence=0.4**depth,  # a guess; it lets `union` share its node budget with other drafters
        )

    @classmethod
    def tiny(cls) -> LastSuccessor:
        return cls()


if __name__ == "__main__":
    from mintage.models import load_causal_lm

    lm = load_causal_lm()
    ids = lm.encode("Repeat after me, three times: the tide is high and the tide is low.")
    out = generate(lm.model, ids, LastSuccessor(), max_new_tokens=64)
    print(lm.tokenizer.decode(out.sequences[0, ids.shape[1] :], skip_special_tokens=True))
    print(f"{out.stats.tokens_per_forward:.2f} tokens per forward")
