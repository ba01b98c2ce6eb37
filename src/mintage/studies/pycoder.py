"""PyCoder: types where no tree can be built, and what they are worth against the same code and the same compute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from mintage.bench.lm.coding import (
    HeldOutCode,
    beginnings,
    lines_completed,
    points_of_files,
    tokens_judged,
    type_stream,
)
from mintage.lm.training.pycoder import PyCoderTraining
from mintage.measure.figure import Figure, bars
from mintage.measure.study import POINTS, Comparison, Measure, Rule, Run, Study, above, all_of, at_least, at_most
from mintage.options import option

__all__ = ["PyCoderStudy"]

HARD, CODE, COMPUTE, SHUFFLED = "hard", "code only", "code only, equal compute", "hard, shuffled types"
NOT_ABOVE = Rule("interval not above 0", lambda found: found.low <= 0)


@dataclass(frozen=True, kw_only=True)
class PyCoderStudy(Study):
    """Do token types help a model of code, and do they exist where no syntax tree does?

    Files of Python's own library are cut at random letters, and types asked of the lexer and of a tree. Small models
    are trained on the library without comments, from scratch, and judged on files held out: with types in every way of
    sharing, with shuffled ones, with those of the tree, and without at the same code and at the same compute.

    [dim]Examples[/dim]

      mintage bench pycoder --seeds 1 --steps 20 --files 6 --cuts 50 --lines 4 --width 32

    Next: [bold]mintage report[/bold]
    """

    method: ClassVar[str] = "pycoder"
    job: ClassVar[str] = "lm"

    seeds: int = option(3, "Trainings of every arm.", least=1)
    steps: int = option(300, "Steps on code of 8 windows; at equal compute twice as many.", least=1)
    window: int = option(256, "Tokens of a window.", least=8)
    width: int = option(128, "Of all models.", least=8)
    layers: int = option(4, "Of all models.", least=1)
    vocabulary: int = option(2048, "Tokens of the tokenizer.", least=256)
    files: int = option(40, "Files that are judged by, at most; five times as many are learnt from.", least=2)
    cuts: int = option(1000, "Beginnings of files.", least=2)
    lines: int = option(40, "Lines that are completed.", least=2)
    bf16: bool = option(True, "Train in bfloat16.")
    models: Path = option(Path(".mintage/lm"), "Folder of trained models; what is missing is trained.")

    def subject(self, run: Run) -> HeldOutCode:
        """Open the library."""
        return HeldOutCode(self.files)

    def common(self, run: Run) -> Mapping[str, Any]:
        """Return what all rows say."""
        held = f"Python's own library: {len(run.subject.held)} files held out, {self.seeds} trainings"
        model = f"Llama, {self.layers} blocks, width {self.width}, {self.steps} steps of 8 x {self.window} tokens"
        return {"model": model, "data": held}

    def _trainings(self) -> dict[str, PyCoderTraining]:
        names = ("steps", "window", "width", "layers", "vocabulary", "bf16")
        base = PyCoderTraining(comments=False, **{name: getattr(self, name) for name in names})
        return {
            HARD: base,
            CODE: replace(base, sharing="none"),
            COMPUTE: replace(base, sharing="none", steps=2 * self.steps),
            SHUFFLED: replace(base, labels="shuffled"),
            "intermediate": replace(base, sharing="intermediate"),
            "soft": replace(base, sharing="soft"),
            "type head": replace(base, sharing="head"),
            "hard, types of the tree": replace(base, labels="ast"),
        }

    def arms(self, run: Run) -> Mapping[str, Any]:
        """Return trainings, and what gives types to beginnings of files."""
        return {"lexer": "lexer", "syntax tree": "ast", **self._trainings()}

    def measures(self, run: Run) -> Iterable[Measure]:
        """Yield beginnings, tokens and lines."""
        yield beginnings(["lexer", "syntax tree"], self.cuts)
        yield tokens_judged([*self._trainings()], self.seeds, self.models)
        yield lines_completed([HARD, CODE, COMPUTE], self.seeds, self.lines, self.models)

    def rows(self, run: Run) -> Iterator[Comparison]:
        """Yield what beginnings, tokens and lines say."""
        cut: dict[str, Any] = {"data": f"{self.cuts} beginnings of files of Python's own library", "of": "fails"}
        yield Comparison(
            metric="half-typed files without a syntax tree", ours="syntax tree", by=POINTS, peers=["lexer"], **cut,
            claim="ast.parse fails on about two thirds of the beginnings of files: 55 to 80%",
            holds=all_of(at_least(55), at_most(80)),
        )  # fmt: skip
        yield Comparison(
            metric="half-typed files without lexical types", ours="lexer", by=POINTS, baseline=["syntax tree"], **cut,
            claim="the lexer gives every beginning of a file types, without a gap", holds=at_most(0),
        )  # fmt: skip
        by = points_of_files(self.seeds)
        told = "tokens right, minus those of code only at equal code"
        every = [name for name in self._trainings() if name not in (HARD, CODE)]
        yield Comparison(
            metric=f"{told}, hard sharing", ours=HARD, rival=CODE, of="right", by=by, baseline=[CODE], peers=every,
            claim="types add tokens that are right, by more than two standard errors", holds=above(0),
        )  # fmt: skip
        yield Comparison(
            metric=f"{told}, shuffled types", ours=SHUFFLED, rival=CODE, of="right", by=by, baseline=[CODE],
            claim="shuffled types add none", holds=NOT_ABOVE,
        )  # fmt: skip
        yield Comparison(
            metric="tokens right, hard sharing, minus those of code only at equal compute", ours=HARD, rival=COMPUTE,
            of="right", by=by, baseline=[COMPUTE], note="two forwards a step against twice the steps",
        )  # fmt: skip
        for arm in every[2:]:
            yield Comparison(metric=f"{told}, {arm}", ours=arm, rival=CODE, of="right", by=by, baseline=[CODE])
        for of, named in (("exact", "lines exactly right"), ("similarity", "edit similarity of lines")):
            for rival in (CODE, COMPUTE):
                yield Comparison(
                    metric=f"{named}, hard sharing minus {rival}", ours=HARD, rival=rival, of=of, by=POINTS,
                    baseline=[rival], data=f"{self.lines} lines, {self.seeds} trainings",
                )  # fmt: skip

    def figures(self, run: Run) -> Iterator[Figure]:
        """Yield types over code, and tokens right by arm."""
        yield type_stream(run)
        arms = [*self._trainings()]
        shares = {"tokens right": [POINTS.of_one(run.column(arm, "right")) for arm in arms]}
        caption = f"{run.common['model']}; {run.common['data']}."
        yield run.figure(name="pycoder-tokens", title="What types add", caption=caption, **bars("%", arms, shares))
