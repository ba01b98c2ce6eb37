"""A bench's run: every arm answers every prompt in one process, interleaved; what was said, how fast, at what cost.

Each prompt is one unit; ratios are paired over prompts. Hot drafters keep what they learned from prompt to prompt, in
file order; an arm called ``NAME cold`` starts every prompt afresh. Not here: rows and figures of it
(`mintage.bench.draft.rows`, `mintage.bench.draft.figures`), and going on after a kill (`mintage.bench.draft.journal`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from mintage.bench.draft.arm import Arm
from mintage.bench.draft.arms import GENERATE, is_cold
from mintage.bench.draft.journal import Journal
from mintage.data import Prompt
from mintage.draft import FrequentTokenHead, Stats, Target
from mintage.errors import UserError
from mintage.measure import Interval, Pairs, bootstrap_ratio, interleaved, timed
from mintage.measure.environment import environment
from mintage.models import CausalLM
from mintage.progress import Progress, silent

__all__ = ["Answer", "DraftRun", "Measurement"]

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What one arm did with one prompt."""

    tokens: tuple[int, ...]
    seconds: float
    stats: Stats


@dataclass
class Measurement:
    """All answers of one arm, in prompt order."""

    answers: list[Answer] = field(default_factory=list)

    def total(self, of: str) -> list[float]:
        """One number per prompt: a counter of `Stats`, e.g. ``"rounds"``."""
        return [float(getattr(answer.stats, of)) for answer in self.answers]

    @property
    def tokens_per_forward(self) -> Interval:
        """Emitted tokens per target forward over the whole run."""
        return bootstrap_ratio(self.total("new_tokens"), self.total("rounds"))

    @property
    def nodes_per_forward(self) -> Interval | None:
        """Tokens that a target forward read, the root included; None for a decoder that does not tell."""
        nodes = self.total("tree_nodes")
        return bootstrap_ratio(nodes, self.total("rounds")) if any(nodes) else None

    @property
    def throughput(self) -> Interval:
        """Emitted tokens per second over the whole run."""
        return bootstrap_ratio(self.total("new_tokens"), [a.seconds for a in self.answers])

    @property
    def acceptance_by_depth(self) -> list[float]:
        """Share of rounds offering a depth in which it was accepted."""
        deepest = max((len(a.stats.offered) for a in self.answers), default=0)
        offered, accepted = [0] * deepest, [0] * deepest
        for answer in self.answers:
            for depth, (o, a) in enumerate(zip(answer.stats.offered, answer.stats.accepted, strict=True)):
                offered[depth] += o
                accepted[depth] += a
        return [a / o if o else 0.0 for o, a in zip(offered, accepted, strict=True)]


