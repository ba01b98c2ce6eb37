"""Needle threading: up to which length of text does a model still find keys, and follow threads of them?

A haystack of random key-value pairs is read, five kinds of questions are asked (`mintage.data.haystack`), and accuracy
by length gives an effective context limit for each, in characters, so that models with different tokenizers compare.

Not here: branched threads; models behind a web service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mintage.audit.contract import Audit, Cell, Progress, Report, silent
from mintage.data.haystack import (
    TASKS,
    Direction,
    Example,
    Placement,
    conditional_needles,
    make_haystack,
    multi_thread,
    multiple_needles,
    single_needle,
    thread,
)
from mintage.errors import UserError, did_you_mean
from mintage.measure import Figure, bootstrap
from mintage.measure.environment import environment
from mintage.measure.retrieval import Found, effective_context_limit, score_list, score_value
from mintage.models import CausalLM, tiny_causal_lm

__all__ = ["Needle", "NeedleThreading", "examples", "tokenizer_report"]

Form = Literal["question", "chat", "complete"]


@dataclass(frozen=True)
class Needle:
    """One question, where it stands in the grid, and what came of it."""

    task: str
    variant: str
    pairs: int
    characters: int
    tokens: int
    response: str
    found: Found


@dataclass(frozen=True, kw_only=True, eq=False)
class NeedleThreading(Audit):
    """Effective context of a language model by five retrieval tasks (Roberts, Han and Albanie, ICLR 2025).

    Parameters
    ----------
    tasks
        Which of ``single, multiple, conditional, thread, multi-thread``.
    pairs
        Numbers of key-value pairs to test; 80 characters each.
    depths
        Of single needles, in percent.
    needles
        Numbers of keys asked for at once, in the multiple and conditional tasks.
    steps
        Look-ups of a thread, in the thread tasks.
    threads
        Threads followed at once.
    repeats
        Haystacks for every setting; few repeats give wide intervals.
    placement, direction
        How needles lie and threads run.
    hex_digits
        Keys of so many digits instead of UUIDs: not the paper's task, but one that asks for less copying.
    form
        ``"question"`` as in the paper; ``"chat"``, the same as the user's turn; ``"complete"``, which opens the answer,
        for models that only continue a text (ours).
    threshold
        Accuracy that a length must reach to count as within the effective context.
    policy
        Called with the model, gives a context to generate in, e.g. a `mintage.keep.Policy`.
    seed
        Of the haystacks.
    """

    tasks: Sequence[str] = TASKS
    pairs: Sequence[int] = (4, 8, 16, 32)
    depths: Sequence[int | float] = (0, 25, 50, 75, 100)
    needles: Sequence[int] = (2, 4)
    steps: Sequence[int] = (2, 3)
    threads: int = 2
    repeats: int = 5
    placement: Placement = "random"
    direction: Direction = "forward"
    hex_digits: int | None = None
    form: Form = "question"
    threshold: float | int = 0.75
    policy: Callable[[Any], Any] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in TASKS:
                raise UserError(f"unknown task {task!r}; {did_you_mean(task, TASKS)}")
        if not self.tasks or not self.pairs or self.repeats < 1:
            raise UserError("there is nothing to ask; pass at least one task, one number of pairs and one repeat")
        if not 0 < self.threshold <= 1:
            raise UserError(f"threshold={self.threshold} is outside (0, 1]; pass e.g. 0.75")
        if self.form not in ("question", "chat", "complete"):
            raise UserError(f"unknown form {self.form!r}; pass question, chat or complete")
        least = min(self.pairs)
        asked = {
            "multiple": max(self.needles, default=1),
            "conditional": max(self.needles, default=1),
            "thread": max(self.steps, default=1),
            "multi-thread": self.threads * max(self.steps, default=1),
        }
        for task in self.tasks:
            if asked.get(task, 1) > least:
                raise UserError(
                    f"task {task} needs {asked[task]} pairs, the smallest haystack has {least}; pass more pairs"
                )

    # -- running --

    def run(self, subject: Any, *, name: str = "", progress: Progress = silent) -> Report:
        """Ask a `mintage.models.CausalLM` all questions of the grid.

        Raises
        ------
        UserError
            The subject is no model with a tokenizer; a haystack does not fit its context (it is never cut: that would
            delete needles).
        """
        lm = _subject(subject, name)
        return self.report(list(self.ask(lm, progress)), lm, name)

    def report(self, asked: Sequence[Needle], lm: CausalLM, name: str = "") -> Report:
        """Sum up what `ask` yielded."""
        rows = _rows(asked)
        lengths = sorted({needle.pairs for needle in asked})
        characters = {needle.pairs: needle.characters for needle in asked}
        findings: dict[str, Cell] = {}
        limits: dict[str, dict[str, float]] = {}
        for task in dict.fromkeys(needle.task for needle in asked):
            mine = [needle for needle in asked if needle.task == task]
            findings[f"accuracy, {task}"] = float(np.mean([n.found.score for n in mine]))
            for variant in dict.fromkeys(n.variant for n in mine):
                accuracy = [
                    float(np.mean([n.found.score for n in mine if n.variant == variant and n.pairs == pairs]))
                    for pairs in lengths
                ]
                limit = effective_context_limit([characters[p] for p in lengths], accuracy, self.threshold)
                limits.setdefault(task, {})[variant] = limit
            accuracy = [float(np.mean([n.found.score for n in mine if n.pairs == pairs])) for pairs in lengths]
            findings[f"limit, {task} (characters)"] = effective_context_limit(
                [characters[p] for p in lengths], accuracy, self.threshold
            )
        per_token = float(np.mean([n.characters / n.tokens for n in asked]))
        findings["characters per token"] = per_token
        window = _window(lm)
        notes = [
            f"Limits are the length up to which accuracy stays at {self.threshold:g}; the longest tested haystack has "
            f"{max(characters.values())} characters, so no limit can be larger.",
            f"Characters are those of the haystack; tokens are those of the whole prompt; {self.repeats} repeats.",
        ]
        if window:
            findings["advertised (characters)"] = float(window * per_token)
            notes.append(f"The advertised context is {window} tokens, at this text's characters per token.")
        if self.hex_digits:
            notes.append(f"Keys of {self.hex_digits} hexadecimal digits: a variant, not the paper's UUIDs.")
        if self.form == "complete":
            notes.append("The answer is opened for the model: a variant, not the paper's prompt.")
        return Report(
            audit="needle-threading",
            subject=name or lm.name,
            findings=findings,
            table=rows,
            figures=list(self._figures(asked, limits, characters)),
            notes=notes,
        )

    def ask(self, lm: CausalLM, progress: Progress = silent) -> Iterator[Needle]:
        """Yield every question of the grid with the model's response and its score."""
        grid = list(examples(self))
        prompts = [self._ids(lm, example) for _, example in grid]
        spare = max(_new_tokens(lm, example) for _, example in grid)
        window, longest = _window(lm), max(ids.shape[1] for ids in prompts)
        if window and longest + spare > window:
            fits = [e.haystack for (_, e), ids in zip(grid, prompts, strict=True) if ids.shape[1] + spare <= window]
            most = max((len(h.pairs) for h in fits), default=0)
            raise UserError(
                f"a haystack of {max(self.pairs)} pairs takes {longest} tokens and {spare} to answer, {lm.name} reads "
                f"{window}; pass at most {most} pairs (nothing is cut: that would delete needles)"
            )
        for done, ((variant, example), ids) in enumerate(zip(grid, prompts, strict=True)):
            response = self._answer(lm, ids, _new_tokens(lm, example))
            if self.form == "complete" and example.many:
                response = f'["{response}'
            found = score_list(response, example.answers) if example.many else score_value(response, example.answers[0])
            text = example.haystack.text
            yield Needle(example.task, variant, len(example.haystack.pairs), len(text), ids.shape[1], response, found)
            progress("questions", done + 1, len(grid))

    def _ids(self, lm: CausalLM, example: Example) -> Tensor:
        text = example.completion if self.form == "complete" else example.prompt
        return lm.encode(text, chat=self.form == "chat")

    @torch.inference_mode()
    def _answer(self, lm: CausalLM, ids: Tensor, new: int) -> str:
        model: Any = lm.model
        with nullcontext() if self.policy is None else self.policy(model):
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )
        return str(lm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))

    # -- pictures --

    def _figures(
        self, asked: Sequence[Needle], limits: Mapping[str, Mapping[str, float]], characters: Mapping[int, int]
    ) -> Iterator[Figure]:
        here, lengths = environment(), sorted(characters)
        series = []
        for task in dict.fromkeys(n.task for n in asked):
            scores = [bootstrap([n.found.score for n in asked if n.task == task and n.pairs == p]) for p in lengths]
            series.append(
                {
                    "name": task,
                    "x": [characters[p] for p in lengths],
                    "y": [score.value for score in scores],
                    "low": [score.low for score in scores],
                    "high": [score.high for score in scores],
                }
            )
        common: dict[str, Any] = {"job": "audit", "method": "needle-threading", "environment": here}
        yield Figure(
            **common,
            name="needles-by-length",
            title="What is found, by length of the haystack",
            caption="Mean score with its 95% interval over haystacks and variants.",
            kind="curve",
            data={"x_label": "characters of haystack", "y_label": "score", "series": series},
        )
        for task, by_variant in limits.items():
            names = list(by_variant)
            cells: dict[tuple[str, int], list[float]] = {}
            for n in asked:
                if n.task == task:
                    cells.setdefault((n.variant, n.pairs), []).append(n.found.score)
            z = [[float(np.mean(cells[variant, pairs])) for pairs in lengths] for variant in names]
            yield Figure(
                **common,
                name=f"needles-{task}",
                title=f"{task.capitalize()}: score by length and variant",
                caption=f"Effective limit at {self.threshold:g}, in characters: "
                + ", ".join(f"{v} {limit:.0f}" for v, limit in by_variant.items()),
                kind="heatmap",
                data={
                    "x_label": "characters of haystack",
                    "y_label": "variant",
                    "z": z,
                    "z_label": "score",
                    "x": [str(characters[p]) for p in lengths],
                    "y": names,
                },
            )
            yield Figure(
                **common,
                name=f"contour-{task}",
                title=f"{task.capitalize()}: effective context limit",
                caption=f"The length up to which the score stays at {self.threshold:g}, for every variant.",
                kind="bars",
                data={
                    "y_label": "characters",
                    "categories": names,
                    "series": [{"name": f"limit at {self.threshold:g}", "y": list(by_variant.values())}],
                },
            )

    # -- for the laws --

    @classmethod
    def tiny(cls) -> NeedleThreading:
        """Ask a few questions about short keys."""
        return cls(pairs=(4, 6), depths=(0, 100), needles=(2,), steps=(2,), repeats=1, hex_digits=4)

    @classmethod
    def tiny_subject(cls) -> CausalLM:
        """Make a random model over bytes."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        bytes_only = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
        bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bytes_only.decoder = decoders.ByteLevel()
        model = tiny_causal_lm(vocab_size=256, max_position_embeddings=1024)
        return CausalLM(model, PreTrainedTokenizerFast(tokenizer_object=bytes_only), "bytes")


def examples(audit: NeedleThreading) -> Iterator[tuple[str, Example]]:
    """Yield the questions of a grid, each with the name of its variant; equal settings give equal questions."""
    for pairs in sorted(audit.pairs):
        for repeat in range(audit.repeats):
            seed = audit.seed + repeat
            haystack = make_haystack(pairs, seed, audit.hex_digits)
            for task in audit.tasks:
                if task == "single":
                    for depth in audit.depths:
                        yield f"depth {depth:g}%", single_needle(haystack, depth)
                elif task == "multiple":
                    for number in audit.needles:
                        yield f"{number} needles", multiple_needles(haystack, number, audit.placement, seed)
                elif task == "conditional":
                    for number in audit.needles:
                        yield f"{number} needles", conditional_needles(haystack, number, audit.placement, seed)
                elif task == "thread":
                    for steps in audit.steps:
                        yield f"{steps} steps", thread(haystack, steps, audit.direction, seed)
                else:
                    for steps in audit.steps:
                        made = multi_thread(haystack, audit.threads, steps, audit.direction, seed)
                        yield f"{audit.threads} threads of {steps}", made


def _subject(subject: Any, name: str) -> CausalLM:
    if not isinstance(subject, CausalLM):
        told = name or repr(subject)[:60]
        raise UserError(f"{told} is no language model with a tokenizer; load one with mintage.models.load_causal_lm")
    return subject


def _window(lm: CausalLM) -> int | None:
    return getattr(lm.model.config.get_text_config(decoder=True), "max_position_embeddings", None)


def _new_tokens(lm: CausalLM, example: Example) -> int:
    """Tokens of the answer, and a few for a beginning that is not scored against it."""
    text = str(list(example.answers)) if example.many else example.answers[0]
    return len(lm.encode(text, chat=False)[0]) + 6


def _rows(asked: Sequence[Needle]) -> list[dict[str, Cell]]:
    rows: list[dict[str, Cell]] = []
    for task, variant, pairs in dict.fromkeys((n.task, n.variant, n.pairs) for n in asked):
        mine = [n for n in asked if (n.task, n.variant, n.pairs) == (task, variant, pairs)]
        score = bootstrap([n.found.score for n in mine])
        rows.append(
            {
                "task": task,
                "variant": variant,
                "pairs": pairs,
                "characters": mine[0].characters,
                "tokens": round(float(np.mean([n.tokens for n in mine]))),
                "score": score.value,
                "low": score.low,
                "high": score.high,
                "lenient": float(np.mean([n.found.lenient for n in mine])),
                "precision": float(np.mean([n.found.precision for n in mine])),
                "exact": float(np.mean([n.found.exact for n in mine])),
                "n": len(mine),
            }
        )
    return rows


def tokenizer_report(tokenizers: Mapping[str, Callable[[str], int]], texts: Mapping[str, str]) -> list[dict[str, Cell]]:
    """Count the same texts in every tokenizer.

    Parameters
    ----------
    tokenizers
        By name, a function that counts the tokens of a text, special tokens left out.
    texts
        By name, e.g. prose and a haystack.

    Returns
    -------
    list
        One row per tokenizer and text: tokens, and characters per token.

    Raises
    ------
    UserError
        A text is empty.
    """
    rows: list[dict[str, Cell]] = []
    for text_name, text in texts.items():
        if not text:
            raise UserError(f"the text {text_name!r} is empty; there is nothing to count")
        for name, count in tokenizers.items():
            tokens = count(text)
            rows.append(
                {
                    "tokenizer": name,
                    "text": text_name,
                    "characters": len(text),
                    "tokens": tokens,
                    "characters per token": len(text) / tokens,
                }
            )
    return rows
