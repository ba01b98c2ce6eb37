"""What does a haystack cost in tokens, what does the embedded model find in it, and what do cache policies lose?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mintage import catalog
from mintage.audit.core.needle_report import needle_figures
from mintage.audit.needle_threading import NeedleThreading
from mintage.bench.audit.needles import Haystacks
from mintage.bench.audit.token_counts import count_figure, count_rows, prose_and_keys
from mintage.errors import UserError
from mintage.measure import Figure
from mintage.measure.study import POINTS, Comparison, Finding, Measure, Run, Study, above
from mintage.models import CausalLM, load_causal_lm
from mintage.options import option

__all__ = ["NeedleThreadingStudy"]

GRID: dict[str, Any] = {"depths": (0, 50, 100), "steps": (2, 3), "threads": 1}
FORMS: dict[str, dict[str, Any]] = {
    "complete": {"form": "complete"},
    "question": {"form": "question"},
    "complete, 8 digits": {"form": "complete", "hex_digits": 8},
}
TASKS = ("single", "thread")
POLICIES = ("streaming-llm", "snapkv", "h2o", "tova", "knorm", "expected-attention", "random-eviction", "ems")
PAIRS_OF_POLICIES, SHARE = 8, 4
"""Policies are asked about so many pairs, and keep one token in four."""


@dataclass(frozen=True, kw_only=True)
class NeedleThreadingStudy(Study):
    """Ask a small model for needles and threads, count what the haystack costs in tokens, and attach cache policies.

    SmolLM2-135M is far below the paper's models. It continues text better than it follows instructions, so the answer
    is opened for it (form "complete"); the paper's own form is asked beside, at all lengths but the longest.

    [dim]Example[/dim]

      mintage bench needle-threading --haystacks 6

    Next: [bold]mintage report[/bold]
    """

    method, job = "needle-threading", "audit"

    model: str = option("smollm2", "smollm2 (embedded), a folder, or a hub id.")
    pairs: tuple[int, ...] = option((4, 8, 16, 32), "Sizes of the haystack; a pair has 80 characters.", least=3)
    haystacks: int = option(10, "Haystacks of every size.", least=1)
    tokenizers: Path | None = option(None, "Folder of published tokenizers (NAME/tokenizer.json) that count as well.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.pairs) < 2:
            raise UserError(f"pairs={self.pairs} is one size; pass at least two, e.g. (4, 8)")

    def common(self, run: Run) -> Mapping[str, Any]:
        """See `Study.common`."""
        return {"model": run.subject.name}

    def subject(self, run: Run) -> CausalLM:
        """The model."""
        return load_causal_lm(self.model, dtype="bfloat16")

    def arms(self, run: Run) -> Mapping[str, Any]:
        """Audits of one task in one form, and of single needles under a policy."""
        audits = {
            f"{task}, {form}": NeedleThreading(tasks=(task,), pairs=self.pairs, **GRID, **settings)
            for form, settings in FORMS.items()
            for task in TASKS
        }
        plain = replace(audits["single, complete"], pairs=(PAIRS_OF_POLICIES,))
        policies = {name: catalog.build(f"{name}:budget={1 / SHARE}", "keep") for name in POLICIES}
        return {
            **audits,
            "full cache": plain,
            **{name: replace(plain, policy=policy) for name, policy in policies.items()},
        }

    def haystacks_of(self, form: str) -> Haystacks:
        """Return the haystacks that a form is asked about: the paper's, not the longest."""
        sizes = sorted(self.pairs)
        return Haystacks(sizes[:-1] if form == "question" else sizes, self.haystacks, self.seed)

    def measures(self, run: Run) -> Iterable[Measure]:
        """Tokens in every tokenizer; questions by form; questions under policies."""
        self._tokens(run)
        for form in FORMS:
            yield self.haystacks_of(form).measure(f"questions, {form}", [f"{task}, {form}" for task in TASKS])
        short = Haystacks([PAIRS_OF_POLICIES], self.haystacks, self.seed)
        yield short.measure("policies", ["full cache", *POLICIES])

    def _tokens(self, run: Run) -> Any:
        return run.memo("tokens", partial(prose_and_keys, self.tokenizers))

    def rows(self, run: Run) -> Iterable[Comparison | Finding]:
        """Tokens; single needles beside threads and short haystacks beside long ones; what policies lose."""
        yield from count_rows(self._tokens(run))
        for form in FORMS:
            tested, sizes = form != "question", self.haystacks_of(form).sizes
            common: dict[str, Any] = {
                "holds": above(0) if tested else None,
                "settings": {"form": form, "pairs": sizes, "depths": GRID["depths"], "steps": GRID["steps"]},
            }
            single, thread = f"single, {form}", f"thread, {form}"
            yield Comparison(
                metric=f"score of a single needle minus that of a thread, {form}",
                ours=single,
                rival=thread,
                of="score",
                by=POINTS,
                baseline={"single": single, "thread": thread},
                data=f"haystacks of {sizes[0]} to {sizes[-1]} pairs",
                claim=f"a single needle is found more often than the end of a thread of 2 or 3 ({form})" * tested,
                **common,
            )
            by_size = run.column(single, "score").reshape(len(sizes), -1)
            yield Finding(
                metric=f"score at {sizes[0]} pairs minus that at {sizes[-1]}, single needle, {form}",
                value=POINTS.of_two(by_size[0], by_size[-1]),
                unit=POINTS.unit,
                n=self.haystacks,
                baseline={f"{sizes[i]} pairs": 100 * float(by_size[i].mean()) for i in (0, -1)},
                data=f"haystacks of {sizes[0]} and {sizes[-1]} pairs",
                claim=f"the score falls with the length of the haystack ({form})" * tested,
                **common,
            )
        for name in POLICIES:
            yield Comparison(
                metric=f"score of a single needle with {name} at 1/{SHARE} of the context minus that without",
                ours=name,
                rival="full cache",
                of="score",
                by=POINTS,
                baseline=["full cache"],
                settings={"pairs": PAIRS_OF_POLICIES, "depths": GRID["depths"], "form": "complete"},
                data=f"haystacks of {PAIRS_OF_POLICIES} pairs",
                note="the key asked for is read with the haystack, before compression",
            )

    def figures(self, run: Run) -> Iterable[Figure]:
        """Characters per token; scores and limits of the opened form."""
        yield count_figure(run, self._tokens(run))
        asked = [one for task in TASKS for one in self.haystacks_of("complete").asked(run, f"{task}, complete")]
        yield from needle_figures(asked, NeedleThreading.threshold, environment=run.environment)
