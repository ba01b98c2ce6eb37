r"""Number tokens: how a tokenizer cuts numbers of every length, and which digit strings are single tokens.

Models add better when digits are grouped from the right (10|642|122): then a token's place value does not depend on how
long the number is. The usual pattern ``\p{N}{1,3}`` groups from the left (106|421|22).

Source: Singh & Strouse, "Tokenization counts", arXiv 2402.14903. In `mintage.audit.core`: the grouping and the paper's
number formats (`digits`), turning a tokenizer round (`r2l`), the paper's prompts, problems and analysis of errors
(`number_problems`). Not here: number embeddings, and models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mintage.audit.contract import Audit, Report, tokenizer_of
from mintage.audit.core.digits import DIRECTIONS, digits_of, group_digits, number_tokenizer, tokenizer_cut
from mintage.errors import UserError
from mintage.measure.figure import Figure
from mintage.options import option
from mintage.progress import Progress, silent

__all__ = ["NumberTokens", "kind_of"]

KINDS = ("left to right", "right to left", "both", "single digits", "irregular")
"""How a number is cut; ``both`` where the two directions agree (length at most the size, or a multiple of it)."""

_COLUMNS = ("l2r", "r2l", "both", "digits", "irregular")


def kind_of(groups: Sequence[str], size: int = 3) -> str:
    """Name the cut of a number: one of `KINDS`."""
    number = "".join(groups)
    left, right = (list(groups) == group_digits(number, size, side) for side in DIRECTIONS)
    if left or right:
        return "both" if left and right else "left to right" if left else "right to left"
    return "single digits" if all(len(group) == 1 for group in groups) else "irregular"


@dataclass(frozen=True, kw_only=True, eq=False)
class NumberTokens(Audit):
    """Report how a tokenizer cuts numbers: from the left, from the right, into digits, or irregularly.

    [dim]Examples[/dim]

      mintage audit number-tokens smollm2

      mintage audit number-tokens tokenizer.json --prefix " " --out report.html

    Next: [bold]mintage audit to-r2l tokenizer.json --out folder[/bold]
    """

    size: int = option(3, "Digits per group that the directions are told for.", least=1)
    max_length: int = option(15, "Digits of the longest number.", least=1, most=1000)
    samples: int = option(1000, "Numbers per length; of lengths that have no more, every one.", least=1)
    prefix: str = option(
        "", "Text in front of every number, e.g. a space: some tokenizers glue it to the first digits."
    )
    examples: tuple[str, ...] = option(
        ("10642122", "2024", "1234567", "999999+1=1000000", "3.14159265"), "Texts whose tokens are drawn."
    )
    seed: int = option(0, "Of the numbers drawn.", least=0, below=2**63)

    def __post_init__(self) -> None:
        super().__post_init__()
        if digits_of(self.prefix):
            raise UserError(f"prefix {self.prefix!r} holds a digit, which would join the number; pass e.g. ' '")

    def run(self, subject: Any, *, name: str = "", progress: Progress = silent) -> Report:
        """Audit a ``tokenizers.Tokenizer``, or a transformers tokenizer that has one inside."""
        tokenizer = tokenizer_of(subject)
        table: list[dict[str, Any]] = []
        kinds: dict[int, Counter[str]] = {}
        for length in range(1, self.max_length + 1):
            progress("cutting numbers", length, self.max_length)
            kinds[length], row = self._length(tokenizer, length)
            table.append(row)
        coverage = {w: self._coverage(tokenizer, w) for w in range(1, 4)}
        telling = sum((kinds[n] for n in kinds if n > self.size and n % self.size), Counter[str]())
        total = telling.total()
        findings: dict[str, Any] = {
            "cut": _verdict(telling, self.size),
            **{f"share {kind}": telling[kind] / total if total else 0.0 for kind in KINDS if kind != "both"},
            "most cuts of one length": max(row["cuts"] for row in table),
            **{f"single tokens of {w} digit{'s'[: w > 1]}": held for w, held in coverage.items()},
            "single tokens": sum(coverage.values()),
            "example": f"10642122 = {'|'.join(tokenizer_cut(tokenizer, ['10642122'], self.prefix)[0])}",
        }
        notes = [
            f"Shares are over numbers whose length tells the directions apart: above {self.size}, no multiple of it.",
            "cuts: distinct cuts among the numbers of a length; tokens: per number.",
            f"Up to {self.samples} numbers per length without leading zeros; 1110 strings of 1 to 3 digits in all.",
        ]
        figures = [self._heatmap(kinds), self._examples(tokenizer)]
        return Report(
            audit="number-tokens",
            subject=name or "tokenizer",
            findings=findings,
            table=table,
            figures=figures,
            notes=notes,
        )

    def _numbers(self, length: int) -> list[str]:
        """Draw numbers of this length, no two alike."""
        low, high = (10 ** (length - 1) if length > 1 else 0), 10**length
        if high - low <= self.samples:
            return [str(n) for n in range(low, high)]
        generator = np.random.default_rng([self.seed, length])
        drawn: dict[str, None] = {}
        while len(drawn) < self.samples:
            first = generator.integers(1, 10, size=(self.samples, 1))
            rest = generator.integers(0, 10, size=(self.samples, length - 1))
            rows = np.concatenate([first, rest], axis=1)
            drawn |= dict.fromkeys("".join(map(str, row)) for row in rows.tolist())
        return list(drawn)[: self.samples]

    def _length(self, tokenizer: Tokenizer, length: int) -> tuple[Counter[str], dict[str, Any]]:
        numbers = self._numbers(length)
        cuts = tokenizer_cut(tokenizer, numbers, self.prefix)
        kinds = Counter(
            kind_of(groups, self.size) if "".join(groups) == number else "irregular"
            for number, groups in zip(numbers, cuts, strict=True)
        )
        patterns = Counter("+".join(str(len(group)) for group in groups) for groups in cuts)
        return kinds, {
            "length": length,
            "numbers": len(numbers),
            **{column: kinds[kind] / len(numbers) for column, kind in zip(_COLUMNS, KINDS, strict=True)},
            "cuts": len(patterns),
            "usual_cut": patterns.most_common(1)[0][0],
            "tokens": sum(map(len, cuts)) / len(cuts),
        }

    def _coverage(self, tokenizer: Tokenizer, width: int) -> int:
        strings = [f"{n:0{width}d}" for n in range(10**width)]
        cuts = tokenizer_cut(tokenizer, strings, self.prefix)
        return sum(groups == [string] for string, groups in zip(strings, cuts, strict=True))

    def _heatmap(self, kinds: dict[int, Counter[str]]) -> Figure:
        return Figure(
            job="audit",
            method="number-tokens",
            name="number-tokens-cuts",
            title="How numbers are cut, by their length",
            caption=f"Share of numbers; groups of {self.size}. Where both directions agree, the cut is called both.",
            kind="heatmap",
            data={
                "x_label": "digits",
                "y_label": "cut",
                "z_label": "share of numbers",
                "x": list(kinds),
                "y": list(KINDS),
                "z": [[counts[kind] / counts.total() for counts in kinds.values()] for kind in KINDS],
            },
        )

    def _examples(self, tokenizer: Tokenizer) -> Figure:
        tokens = []
        for text in self.examples:
            encoding = tokenizer.encode(self.prefix + text, add_special_tokens=False)
            for token in encoding.tokens:
                width = len(digits_of(token))
                group = f"{width} digit{'s'[: width > 1]}" if width else None
                tokens.append({"text": token, "value": min(width / self.size, 1.0) if width else None, "group": group})
            tokens.append({"text": " ", "value": None, "group": None})
        return Figure(
            job="audit",
            method="number-tokens",
            name="number-tokens-examples",
            title="Numbers in tokens",
            caption="Each box is a token, coloured by how many digits it holds.",
            kind="token-map",
            data={"tokens": tokens},
        )

    @classmethod
    def tiny(cls) -> NumberTokens:
        """Few lengths, few numbers."""
        return cls(max_length=8, samples=20)

    @classmethod
    def tiny_subject(cls) -> Tokenizer:
        """A byte tokenizer that cuts from the left."""
        return number_tokenizer("l2r")


def _verdict(kinds: Counter[str], size: int) -> str:
    """Say in a few words how long numbers are cut."""
    if not kinds:
        return "not told apart"
    kind, count = kinds.most_common(1)[0]
    if count < 0.99 * kinds.total():
        return "irregular"
    return f"{kind}, groups of {size}" if kind in ("left to right", "right to left") else kind
