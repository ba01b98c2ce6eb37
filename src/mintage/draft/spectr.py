"""SpecTr: draft K independent continuations, and choose among them by K-SEQ, a near-optimal transport.

Sun, Suresh, Ro, Beirami, Jain and Yu, "SpecTr: Fast Speculative Decoding via Optimal Transport", NeurIPS 2023, arXiv
2310.15141. Emitting a token with the target's distribution p that lies, as often as possible, among K tokens drawn from
the draft distribution q is an optimal-transport problem. K-SEQ (`mintage.draft.core.kseq`) solves it in almost linear
time, and accepts at least 1 - (1 - 1/K)^K > 1 - 1/e as often as the optimal plan.

Beyond the paper: equal prefixes of the drafts share nodes of one tree, so neither model reads them twice (equal drafts
stay candidates of their own, K counts sequences); and at temperature 0, where equal drafts are wasted, the drafts are
the K likeliest first tokens with their greedy continuations. Not here: the linear program of the optimal plan (it has
V^K rows; the tests solve it for small V), and drafts drawn without replacement, for which K-SEQ is invalid
(`mintage.draft.rsd`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.draft.contract import Context
from mintage.draft.core.kseq import first_accepted, kseq_rho, normalised, residual
from mintage.draft.core.model_drafter import ModelDrafter, tiny_draft_model
from mintage.draft.core.tree import TokenTree, Topology, rectangle
from mintage.draft.core.verify import TargetProbs, Verdict, Verifier
from mintage.draft.core.warp import draw
from mintage.options import option

__all__ = ["KSEQ", "SpecTr"]


@dataclass(frozen=True, kw_only=True)
class KSEQ(Verifier):
    """Temperature > 0, independent drafts: K-SEQ at every node from the root down.

    The drafts that share the accepted prefix are independent draws given that prefix, so they are the candidates
    after it. Their number shrinks on the way down; rho and the residual are those of the current number.

    Parameters
    ----------
    tolerance
        Precision of rho; the output distribution is exact at any.
    """

    tolerance: float = 1e-9

    def verify(self, tree: TokenTree, target: TargetProbs, generator: torch.Generator | None) -> Verdict:
        """Descend while a draft's token is accepted; the residual, or the target after a whole draft, gives the last.

        Raises
        ------
        ValueError
            The tree does not say which sequences were drafted.
        """
        if tree.drafts is None and len(tree) > 1:
            raise ValueError("the tree does not keep its drafts as sequences; K-SEQ needs TokenTree.drafts")
        tokens = tree.tokens.tolist()
        path, surviving = [0], list(tree.drafts or ())
        while True:
            depth = len(path)
            probs = target.probabilities(path[-1])
            surviving = [draft for draft in surviving if len(draft) >= depth]
            if not surviving:
                return Verdict(path, draw(probs, generator))
            p, q = normalised(probs, tree.distribution(path[-1]))
            candidates = [tokens[draft[depth - 1]] for draft in surviving]
            uniforms = torch.rand(len(candidates), dtype=torch.float64, device=probs.device, generator=generator)
            rate = kseq_rho(p, q, len(candidates), self.tolerance)
            index = first_accepted(p, q, candidates, uniforms, rate)
            if index < 0:
                return Verdict(path, draw(residual(p, q, rate), generator))
            token = candidates[index]
            surviving = [draft for draft, other in zip(surviving, candidates, strict=True) if other == token]
            path = [0, *surviving[0][:depth]]


@dataclass(frozen=True, kw_only=True, eq=False)
class SpecTr(ModelDrafter):
    """Drafter of K independent continuations.

    One forward of the draft model per depth scores each distinct prefix once. At temperature 0 the drafts are the
    likeliest first tokens, each continued greedily.

    Parameters
    ----------
    draft_model
        A causal LM with the target's vocabulary, on the target's device.
    num_drafts
        K, the number of sequences.
    draft_len
        L, their length.
    tolerance
        Precision of K-SEQ's rho; the output distribution is exact at any.

    Raises
    ------
    UserError
        A value is out of range.

    Examples
    --------
    >>> drafter = SpecTr(draft_model=small, num_drafts=4, draft_len=4)  # doctest: +SKIP
    >>> generate(model, ids, drafter, temperature=1.0).stats.tokens_per_forward  # doctest: +SKIP
    """

    num_drafts: int = option(8, "K, the number of sequences.", least=1)
    draft_len: int = option(8, "L, their length.", least=1)
    tolerance: float = option(1e-9, "Precision of K-SEQ's rho.", above=0)

    @property
    def verifier(self) -> KSEQ:  # type: ignore[override]  # the base's is a class attribute
        """K-SEQ, to this drafter's tolerance."""
        return KSEQ(tolerance=self.tolerance)

    @classmethod
    def at_nodes(cls, nodes: int) -> dict[str, str]:
        """Fill a rectangle of that many nodes, if all drafts differ."""
        count, length = rectangle(nodes)
        return {"SpecTr": f"num_drafts={count},draft_len={length}"}

    def propose(self, context: Context) -> TokenTree:
        """Draw the sequences level by level, equal prefixes once.

        A node's confidence is the draft model's probability of the path to it.
        """
        session = self.session(context)
        greedy, device = context.warp.greedy, context.ids.device
        tokens, parents, confidence = [int(context.root)], [-1], [1.0]
        distributions = [context.warp.probabilities(session.begin_round())[None]]
        count = min(self.num_drafts, int((distributions[0] > 0).sum())) if greedy else self.num_drafts
        drafts: list[list[int]] = [[] for _ in range(count)]
        ends, level = [0] * count, [0]  # last node of every sequence; the nodes of the last level
        node_at: dict[tuple[int, int], int] = {}
        length = min(self.draft_len, context.room)
        for depth in range(1, length + 1):
            probs, row = distributions[-1], {node: row for row, node in enumerate(level)}
            rows = torch.tensor([row[node] for node in ends], device=device)
            if not greedy:
                drawn = _draw_each(probs, rows, context.generator)
            elif depth == 1:
                drawn = probs[0].topk(count).indices
            else:
                drawn = probs.argmax(-1)[rows]
            level = []
            for i, (token, chance) in enumerate(zip(drawn.tolist(), probs[rows, drawn].tolist(), strict=True)):
                above = ends[i]
                if (above, token) not in node_at:
                    node_at[above, token] = len(tokens)
                    level.append(len(tokens))
                    tokens.append(token)
                    parents.append(above)
                    confidence.append(confidence[above] * chance)
                ends[i] = node_at[above, token]
                drafts[i].append(ends[i])
            if depth < length:
                new = slice(level[0], level[-1] + 1)
                logits = session.extend(level, torch.tensor(tokens[new], device=device), parents[new])
                distributions.append(context.warp.probabilities(logits))
        inner = sum(map(len, distributions))  # nodes are numbered as they were scored, so node n was scored n-th
        return TokenTree(
            tokens=torch.tensor(tokens, device=device),
            topology=Topology(parents),
            confidence=torch.tensor(confidence, device=device),
            distributions=None if greedy else torch.cat(distributions),
            distribution_of=None if greedy else tuple(n if n < inner else -1 for n in range(len(tokens))),
            drafts=tuple(map(tuple, drafts)),
        )

    @classmethod
    def tiny(cls) -> SpecTr:
        """Make an instance for the laws, with a draft model that disagrees with their targets."""
        return cls(draft_model=tiny_draft_model(), num_drafts=3, draft_len=3, tolerance=1e-3)  # fewer sweeps


def _draw_each(
    distributions: Float[Tensor, "distributions vocabulary"],
    rows: Int[Tensor, " sequences"],
    generator: torch.Generator | None,
) -> Int[Tensor, " sequences"]:
    """Draw one token per sequence from its row of `distributions`, independently, as `core.warp.draw` does for one."""
    mass = distributions.double().cumsum(-1)[rows]
    total = mass[:, -1:].contiguous()
    uniform = torch.rand(len(rows), 1, dtype=torch.float64, device=distributions.device, generator=generator)
    token = torch.searchsorted(mass, uniform * total, right=True)
    return torch.minimum(token, torch.searchsorted(mass, total)).squeeze(-1)
