"""Is a text that was cut anywhere continued better by exact bytes than by tokens, or by tokens that were healed?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mintage.bench.retrofit import cuts as cutting
from mintage.bench.retrofit.votes import Voters, installed_second, measured_votes, rows_of_votes
from mintage.measure.study import (
    POINTS,
    Comparison,
    Finding,
    Measure,
    Rule,
    Run,
    Statistic,
    Study,
    above,
    at_least,
    at_most,
    below,
    contains,
    mean,
    up_to,
    within,
)
from mintage.models import EMBEDDED, load_causal_lm
from mintage.options import option

__all__ = ["ExactBytesStudy"]

EXACT, HEALED, PLAIN = SAMPLERS = cutting.SAMPLERS
LIBRARY, BOTH = "transformers", "both"
EQUAL = 0.1  # bits per byte within which two distributions count as equal


@dataclass(frozen=True, kw_only=True)
class ExactBytesStudy(Study):
    """Test whether exact bytes continue texts that are cut anywhere better than tokens, healed or not.

    Code, prose, German and Russian are cut at random characters; every arm scores the bytes that follow and writes
    some. Lines of HumanEval are completed and run. Two models of different vocabularies vote on bytes of short texts.

    [dim]Examples[/dim]

      mintage bench exact-bytes --cuts 5 --lines 5 --votes 1
    """

    method: ClassVar[str] = "exact-bytes"
    job: ClassVar[str] = "retrofit"

    model: str = option(EMBEDDED, "smollm2 (embedded), a folder, or a hub id; float32.")
    second: str | None = option(None, "Model that votes beside it; default: Gemma 3 270M where it is installed.")
    kinds: tuple[str, ...] = option(tuple(cutting.CUTS), "Kinds of text that are cut.")
    cuts: int = option(90, "Cuts per kind, at most; of prose 70, of other languages 20.", least=1)
    library: int = option(40, "Cuts that transformers' own healing, at a second each, is tried on.", least=1)
    lines: int = option(40, "Lines of HumanEval completed.", least=1)
    voted: tuple[str, ...] = option(("code", "prose", "de"), "Kinds of text that two models vote on.")
    votes: int = option(6, "Texts per kind to vote on: the bytes behind the first 32 of 128.", least=1)
    scored: int = option(8, "Bytes scored behind a cut.", least=2)
    written: int = option(10, "Bytes written behind a cut.", least=1, most=32)
    longest: int = option(60, "Bytes of a completed line, at most.", least=1)

    def arms(self, run: Run) -> Mapping[str, Any]:
        """Return the samplers; the model for transformers' own healing; and two models that vote."""
        lm, second = load_causal_lm(self.model, dtype="float32"), self.second or installed_second()
        both = {BOTH: Voters(lm, self.model, second)} if second else {}
        return {**cutting.samplers(lm), LIBRARY: lm, **both}

    def measures(self, run: Run) -> Iterator[Measure]:
        """Yield cuts, those that transformers heals, lines, and votes."""
        every = cutting.cut_kinds(run.arms[EXACT], self.kinds, self.cuts, spare=2 * self.written, seed=self.seed)
        some = {name: every[name] for name in cutting.evenly([*every], self.library)}
        lines = cutting.cut_lines(self.lines, self.seed)
        yield cutting.measured("cuts", every, cutting.follow, SAMPLERS, self.scored, self.written)
        yield cutting.measured("transformers' healing", some, cutting.healed_by_transformers, (LIBRARY,), self.written)
        yield cutting.measured("lines", lines, cutting.complete, SAMPLERS, self.longest)
        for kind in self.voted if BOTH in run.arms else ():
            yield measured_votes(kind, self.votes, seed=self.seed, arm=BOTH)

    def rows(self, run: Run) -> Iterator[Comparison | Finding]:
        """Yield what cuts cost, within tokens and at their ends; forwards; healing, lines and votes."""
        ends = run.column(EXACT, "boundary") > 0
        yield from self._of_cuts("within a token", ~ends)
        yield from self._of_cuts("at the end of a token", ends)
        yield Comparison(
            metric="forwards per byte after the first",
            ours=EXACT, of="forwards", by=mean("forwards", more_is_better=False),
            baseline={"one per byte": 1.0}, peers={"forwards for the first byte": run.column(EXACT, "first").mean()},
            claim="at most 2 forwards per byte after the first",
            holds=up_to(2),
            data=f"{len(ends)} cuts of code and prose in three languages",
        )  # fmt: skip
        failed, some = int(run.column(LIBRARY, "failed").sum()), len(run.column(LIBRARY, "right of some"))
        for name in SAMPLERS:
            run.columns[name]["right of some"] = cutting.evenly(run.column(name, "right"), self.library)
        yield Comparison(
            metric=f"next {self.written} bytes written as they stand: {EXACT} minus generate(token_healing=True)",
            ours=EXACT, rival=LIBRARY, of="right of some", by=POINTS,
            baseline={"transformers token_healing": LIBRARY}, peers=SAMPLERS,
            claim=f"exact bytes write more continuations right than transformers' token healing ({some} cuts)",
            holds=above(0),
            data=f"{some} of the cuts, within tokens and at their ends",
            note=f"transformers strips the prompt and raised an error on {failed} of {some}, which count as wrong",
        )  # fmt: skip
        for of, metric in (("same", "lines completed as they stand"), ("passes", "solutions that pass their test")):
            for other, how, rule in ((PLAIN, "over", above(0)), (HEALED, "at least", at_least(0))):
                yield cutting.difference(
                    f"HumanEval, cut within a line, {metric}", EXACT, other, of, POINTS,
                    claim=f"HumanEval, {metric}: {EXACT} {how} {other}",
                    holds=rule,
                    data=f"{len(run.column(EXACT, of))} solutions of HumanEval",
                    note="the rest of the line is written, what follows it is given; as they are, not differences, "
                    "stand baseline and peers",
                )  # fmt: skip
        yield from rows_of_votes(run, BOTH, self.voted)

    def _of_cuts(self, where: str, chosen: Any) -> Iterator[Comparison]:
        bits = mean("bits", more_is_better=False, scale=1 / self.scored)
        for ours, other in ((EXACT, PLAIN), (EXACT, HEALED), (HEALED, PLAIN)) if chosen.any() else ():
            for of, by, metric in (
                ("bits", bits, f"bits per byte of the next {self.scored}, {where}"),
                ("right", POINTS, f"next {self.written} bytes written as they stand, {where}"),
            ):
                claim, rule = _expected(ours, other, where, by)
                yield cutting.difference(
                    metric, ours, other, of, by,
                    claim=claim and f"{metric}: {claim}",
                    holds=rule,
                    units=chosen,
                    n=int(chosen.sum()),
                    data=f"{chosen.sum()} cuts {where}: Python's library, WikiText-2 test, XQuAD (de, ru)",
                    note="baseline and peers are means, not differences",
                    settings={"scored": self.scored, "written": self.written},
                )  # fmt: skip


def _expected(ours: str, other: str, where: str, by: Statistic) -> tuple[str, Rule | None]:
    """What a difference is to show: more within tokens, for healing no less, and the same where tokens end."""
    more, within_token = by.more_is_better, where.startswith("within")
    if within_token and (ours, other) == (EXACT, HEALED):
        return f"{ours} is at least as good as {other}", at_least(0) if more else at_most(0)
    if within_token:
        return f"{ours} is better than {other}", above(0) if more else below(0)
    if (ours, other) != (EXACT, PLAIN):
        return "", None
    how = "as many" if more else f"equal within {EQUAL} bits"
    return f"{ours} and {other} are alike ({how})", contains(0) if more else within(EQUAL)
