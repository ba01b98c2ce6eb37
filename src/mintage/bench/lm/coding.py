"""What the study of PyCoder measures: whether half-typed code has types, and how much of held-out code is right."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer

from mintage.bench.lm.trained import trained_folder
from mintage.data import texts
from mintage.lm.core.code_accuracy import right_tokens
from mintage.lm.core.code_metrics import line_metrics
from mintage.lm.core.code_windows import without_comments
from mintage.lm.core.completion import complete_code
from mintage.lm.core.python_lexer import lex_python
from mintage.lm.core.token_types import LABELS
from mintage.lm.training.pycoder import PyCoderTraining
from mintage.measure.figure import Figure
from mintage.measure.statistics import Interval
from mintage.measure.study import POINTS, Column, Measure, Run, Statistic
from mintage.models import fetched

__all__ = ["HeldOutCode", "beginnings", "lines_completed", "points_of_files", "tokens_judged", "type_stream"]


class HeldOutCode:
    """Python's own library: files to learn from, and others to judge by.

    Parameters
    ----------
    files
        Of each kind at most.
    """

    def __init__(self, files: int) -> None:
        self.files = files

    @cached_property
    def learnt(self) -> list[str]:
        """Files to learn from, without comments, five times as many; taken evenly from all."""
        every = [*texts("python-code", "train")]
        return [without_comments(text) for text in every[:: max(len(every) // (5 * self.files), 1)]][: 5 * self.files]

    @cached_property
    def whole(self) -> list[str]:
        """Files to judge by, as they are."""
        return [text for text in texts("python-code", "held-out") if len(text) > 200][: self.files]

    @cached_property
    def held(self) -> list[str]:
        """The same without comments, the first 6,000 letters of each."""
        return [bare[:6000] for text in self.whole if len(bare := without_comments(text)) > 100]

    @cached_property
    def mark(self) -> str:
        """Changes with what is learnt from."""
        return hashlib.sha256("\0".join(self.learnt).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def beginnings(arms: Sequence[str], count: int) -> Measure:
    """Cut files at random letters, and ask for types; column ``fails``. An arm is the name of its `LABELS`."""

    def places(run: Run) -> Mapping[Any, str]:
        draw = np.random.default_rng(run.seed)
        files = run.subject.whole
        found = {}
        for number in range(count):
            text = files[draw.integers(len(files))]
            found[number] = text[: draw.integers(1, len(text))]
        return found

    def of(run: Run, arm: str, text: str) -> dict[str, float]:
        cover = LABELS[arm].cover(text)
        whole = cover is not None and "".join(text[start:end] for start, end, _ in cover) == text
        return {"fails": float(not whole)}

    return Measure(name="beginnings", units=places, of=of, arms=arms)


def _coder(run: Run, training: PyCoderTraining, seed: int, folder: Path) -> tuple[Any, Any]:
    seeded, code = replace(training, seed=seed), run.subject
    place, _ = trained_folder(seeded, code.mark, lambda work: seeded.fit(code.learnt, work), folder, run.progress)
    return (
        fetched(AutoModelForCausalLM, place, "train it again").eval(),
        fetched(AutoTokenizer, place, "train it again"),
    )


def _seeds(seeds: int) -> Any:
    return lambda run: {f"seed {seed}": seed for seed in range(run.seed, run.seed + seeds)}


def tokens_judged(arms: Sequence[str], seeds: int, folder: Path) -> Measure:
    """Train every arm with every seed, and read held-out files; column ``right``: of each file the share of tokens."""

    def of(run: Run, training: PyCoderTraining, seed: int) -> dict[str, Any]:
        model, tokenizer = _coder(run, training, seed, folder)
        return {"right": [right_tokens(model, tokenizer, text, training.window).mean() for text in run.subject.held]}

    return Measure(name="tokens", units=_seeds(seeds), of=of, arms=arms)


def lines_completed(arms: Sequence[str], seeds: int, lines: int, folder: Path) -> Measure:
    """Complete lines from a random token on; columns ``exact`` (0 or 1) and ``similarity`` (0 to 1)."""

    def of(run: Run, training: PyCoderTraining, seed: int) -> dict[str, Any]:
        model, tokenizer = _coder(run, training, seed, folder)
        draw = np.random.default_rng(run.seed)
        exact, similar = [], []
        for _ in range(lines):
            text = run.subject.held[draw.integers(len(run.subject.held))]
            lexed = lex_python(text)
            inside = [a for kind, a in zip(lexed.types, lexed.starts, strict=True) if kind in ("NAME", "KEYWORD") and a]
            start = inside[draw.integers(len(inside))]
            true = text[start:].partition("\n")[0]
            found = complete_code(model, tokenizer, text[:start], most=32)
            scores = line_metrics([true], [[one.text for one in found]])
            exact.append(scores.exact / 100)
            similar.append(scores.similarity / 100)
        return {"exact": exact, "similarity": similar}

    return Measure(name="lines", units=_seeds(seeds), of=of, arms=arms)


def points_of_files(seeds: int) -> Statistic:
    """Return the statistic of shares by seed and file: the difference of means, plus and minus two standard errors.

    The standard error is the larger one of those over files and over seeds.
    """

    def of_two(ours: Column, rival: Column) -> Interval:
        apart = 100 * (ours - rival).reshape(seeds, -1)
        errors = [part.std(ddof=1) / len(part) ** 0.5 for part in (apart.mean(0), apart.mean(1)) if len(part) > 1] or [
            0.0
        ]
        value = float(apart.mean())
        return Interval(value - 2 * float(max(errors)), value, value + 2 * float(max(errors)))

    return Statistic("points", True, of_two, POINTS.of_one)


def type_stream(run: Run, letters: int = 600) -> Figure:
    """Draw the types over the beginning of a held-out file."""
    text = run.subject.whole[0][:letters]
    tokens = [
        {"text": text[start:end], "value": None, "group": kind}
        for start, end, kind in LABELS["lexer"].cover(text) or ()
    ]
    caption = "Every letter of half-typed code has a lexical type; a syntax tree needs the whole file."
    data = {"kind": "token-map", "data": {"tokens": tokens}}
    return run.figure(name="types", title="Token types over code", caption=caption, **data)
