"""EMS: does evict-then-merge keep more than eviction alone, by perplexity and by needles asked for afterwards?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mintage.bench.keep.measures import KeepStudy, continuation_scores, needles
from mintage.keep.baselines import H2O, FullCache, RandomEviction, SnapKV, StreamingLLM
from mintage.keep.contract import Policy
from mintage.keep.ems import EMS
from mintage.measure.study import PERPLEXITY, POINTS, Comparison, Measure, Run, above, below
from mintage.options import option

__all__ = ["EMSStudy"]

OURS = {
    "ems": EMS(),
    "evict only": EMS(tau=2.0),
    "merge values": EMS(merge="values"),
    "merge and count": EMS(correct_mass=True),
}
"""EMS, and what it consists of, switched off or on one by one."""

RIVALS = {"streaming-llm": StreamingLLM(), "h2o": H2O(), "snapkv": SnapKV(), "random-eviction": RandomEviction()}

LOWER_THAN = {
    "evict only": "merging lowers perplexity against the same scores without it",
    "h2o": "EMS has lower perplexity than H2O",
    "snapkv": "EMS has lower perplexity than SnapKV",
    "streaming-llm": "EMS has lower perplexity than a window",
}


@dataclass(frozen=True, kw_only=True)
class EMSStudy(KeepStudy):
    """Does evict-then-merge keep more than eviction alone, by perplexity and by needles asked for afterwards?

    Speeches are read and compressed; then their next tokens are scored, and needles hidden in them asked for.

    [dim]Example[/dim]

      mintage bench ems --texts 2 --questions 3 --room 64
    """

    method = "ems"

    length: int = option(1536, "Tokens read before compression.", least=64)
    decoded: int = option(64, "Tokens scored behind each text.", least=1)
    texts: int = option(4, "Speeches.", least=1)
    questions: int = option(5, "Pass-keys asked for, and as many UUIDs.", least=1)
    room: tuple[int, ...] = option((64, 128, 256), "Entries that a head may keep.", least=1)

    def arms(self, run: Run) -> dict[str, Policy]:
        """Every policy at every room, beside the full cache."""
        policies = {f"{name}, {r}": replace(p, budget=r) for r in self.room for name, p in (OURS | RIVALS).items()}
        return {"full-cache": FullCache(), **policies}

    def measures(self, run: Run) -> Iterator[Measure]:
        """Perplexity and needles."""
        yield continuation_scores(self.length, self.texts, self.decoded)
        yield needles(self.length, self.questions)

    def rows(self, run: Run) -> Iterator[Comparison]:
        """Needles against the best rival, perplexity against each, at every room."""
        for room in self.room:
            yield from self._at(room)

    def _at(self, room: int) -> Iterator[Comparison]:
        def best(run: Run) -> str:
            means = {f"{name}, {room}": run.columns[f"{name}, {room}"] for name in RIVALS}
            return max(means, key=lambda name: (means[name]["found"].mean(), -means[name]["nll"].mean()))

        shared = {
            "ours": f"ems, {room}",
            "baseline": ["full-cache"],
            "peers": {name: f"{name}, {room}" for name in OURS | RIVALS},
            "settings": {"length": self.length, "decoded": self.decoded},
        }
        yield Comparison(
            metric=f"needles found by EMS minus those by the best rival, room for {room}",
            rival=best,
            of="found",
            by=POINTS,
            claim=f"EMS finds more needles than the best rival with room for {room} entries",
            holds=above(0),
            data="pass-keys and UUIDs in speeches, asked for after compression",
            note="the rival was chosen after the fact, to EMS's disadvantage",
            **shared,
        )
        for name, claim in LOWER_THAN.items():
            yield Comparison(
                metric=f"perplexity of EMS over that of {name}, room for {room}",
                rival=f"{name}, {room}",
                of="nll",
                by=PERPLEXITY,
                claim=f"{claim}, room for {room}",
                holds=below(1),
                data=f"long_docs (state_union, inaugural), {self.texts} texts",
                note="baseline and peers are perplexities",
                **shared,
            )
