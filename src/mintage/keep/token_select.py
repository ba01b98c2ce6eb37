"""TokenSelect: every step reads the first tokens, the newest, and those that the heads of a layer vote for together.

Keys are held without rotation. A step scores all of them against the mean query of its chunk, lets each head vote with
its softmax, and attends to the chosen tokens as if they stood next to each other: no rotary distance ever exceeds their
number, so a text may be longer than the model was trained on. Consecutive queries are alike, so that most steps reuse
the choice of an earlier one (the Selection Cache).

Storage has pages of one token, as in the paper: rows are looked up in one table by token, never copied whole.

Not here: tensor parallelism, where the votes of all ranks are added. Over 200 lines, because reading, choosing and
using a choice again share the same state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from mintage.errors import UserError
from mintage.keep.contract import Geometry, Policy, Step
from mintage.keep.core.step import Rotary
from mintage.keep.core.storage import KeptCache, KeptLayer, gather_rows
from mintage.keep.core.votes import Vote, check_pool, mean_query, pooled, scores_of, select_tokens, votes
from mintage.options import option

__all__ = ["TokenSelect", "hit_rate", "mean_query", "select_tokens", "votes"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenSelect(Policy):
    """Dynamic token-level selection by soft head voting (Wu et al., EMNLP 2025).

    A text no longer than `n_init`, `top_k` and `n_local` together is read in full, by the model's own attention.
    """

    n_init: int = option(128, "First tokens, which every step reads.", least=0)
    n_local: int = option(512, "Newest tokens, which every step reads.", least=1)
    top_k: int = option(2048, "Tokens voted for that a step reads.", least=1)
    chunk: int = option(
        512,
        "Queries of a prompt that choose together, at most n_local. The choice depends on all of them, later ones "
        "included, though none reads a later token; 1 lets each choose alone.",
        least=1,
    )
    theta: float | int = option(
        0.9,
        "Least cosine of a step's query to the one that chose, for the choice to serve again; above 1: never.",
        least=-1,
    )
    vote: Vote = option("soft", "How the heads decide: see `votes`.")
    pool: int = option(0, "Width of a max-pooling of the votes along the text, odd; 0: none.", least=0)
    rotate_query: bool = option(True, "Turn queries to the distance of the far tokens before they are averaged.")
    close_gap: bool = option(
        True,
        "Read also the tokens that left the newest since the choice was made, in place of the choice's weakest, and "
        "choose again after n_local / 2 steps; in the published rule nobody sees them until the next choice.",
    )
    reassign: bool = option(
        True,
        "Read the tokens as if they stood side by side, as published, so that a text may be longer than the model was "
        "trained on; False keeps their true distances.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk > self.n_local:
            raise UserError(
                f"chunk={self.chunk} is above n_local={self.n_local}, where a chunk reads itself; pass less"
            )
        check_pool(self.pool)

    @property
    def reads_prompts_whole(self) -> bool:
        """Prompts are read sparsely, too."""
        return False

    def check(self, geometry: Geometry) -> None:
        """Refuse models without rotary positions that can be reassigned."""
        geometry.need_rotary("token-select")

    @property
    def room(self) -> int:
        """Tokens that a step reads at most."""
        return self.n_init + self.top_k + self.n_local

    def at(self, entries: int) -> TokenSelect:
        """Read `entries` tokens, divided as the paper divides its 2688."""
        n_init, n_local = entries // 21, max(entries * 4 // 21, 1)
        chunk = min(self.chunk, n_local)
        return replace(self, n_init=n_init, n_local=n_local, top_k=max(entries - n_init - n_local, 1), chunk=chunk)

    def unbounded(self) -> Policy:
        """Read every token."""
        return replace(self, top_k=10**9)

    @classmethod
    def tiny(cls) -> TokenSelect:
        """Read 13 tokens; each query of a prompt chooses alone, so that no logit depends on a later token."""
        return cls(n_init=2, n_local=5, top_k=6, chunk=1)

    # -- keys without rotation --

    def store(
        self,
        layer: KeptLayer,
        key: Float[Tensor, "batch groups new dim"],
        value: Float[Tensor, "batch groups new width"],
    ) -> None:
        """Take in new tokens; once not all of them can be read, keys are held without rotation."""
        if "plain" in layer.state:
            layer.append(key=_turn_back(layer, key, layer.entries), value=value)
            return
        layer.append(key=key, value=value)
        if layer.entries > self.room:
            layer["key"][:] = _turn_back(layer, layer["key"], 0)
            layer.state["plain"] = torch.ones(key.shape[0], dtype=torch.bool, device=key.device)

    def cropped(self, layer: KeptLayer) -> None:
        """Forget the last choice: tokens that it was made beside are gone."""
        for name in ("query", "choice", "since"):
            layer.state.pop(name, None)

    # -- read --

    def attend(self, layer: KeptLayer, step: Step) -> Float[Tensor, "batch heads queries width"]:
        """Attend chunk by chunk, each to its own choice of tokens."""
        if "plain" not in layer.state:
            layer.reads = layer["key"].numel() + layer["value"].numel()
            return step.dense()
        layer.reads = 0
        # Cut from the right, so that rows padded on the left are cut as they would be alone.
        cuts = [*range(step.queries, 0, -self.chunk), 0][::-1]
        return torch.cat([self._attend(layer, step, *cut) for cut in pairwise(cuts)], 2)

    def _attend(self, layer: KeptLayer, step: Step, begin: int, end: int) -> Tensor:
        """Steps 1 to 6 for the queries from `begin` to `end`."""
        rotary = step.geometry.need_rotary("token-select")
        query, device = step.query[:, :, begin:end], step.query.device
        batch, _, queries, dim = query.shape
        groups = layer["key"].shape[1]
        length = layer.entries - step.queries + end
        start = self._start(layer, step, begin, end)  # first token of each row, [B]
        number = torch.clamp(length - start, max=self.room)  # tokens that each row reads
        most = int(number.max())
        tokens = torch.arange(length - most, length, device=device).expand(batch, -1)
        query = rotary.undo(query, step.position_ids[:, begin:end])
        if most == self.room and length > most:
            over = length - start > self.room  # other rows read all they have
            chosen = self._choose(layer, query, rotary, start, length, over if step.queries == 1 else None)
            tokens = torch.where(over[:, None], chosen, tokens)

        # Ranks take the place of positions; rows with fewer tokens have theirs at the right.
        rank = torch.arange(-most, 0, device=device) + number[:, None]
        own = torch.arange(-queries, 0, device=device) + number[:, None]
        index = tokens[:, None].expand(-1, groups, -1)
        places, turned = rank, own
        if not self.reassign:
            places = tokens - start[:, None]
            turned = torch.arange(length - queries, length, device=device) - start[:, None]
        key = rotary.near(gather_rows(layer["key"], index), places.clamp(min=0))
        query = rotary.near(query, turned.clamp(min=0))
        layer.reads += index.numel() * (dim + layer["value"].shape[3])
        visible = None
        if queries > 1 or bool((number < most).any()):
            visible = (rank[:, None] >= 0) & (rank[:, None] <= own[:, :, None])
            visible = (visible | (own < 0)[:, :, None])[:, None]  # padding may see anything, but must see something
            masked = step.visible(layer, begin, end) if queries > 1 else None
            if masked is not None:  # a window begins later for later queries
                columns = tokens[:, None, None].expand(-1, 1, queries, -1)
                masked = masked.expand(batch, -1, -1, -1).gather(3, columns)
                visible = visible & (masked | (own < 0)[:, None, :, None])
        value = gather_rows(layer["value"], index)
        return step.attend(key, value, tokens[:, None], visible=visible, query=query)

    def _start(self, layer: KeptLayer, step: Step, begin: int, end: int) -> Int[Tensor, " batch"]:
        """First token that any of a chunk's queries sees: what is before is padding, or outside a sliding window."""
        visible = step.visible(layer, begin, end)
        if visible is None:
            return torch.zeros(step.query.shape[0], dtype=torch.long, device=step.query.device)
        return visible[:, 0].any(1).long().argmax(-1).expand(step.query.shape[0])

    def _choose(
        self, layer: KeptLayer, query: Tensor, rotary: Rotary, start: Tensor, length: int, decoding: Tensor | None
    ) -> Int[Tensor, "batch chosen"]:
        """Tokens to read, ascending.

        In decoding the last choice is used again where the query is alike; `decoding` says which rows choose at all.
        """
        device = query.device
        between = torch.arange(self.top_k, device=device)
        fresh = torch.ones(query.shape[0], dtype=torch.bool, device=device)
        since = torch.full_like(start, length)
        choice = start.new_zeros(start.shape[0], self.top_k)
        flat = query[:, :, -1].flatten(1)
        held = decoding is not None and "query" in layer.state
        if held:
            fresh = functional.cosine_similarity(flat, layer.state["query"], dim=-1) < self.theta
            since, choice = layer.state["since"], layer.state["choice"]
            fresh = fresh | (since < 0)
            if self.close_gap:
                fresh = fresh | (length - since >= min(max(self.n_local // 2, 1), self.top_k))
            since = torch.where(fresh, length, since)
        if fresh.any():
            choice = torch.where(fresh[:, None], self._vote(layer, query, rotary, start, length), choice)
        if decoding is not None:
            counted = layer.state.get("counted")
            if counted is None:
                counted = start.new_zeros(start.shape[0], 2)
            layer.state["counted"] = counted + torch.stack((~fresh & decoding, decoding), 1)
            flat = torch.where(fresh[:, None], flat, layer.state["query"]) if held else flat
            layer.state.update(query=flat, choice=choice, since=torch.where(decoding, since, -1))
        if self.close_gap:
            gap = (length - since)[:, None]  # so many tokens have left the newest since
            passed = length - self.n_local - self.top_k + between
            choice = torch.where(between < self.top_k - gap, choice, passed)
        first = start[:, None] + torch.arange(self.n_init, device=device)
        newest = torch.arange(length - self.n_local, length, device=device).expand(start.shape[0], -1)
        return torch.cat((first, choice.sort(-1).values, newest), 1)

    def _vote(
        self, layer: KeptLayer, query: Tensor, rotary: Rotary, start: Tensor, length: int
    ) -> Int[Tensor, "batch top_k"]:
        """Candidates with the most votes, best first (steps 2 to 5)."""
        queries = query.shape[2]
        real = torch.arange(length - queries, length, device=query.device) >= start[:, None]
        mean = mean_query(query, rotary.near if self.rotate_query else None, self.n_local, real)
        least = int(start.min()) + self.n_init
        candidates = layer["key"][:, :, least : length - self.n_local]
        layer.reads += candidates.numel()
        outside = torch.arange(least, length - self.n_local, device=query.device) < start[:, None] + self.n_init
        scores = scores_of(mean, candidates).masked_fill(outside[:, None], -torch.inf)
        ballots = self.count(scores).masked_fill(outside, -torch.inf)
        ballots = pooled(ballots, self.pool).masked_fill(outside, -torch.inf)
        return ballots.topk(self.top_k).indices + least

    def count(self, scores: Float[Tensor, "batch heads candidates"]) -> Float[Tensor, "batch candidates"]:
        """Count the votes."""
        return votes(scores, self.vote, self.top_k)


def hit_rate(kept: KeptCache) -> float:
    """Share of decoding steps, over all layers and rows, that used an earlier choice again; nan before the first."""
    counted = [layer.state["counted"].sum(0) for layer in kept.kept_layers if "counted" in layer.state]
    if not counted:
        return float("nan")
    hits, steps = torch.stack(counted).sum(0).tolist()
    return hits / steps


def _turn_back(layer: KeptLayer, key: Tensor, first: int) -> Tensor:
    """Take the rotation off keys of consecutive tokens, number `first` and after; the last has just been read."""
    last = first + key.shape[2] - 1
    places = torch.arange(first - last, 1, device=key.device) + layer.position_ids[:, -1:]
    return layer.geometry.need_rotary("token-select").undo(key, places.clamp(min=0))
