"""A vocabulary of a million rows: milliseconds per search against the whole product, and how much is found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mintage.bench.retrofit.measures import documents
from mintage.bench.retrofit.merged import Readers
from mintage.data import texts
from mintage.measure import bootstrap, paired_time
from mintage.measure.study import Finding, Measure, Run
from mintage.retrofit.core.large_vocabulary import LargeVocabHead, extended_vocabulary

__all__ = ["PARTS", "measured_search", "rows_of_search"]

PARTS = {"ivf": (1 / 8, 1 / 3), "hnsw": (1.0,)}
"""Of the clusters searched, by index; the authors search 250 of 2,000."""


def _many_rows(readers: Readers, number: int, seed: int) -> Tensor:
    """Output embeddings: the model's own, those of words of many languages, and means of random parts for the rest."""
    own = readers.source.output.float()
    words_of = texts("tatoeba", "train")
    maker = readers.providers[readers.trained]
    words = extended_vocabulary(readers.lm.tokenizer, list(words_of), max(1, (number - len(own)) // 4))
    made = [maker.rows(readers.source, words[i : i + 4096]).output.float() for i in range(0, len(words), 4096)]
    rows = torch.cat([own, *made])[:number]
    draw = torch.Generator().manual_seed(seed)
    left = number - len(rows)
    parts = torch.randint(len(own), (left, 3), generator=draw)
    return torch.cat([rows, torch.nn.functional.embedding_bag(parts, own, mode="mean")]) if left else rows


def _states(readers: Readers, number: int, seed: int) -> Tensor:
    """Last hidden states of the model on Wikipedia."""
    model: Any = readers.lm.model
    found = []
    for document in documents("prose", 8, size=1024, seed=seed):
        ids = readers.merger.ids([document.text], special_tokens=False)
        found.append(model.base_model(torch.tensor(ids), use_cache=False).last_hidden_state[0].float())
    states = torch.cat(found)
    return states[torch.linspace(0, len(states) - 1, number).long()]


def measured_search(index: str, *, rows: int, queries: int, searches: int) -> Measure:
    """Make the measure of an index over many rows.

    Its columns are whether the ``first`` is found and the share found of ``twenty``, by query, and seconds by search,
    ``exact`` and ``some``, each with index and part of the clusters that are searched.

    Parameters
    ----------
    index
        One of `PARTS`; also the name of the arm.
    rows, queries, searches
        Of the vocabulary, hidden states looked up, and timings.
    """

    @torch.inference_mode()
    def measure(run: Run, kind: str, _: Any) -> Mapping[str, Any]:
        embeddings = _many_rows(run.subject, rows, run.seed)
        states = _states(run.subject, queries, run.seed)
        whole, some = LargeVocabHead(embeddings, "exact", 20), LargeVocabHead(embeddings, kind, 20)
        wanted = whole.topk(states)[1]
        turns, found = cycle(states), {}
        for part in PARTS[kind]:
            some.probes = max(1, round(part * some.clusters))
            got = some.topk(states)[1]
            arms = {name: lambda h=head: h.topk(next(turns)[None]) for name, head in (("exact", whole), (kind, some))}
            took = paired_time(arms, repeats=searches, warmup=2)
            columns = {
                "first": (wanted[:, 0] == got[:, 0]).float(),
                "twenty": (wanted[:, :, None] == got[:, None, :]).any(-1).float().mean(-1),
                "exact": took.pairs.values("exact"),
                "some": took.pairs.values(kind),
            }
            found |= {f"{name}, {part}": column for name, column in columns.items()}
        return found

    return Measure(name=f"search: {index}", units=lambda run: {rows: rows}, of=measure, arms=(index,))


def rows_of_search(run: Run, index: str, rows: int) -> Iterator[Finding]:
    """Yield seconds of a search over those of the whole product, and how much is found."""
    for part in PARTS[index]:
        exact, some, first, twenty = (run.column(index, f"{n}, {part}") for n in ("exact", "some", "first", "twenty"))
        ratio, found = bootstrap(some / exact, np.median), {"largest logit": first, "twenty largest logits": twenty}
        where = f"{index}, {rows} rows" + (f", {part:.1%} of the clusters" if index == "ivf" else "")
        common: dict[str, Any] = {
            "baseline": {"exact": 1.0},
            "settings": {"rows": rows, "index": index, "k": 20, "part": part},
            "data": "last hidden states on WikiText-2 test",
        }
        told: dict[str, Any] = {}
        fast_and_right = bool(ratio.high < 1 and first.mean() >= 0.95)
        if index == "ivf":
            told = {
                "claim": f"among a million rows, a search of {part:.1%} of the clusters takes less time than the whole "
                "product and finds the largest logit at least 95 times in 100",
                "holds": lambda run, holds=fast_and_right: holds,
            }
        yield Finding(
            metric=f"seconds of a search over those of the whole product, {where}",
            value=ratio,
            unit="x",
            more_is_better=False,
            n=len(exact),
            note=f"median ms: exact {1e3 * np.median(exact):.1f}, {index} {1e3 * np.median(some):.1f}; found: the "
            f"first {first.mean():.1%}, of the first twenty {twenty.mean():.1%}",
            **common,
            **told,
        )
        for what, recall in found.items():
            yield Finding(
                metric=f"{what} found, {where}", value=bootstrap(recall), unit="share", n=len(recall), **common
            )
