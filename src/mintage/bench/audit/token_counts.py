"""How many tokens a haystack takes beside prose, in several tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from mintage.audit.contract import Cell
from mintage.bench.audit.published import published
from mintage.data import texts
from mintage.data.haystack import make_haystack
from mintage.errors import UserError
from mintage.measure import Figure
from mintage.measure.study import Finding, Run, at_least
from mintage.tokenizer_files import load_tokenizer

__all__ = ["count_figure", "count_rows", "count_tokens", "order_changes", "prose", "token_counters", "tokenizer_report"]


def prose(characters: int = 200_000) -> str:
    """Return the beginning of WikiText-2."""
    text = ""
    for line in texts("wikitext2", "train"):
        text += line
        if len(text) >= characters:
            break
    return text[:characters]


def token_counters(text: str, folder: Path | None = None) -> dict[str, Callable[[str], int]]:
    """Return counters: SmolLM2's (single digits), byte-level BPE trained here on the text (numbers whole), and bytes.

    Published tokenizers in `folder` join them.
    """
    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    own.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=8000, initial_alphabet=alphabet, show_progress=False)
    )
    found = {"smollm2": load_tokenizer("smollm2"), "byte-level BPE 8k": own}
    found |= {name: load_tokenizer(file) for name, file in published(folder).items()}

    def counter(tokenizer: Tokenizer) -> Callable[[str], int]:
        return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)

    return {name: counter(tokenizer) for name, tokenizer in found.items()} | {"bytes": lambda text: len(text.encode())}


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


def count_tokens(folder: Path | None = None) -> list[dict[str, Cell]]:
    """Count prose and a haystack in all tokenizers."""
    text = prose()
    return tokenizer_report(token_counters(text, folder), {"prose": text, "UUIDs": make_haystack(200, 0).text})


def order_changes(rows: Sequence[Mapping[str, Any]], first: str, second: str) -> list[tuple[str, str]]:
    """Return the pairs of tokenizers of which one needs fewer tokens on one text and more on the other."""
    tokens = {(row["text"], row["tokenizer"]): row["tokens"] for row in rows}
    names = list(dict.fromkeys(row["tokenizer"] for row in rows))
    return [
        (a, b)
        for a, b in combinations(names, 2)
        if (tokens[first, a] - tokens[first, b]) * (tokens[second, a] - tokens[second, b]) < 0
    ]


def count_rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Make rows of what `tokenizer_report` counted on prose and on UUIDs."""
    per = _per_token(rows)
    names, common = list(per["UUIDs"]), {"model": "", "data": "200 pairs of UUIDs; WikiText-2"}
    for name in names:
        yield Finding(
            **common,
            metric=f"characters per token on UUIDs, {name}",
            value=per["UUIDs"][name],
            unit="characters",
            baseline={"the same tokenizer on prose": per["prose"][name]},
        )
    changed = order_changes(rows, "prose", "UUIDs")
    yield Finding(
        **common,
        metric="pairs of tokenizers whose order on prose is turned round on UUIDs",
        value=float(len(changed)),
        unit="pairs",
        baseline={"all pairs": float(len(names) * (len(names) - 1) // 2)},
        n=len(names),
        claim="tokenizers rank differently by tokens on prose and on UUIDs of as many characters",
        holds=at_least(1),
        note="; ".join(f"{a} and {b}" for a, b in changed),
    )


def count_figure(run: Run, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the characters per token."""
    per = _per_token(rows)
    return run.figure(
        name="characters-per-token",
        title="Characters per token, by tokenizer",
        caption="A context of so many tokens holds far fewer characters of UUIDs than of prose, unequally fewer.",
        kind="bars",
        data={
            "y_label": "characters per token",
            "categories": list(per["UUIDs"]),
            "series": [{"name": text, "y": list(per[text].values())} for text in ("prose", "UUIDs")],
        },
    )


def _per_token(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    per: dict[str, dict[str, float]] = {}
    for row in rows:
        per.setdefault(row["text"], {})[row["tokenizer"]] = float(row["characters per token"])
    return per
