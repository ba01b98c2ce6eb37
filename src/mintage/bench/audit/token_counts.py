"""How many characters a token holds of prose and of a haystack, in several tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mintage.bench.audit.mixtures import trained
from mintage.bench.audit.published import published
from mintage.data import texts
from mintage.data.haystack import make_haystack
from mintage.errors import UserError
from mintage.measure import Figure
from mintage.measure.figure import bars
from mintage.measure.study import Finding, Run, at_least
from mintage.tokenizer_files import load_tokenizer

__all__ = ["characters_per_token", "count_figure", "count_rows", "order_changes", "prose_and_keys"]

PerToken = Mapping[str, Mapping[str, float]]
"""Characters per token: text, then tokenizer."""


def prose_and_keys(folder: Path | None = None, characters: int = 200_000) -> PerToken:
    """Count the beginning of WikiText-2, and 200 pairs of UUIDs.

    Tokenizers are SmolLM2's (single digits), byte-level BPE trained here on the prose (numbers whole), published ones
    in `folder`, and bytes.
    """
    prose = ""
    for line in texts("wikitext2", "train"):
        if len(prose) >= characters:
            break
        prose += line
    prose = prose[:characters]
    found = {"smollm2": load_tokenizer("smollm2"), "byte-level BPE 8k": trained([prose], 8000 - 256)}
    found |= {name: load_tokenizer(file) for name, file in published(folder).items()}
    counters = {name: _counter(tokenizer) for name, tokenizer in found.items()}
    counters["bytes"] = lambda text: len(text.encode())
    return characters_per_token(counters, {"prose": prose, "UUIDs": make_haystack(200, 0).text})


def _counter(tokenizer: Tokenizer) -> Callable[[str], int]:
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def characters_per_token(counters: Mapping[str, Callable[[str], int]], texts: Mapping[str, str]) -> PerToken:
    """Count the same texts in every tokenizer.

    Parameters
    ----------
    counters
        By name of the tokenizer, a function that counts the tokens of a text, special tokens left out.
    texts
        By name, e.g. prose and a haystack.

    Raises
    ------
    UserError
        A text is empty.
    """
    for name, text in texts.items():
        if not text:
            raise UserError(f"the text {name!r} is empty; there is nothing to count")
    return {name: {one: len(text) / count(text) for one, count in counters.items()} for name, text in texts.items()}


def order_changes(first: Mapping[str, float], second: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the pairs of tokenizers of which one holds more characters per token of one text, fewer of the other."""
    return [(a, b) for a, b in combinations(first, 2) if (first[a] - first[b]) * (second[a] - second[b]) < 0]


def count_rows(per: PerToken) -> Iterator[Finding]:
    """Make rows of what `prose_and_keys` counted."""
    names = list(per["UUIDs"])
    common: Any = {"model": "", "data": "200 pairs of UUIDs; WikiText-2"}
    for name in names:
        yield Finding(
            metric=f"characters per token on UUIDs, {name}",
            value=per["UUIDs"][name],
            unit="characters",
            baseline={"the same tokenizer on prose": per["prose"][name]},
            **common,
        )
    changed = order_changes(per["prose"], per["UUIDs"])
    yield Finding(
        metric="pairs of tokenizers whose order on prose is turned round on UUIDs",
        value=float(len(changed)),
        unit="pairs",
        baseline={"all pairs": float(len(names) * (len(names) - 1) // 2)},
        n=len(names),
        claim="tokenizers rank differently by tokens on prose and on UUIDs of as many characters",
        holds=at_least(1),
        note="; ".join(f"{a} and {b}" for a, b in changed),
        **common,
    )


def count_figure(run: Run, per: PerToken) -> Figure:
    """Draw the characters per token."""
    return run.figure(
        name="characters-per-token",
        title="Characters per token, by tokenizer",
        caption="A context of so many tokens holds far fewer characters of UUIDs than of prose, unequally fewer.",
        **bars("characters per token", list(per["UUIDs"]), {text: some.values() for text, some in per.items()}),
    )