@dataclass(eq=False)
class DraftRun:
    """Everything measured at one temperature; rows of claims are made from it as from a run of a study.

    Parameters
    ----------
    lm, prompts
        The target, and what it is asked.
    arms
        The decoders; the first one is the baseline of speeds.
    temperature, max_new_tokens, seed
        Of every answer.
    draft
        What the draft model was, if an arm has one.
    data, command
        Of the rows: the name of the prompts, and what repeats the run.
    """

    lm: CausalLM
    prompts: Sequence[Prompt]
    arms: dict[str, Arm]
    temperature: float = 0.0
    max_new_tokens: int = 96
    seed: int = 0
    draft: str = ""
    data: str = ""
    command: str = ""
    measurements: dict[str, Measurement] = field(default_factory=dict, init=False)
    pairs: Pairs = field(default_factory=Pairs, init=False)  # seconds per emitted token
    _shared: dict[str, Any] = field(default_factory=dict, init=False)

    @cached_property
    def common(self) -> dict[str, Any]:
        """What all rows say."""
        settings: dict[str, Any] = {"temperature": self.temperature, "max_new_tokens": self.max_new_tokens}
        settings["dtype"] = str(self.lm.model.dtype).removeprefix("torch.")
        if self.draft:
            settings["draft"] = self.draft
        return {
            "job": "draft",
            "model": self.lm.name,
            "data": self.data,
            "seed": self.seed,
            "settings": settings,
            "command": self.command,
            "environment": environment(),
            "n": len(self.prompts),
        }

    @property
    def greedy(self) -> bool:
        """Whether answers are the target's likeliest tokens."""
        return not self.temperature

    @property
    def exact(self) -> bool:
        """Whether the target computes in float32, where all arms must say the same."""
        return self.lm.model.dtype == torch.float32

    @property
    def distilled(self) -> bool:
        """Whether the draft model is one of ``mintage train drafter``."""
        return isinstance(getattr(self.draft_model, "lm_head", None), FrequentTokenHead)

    def has(self, *arms: str) -> bool:
        """Whether all of these were measured."""
        return set(arms) <= self.measurements.keys()

    def column(self, arm: str, of: str | tuple[str, ...]) -> np.ndarray:
        """Return a counter of `Stats` of an arm, a number per prompt, or several stacked."""
        total = self.measurements[arm].total
        return np.array(total(of) if isinstance(of, str) else [total(name) for name in of])

    def once(self, key: str, compute: Callable[[], T]) -> T:
        """Return what several rows share, computed when first asked for."""
        if key not in self._shared:
            self._shared[key] = compute()
        return self._shared[key]

    def measure(self, progress: Progress = silent, journal: Journal | None = None) -> None:
        """Answer every prompt with every arm.

        Parameters
        ----------
        progress
            Told after each answer, those taken from the journal included.
        journal
            Keeps the answers; prompts that it holds already are not asked again.
        """
        ids = {p.id: self.ids(p) for p in self.prompts}
        self._check_lengths({name: tokens.shape[1] for name, tokens in ids.items()})
        arms = list(self.arms.values())
        self.measurements = {name: Measurement() for name in self.arms}
        warm = next(iter(ids.values()))[:, -8:]
        for arm in arms:
            if not is_cold(arm.name):
                arm.decode(warm, self.temperature, 2, self.seed)
        known = journal.restore(arms) if journal else []
        stage, total = f"answers at temperature {self.temperature:g}", len(self.prompts) * len(arms)
        for prompt, answers in zip(self.prompts, known, strict=False):
            for name in self.arms:
                row = answers[name]
                self._add(prompt, name, Answer(tuple(row["tokens"]), row["seconds"], Stats(**row["stats"])))
        before = len(known) * len(arms)
        progress(stage, before, total)
        pending = list(interleaved(self.prompts, self.arms))[before:]
        for turn, (prompt, name) in enumerate(pending, start=1):
            arm = self.arms[name]

            def call(arm: Arm = arm, prompt: Prompt = prompt) -> tuple[Tensor, Stats]:
                return arm.decode(ids[prompt.id], self.temperature, self.max_new_tokens, self.seed)

            (tokens, stats), seconds = timed(call)
            answer = Answer(tuple(tokens.tolist()), seconds, stats)
            self._add(prompt, name, answer)
            if journal:
                journal.add(prompt.id, name, answer.tokens, seconds, stats)
                if turn % len(arms) == 0:
                    journal.close_prompt(prompt.id, arms)
            progress(stage, before + turn, total)

    def _add(self, prompt: Prompt, arm: str, answer: Answer) -> None:
        self.measurements[arm].answers.append(answer)
        self.pairs.add(prompt.id, arm, answer.seconds / max(len(answer.tokens), 1))

    def _check_lengths(self, lengths: dict[str, int]) -> None:
        limit = Target(self.lm.model).positions
        for name, length in lengths.items():
            if limit and length + self.max_new_tokens > limit:
                raise UserError(
                    f"prompt {name} of {length} tokens plus max_new_tokens={self.max_new_tokens} exceeds the model's "
                    f"context of {limit}; leave that prompt out"
                )

    def ids(self, prompt: Prompt) -> Tensor:
        """Return a prompt's ids, as a chat where the model has a chat template."""
        return self.lm.encode(prompt.turns[0], chat=bool(self.lm.tokenizer.chat_template))

    @property
    def same_arithmetic(self) -> list[str]:
        """Arms that run the same model in the same arithmetic as the baseline."""
        return [name for name, arm in self.arms.items() if not arm.note]

    @property
    def draft_model(self) -> Any:
        """The draft model that arms share, or None."""
        return next((arm.draft_model for arm in self.arms.values() if arm.draft_model is not None), None)

    def speed_up(self, name: str, *, of: str = "median") -> Interval:
        """Seconds per token of plain ``generate`` over the arm's, paired over prompts."""
        return self.pairs.ratio(GENERATE, name, of=of)  # type: ignore[arg-type]

    def identical(self, name: str) -> float:
        """Share of prompts on which an arm's tokens are plain ``generate``'s."""
        pairs = zip(self.measurements[name].answers, self.measurements[GENERATE].answers, strict=True)
        same = [a.tokens == b.tokens for a, b in pairs]
        return sum(same) / len(same)

    def gaps(self) -> dict[str, list[float]]:
        """Per arm, the float32 logit gap between the two choices wherever its tokens first differ from ``generate``'s.

        In bfloat16 a forward over one token and one over many round differently, so ties and near-ties may fall either
        way, for transformers' own speculative decoders too. A gap that is not small would be a wrong answer.
        """
        found: dict[str, list[float]] = {name: [] for name in self.same_arithmetic if name != GENERATE}
        exact = copy.deepcopy(self.lm.model).float()
        for i, prompt in enumerate(self.prompts):
            plain = self.measurements[GENERATE].answers[i].tokens
            for name, gaps in found.items():
                mine = self.measurements[name].answers[i].tokens
                at = next((n for n, (a, b) in enumerate(zip(mine, plain, strict=False)) if a != b), None)
                if at is not None:
                    ids = self.ids(prompt)
                    prefix = torch.cat([ids, torch.tensor([plain[:at]], dtype=ids.dtype, device=ids.device)], dim=1)
                    with torch.no_grad():
                        logits = exact(input_ids=prefix, logits_to_keep=1).logits[0, -1]
                    gaps.append(float((logits[mine[at]] - logits[plain[at]]).abs()))
        return found
