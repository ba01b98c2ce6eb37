"""A bench's run: every arm answers every prompt in one process, interleaved; what was said, how fast, at what cost.

Each prompt is one unit; ratios are paired over prompts. Hot drafters keep what they learned from prompt to prompt, in
file order; an arm called ``NAME cold`` starts every prompt afresh. Not here: rows and figures of it
(`mintage.bench.draft.rows`, `mintage.bench.draft.figures`), and going on after a kill (`mintage.bench.draft.journal`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mintage.bench.draft.arms import GENERATE, Arm, is_cold
from mintage.bench.draft.journal import Journal
from mintage.data import Prompt
from mintage.draft.core.loop import Stats
from mintage.draft.core.target import Target
from mintage.errors import UserError
from mintage.measure import Interval, Pairs, bootstrap_ratio, interleaved, timed
from mintage.models import CausalLM

__all__ = ["Answer", "Measurement", "Run"]


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


@dataclass
class Run:
    """Everything measured at one temperature."""

    lm: CausalLM
    prompts: list[Prompt]
    temperature: float
    max_new_tokens: int
    seed: int
    draft: str = ""  # what the draft model was, if an arm had one
    arms: dict[str, Arm] = field(default_factory=dict)
    measurements: dict[str, Measurement] = field(default_factory=dict)
    pairs: Pairs = field(default_factory=Pairs)  # seconds per emitted token
    memo: dict[str, Any] = field(default_factory=dict)  # what several rows share

    def measure(
        self, arms: Sequence[Arm], step: Callable[[str], None] = lambda _: None, journal: Journal | None = None
    ) -> None:
        """Answer every prompt with every arm.

        Parameters
        ----------
        arms
            The first one is the baseline of speeds.
        step
            Told the arm after each answer, those taken from the journal included.
        journal
            Keeps the answers; prompts that it holds already are not asked again.
        """
        ids = {p.id: self.ids(p) for p in self.prompts}
        self._check_lengths({name: tokens.shape[1] for name, tokens in ids.items()})
        self.arms = {arm.name: arm for arm in arms}
        self.measurements = {arm.name: Measurement() for arm in arms}
        warm = next(iter(ids.values()))[:, -8:]
        for arm in arms:
            if not is_cold(arm.name):
                arm.decode(warm, self.temperature, 2, self.seed)
        known = journal.restore(arms) if journal else []
        for prompt, answers in zip(self.prompts, known, strict=False):
            for arm in arms:
                row = answers[arm.name]
                self._add(prompt, arm, Answer(tuple(row["tokens"]), row["seconds"], Stats(**row["stats"])))
                step(arm.name)
        pending = list(interleaved(self.prompts, self.arms))[len(known) * len(arms) :]
        for turn, (prompt, name) in enumerate(pending, start=1):
            arm = self.arms[name]

            def call(arm: Arm = arm, prompt: Prompt = prompt) -> tuple[Tensor, Stats]:
                return arm.decode(ids[prompt.id], self.temperature, self.max_new_tokens, self.seed)

            (tokens, stats), seconds = timed(call)
            answer = Answer(tuple(tokens.tolist()), seconds, stats)
            self._add(prompt, arm, answer)
            if journal:
                journal.add(prompt.id, name, answer.tokens, seconds, stats)
                if turn % len(arms) == 0:
                    journal.close_prompt(prompt.id, arms)
            step(name)

    def _add(self, prompt: Prompt, arm: Arm, answer: Answer) -> None:
        self.measurements[arm.name].answers.append(answer)
        self.pairs.add(prompt.id, arm.name, answer.seconds / max(len(answer.tokens), 1))

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
        return [name for name in self.measurements if name not in self.arms or not self.arms[name].note]

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
