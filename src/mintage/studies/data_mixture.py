"""Does the merge list give away the mixture? Tokenizers trained here on known mixtures, and real ones beside them.

Controls: `tokenizers`' BPE trainer learns 1,000 merges from 3 to 5 categories in random shares; the audit sees the
merges and a sample of every category that shares no document with the training text. Beside it, on the same controls:
uniform shares, random guesses, a regression on encoding efficiency, and the vocabulary sorted by category.

Scaled down from the paper: samples of 95 to 300 kB instead of 1 GB, training text of up to 600 kB instead of 10 GB. On
other seeds, 2,000 merges, 3 MB of training text and all there is of the large categories left the error where it is:
the small categories set it.
"""

from __future__ import annotations

import json
import os
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from mintage.audit.data_mixture import DataMixture
from mintage.data import Corpus, data_file
from mintage.files import append_line, read_jsonl
from mintage.measure import Figure, Interval, Result, bootstrap
from mintage.measure.environment import environment
from mintage.tokenizer_files import load_tokenizer

__all__ = ["MERGES", "check", "controls"]

MERGES = 1000
"""Merges of a control."""

SIZES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Parts of the sample, for the curve of error against sample size; the whole is measured anyway."""

CONTROLS = 30
TRAINING_BYTES = 600_000
POOL_BYTES = 600_000  # of a category; half trains, half is the sample
REAL_MERGES = 3000
SHIFTED_BYTES, SHIFTED_MERGES = 3_000_000, 250
"""Training text and merges of controls with shifted samples, chosen on other seeds. What a sample's noise adds to the
objective grows with the merges: samples of other sources made it 7 times larger with 1,000, 9 with 500, 11 with 250."""

LANGUAGES = {"ar": "ara", "de": "deu", "el": "ell", "es": "spa", "hi": "hin", "ro": "ron"}
LANGUAGES |= {"ru": "rus", "th": "tha", "tr": "tur", "vi": "vie", "zh": "cmn"}
GENESIS = {"de": "german", "fi": "finnish", "fr": "french", "pt": "portuguese", "sv": "swedish"}
ENGLISH, CODE = "English", "Python"

OURS, UNIFORM, RANDOM = "data-mixture", "uniform shares", "random guess"
EFFICIENCY, VOCABULARY = "encoding efficiency (regression)", "vocabulary sorted by category"

Pool = dict[str, list[str]]


# -- text --------------------------------------------------------------------------------------------------------------


def _take(documents: Sequence[str], size: int) -> list[str]:
    """Return the first documents that hold about `size` bytes."""
    held, out = 0, []
    for text in documents:
        if held >= size:
            break
        out.append(text)
        held += len(text.encode())
    return out


def _bytes(documents: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in documents)


def _paragraphs(language: str) -> list[str]:
    """Paragraphs and questions of XQuAD; a paragraph is cut at its full stops."""
    out: list[str] = []
    for row in read_jsonl(data_file("xquad.jsonl.gz")):
        if row["lang"] == language:
            context = row["context"].replace("। ", "।\n").replace(". ", ".\n").replace("。", "。\n")
            out += [line + "\n" for line in context.split("\n") if line]
            out += [question["question"] + "\n" for question in row["qas"]]
    return out


def _genesis(language: str) -> list[str]:
    rows = read_jsonl(data_file("long_docs.jsonl.gz"))
    texts = [row["text"] for row in rows if row["file"] == f"{GENESIS[language]}.txt"]
    return [line + "\n" for text in texts for line in text.splitlines() if line.strip()]


def _tatoeba(code: str) -> list[str]:
    return [text + "\n" for text in Corpus(data_file("tatoeba_parallel.jsonl.gz"), where={"lang": code})]


def _python(*folders: str) -> list[str]:
    """The interpreter's own library in pieces of 30 lines; without folders, the modules at its top."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(root.glob("*.py")) if not folders else sorted(p for f in folders for p in (root / f).glob("*.py"))
    pieces = []
    for file in files:
        lines = file.read_text(encoding="utf-8", errors="ignore").splitlines(keepends=True)
        pieces += ["".join(lines[i : i + 30]) for i in range(0, len(lines), 30)]
    return pieces


def _wikitext() -> list[str]:
    names = "wikitext2_valid.txt.gz", "wikitext2_test_head.txt.gz"
    return [line for name in names for line in Corpus(data_file(name)) if line.strip()]


def _speeches() -> list[str]:
    rows = read_jsonl(data_file("long_docs.jsonl.gz"))
    texts = [row["text"] for row in rows if row["corpus"] in ("state_union", "inaugural")]
    return [line + "\n" for text in texts for line in text.splitlines() if line.strip()]


def _pools(generator: np.random.Generator) -> Pool:
    """Shuffle the documents of every category."""
    pools = {ENGLISH: _wikitext(), CODE: _python()}
    for language, code in LANGUAGES.items():
        pools[language] = _paragraphs(language) + _tatoeba(code)
    for language in ("fi", "fr", "pt", "sv"):
        pools[language] = _genesis(language)
    out = {}
    for name, documents in pools.items():
        order = generator.permutation(len(documents))
        out[name] = _take([documents[i] for i in order], POOL_BYTES)
    return out


def _halves(documents: list[str]) -> tuple[list[str], list[str]]:
    """Training documents and sample documents; no text is in both."""
    distinct = list(dict.fromkeys(documents))
    return distinct[::2], distinct[1::2]


def _mixture(parts: Pool, shares: np.ndarray, most: int = TRAINING_BYTES) -> tuple[list[str], np.ndarray]:
    """Mix training documents in about these shares of bytes; return them and the exact shares."""
    sizes = np.array([_bytes(part) for part in parts.values()])
    total = min(most, float((sizes / np.maximum(shares, 1e-9)).min()))
    chosen = [_take(part, int(share * total)) for part, share in zip(parts.values(), shares, strict=True)]
    got = np.array([_bytes(part) for part in chosen], float)
    return [text for part in chosen for text in part], got / got.sum()


def _train(texts: Sequence[str], merges: int = MERGES) -> Tokenizer:
    """Train a control: byte-level BPE, GPT-2's cutting."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + merges, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


# -- one control -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Control:
    """What is known of one control: shares of bytes by category, and what the rivals need."""

    truth: list[float]
    inferred: list[float]
    low: list[float]
    high: list[float]
    objective: float
    by_size: list[float]  # squared error at SIZES
    efficiency: list[float]  # bytes per token over that of a tokenizer trained on the category alone
    vocabulary: list[float]  # share of merges that are relatively most frequent in the category


def controls(pools: Pool, *, count: int, seed: int) -> Iterator[tuple[str, Callable[[], Control]]]:
    """Yield the name of every control and a function that trains and audits it."""
    alone: dict[str, float] = {}

    def make(number: int) -> Control:
        generator = np.random.default_rng([seed, number])
        n = (3, 4, 5)[number % 3]
        names = sorted(generator.choice(sorted(pools), n, replace=False).tolist())
        halves = {name: _halves(pools[name]) for name in names}
        texts, truth = _mixture({name: half[0] for name, half in halves.items()}, generator.dirichlet(np.ones(n)))
        samples = {name: half[1] for name, half in halves.items()}
        tokenizer = _train(texts)
        report = DataMixture(samples=samples, bootstrap=10).run(tokenizer)
        inferred = np.array(_column(report, "share of bytes"))
        by_size = []
        for part in SIZES:
            less = {name: _take(texts, int(part * _bytes(texts))) for name, texts in samples.items()}
            found = _column(DataMixture(samples=less, bootstrap=0).run(tokenizer), "share of bytes")
            by_size.append(_mse(found, truth))
        frequencies = []
        efficiency = []
        for name, sample in samples.items():
            ids = np.concatenate([e.ids for e in tokenizer.encode_batch(sample)])
            if name not in alone:
                own = _train(halves[name][0])
                alone[name] = _bytes(sample) / sum(len(e.ids) for e in own.encode_batch(sample))
            efficiency.append(_bytes(sample) / len(ids) / alone[name])
            frequencies.append(np.bincount(ids, minlength=256 + MERGES)[256:] / len(ids))
        seen = np.array(frequencies)[:, np.any(frequencies, axis=0)]
        return Control(
            truth=truth.tolist(),
            inferred=inferred.tolist(),
            low=_column(report, "low"),
            high=_column(report, "high"),
            objective=float(report.findings["objective"] or 0),
            by_size=by_size,
            efficiency=efficiency,
            vocabulary=(np.bincount(seen.argmax(axis=0), minlength=n) / seen.shape[1]).tolist(),
        )

    for number in range(count):
        yield f"control {number}", lambda number=number: make(number)


def _column(report: Any, name: str) -> list[float]:
    return [float(row[name]) for row in report.table]


def _mse(found: Any, truth: Any) -> float:
    return float(np.mean((np.asarray(found) - np.asarray(truth)) ** 2))


def _regression(made: Sequence[Control]) -> list[np.ndarray]:
    """Predict every control's shares from its efficiencies, by a log-linear law fitted on all other controls."""
    x = [np.log(c.efficiency) - np.log(c.efficiency).mean() for c in made]
    y = [np.log(np.maximum(c.truth, 1e-4)) - np.log(np.maximum(c.truth, 1e-4)).mean() for c in made]
    out = []
    for held in range(len(made)):
        others = [i for i in range(len(made)) if i != held] or [held]
        top = sum(float(x[i] @ y[i]) for i in others)
        slope = top / max(sum(float(x[i] @ x[i]) for i in others), 1e-12)
        raw = np.exp(slope * x[held])
        out.append(raw / raw.sum())
    return out


def _shifted(number: int, seed: int) -> tuple[float, float, float, float]:
    """Audit one control with samples of its own sources and of others: both objectives, both squared errors."""
    generator = np.random.default_rng([seed, 1000 + number])
    trained_on = {ENGLISH: _wikitext(), CODE: _python(), "de": _paragraphs("de") + _tatoeba(LANGUAGES["de"])}
    elsewhere = {
        ENGLISH: _speeches(),
        CODE: _python("asyncio", "email", "distutils", "unittest", "xml/dom", "multiprocessing", "ctypes"),
        "de": _genesis("de"),
    }
    halves = {
        name: _halves([texts[i] for i in generator.permutation(len(texts))]) for name, texts in trained_on.items()
    }
    shares = generator.dirichlet(np.ones(3))
    texts, truth = _mixture({name: half[0] for name, half in halves.items()}, shares, SHIFTED_BYTES)
    tokenizer = _train(texts, SHIFTED_MERGES)
    own = {name: half[1] for name, half in halves.items()}
    sizes = {name: min(_bytes(own[name]), _bytes(elsewhere[name])) for name in own}
    out = []
    for samples in (own, elsewhere):
        same = {name: _take(sample, sizes[name]) for name, sample in samples.items()}
        report = DataMixture(samples=same, bootstrap=0).run(tokenizer)
        out.append((float(report.findings["objective"] or 0), _mse(_column(report, "share of bytes"), truth)))
    return out[0][0], out[1][0], out[0][1], out[1][1]


# -- real lists --------------------------------------------------------------------------------------------------------

OLDER, NEWER = {"gpt35turbo": "GPT-3.5", "claude": "Claude 2"}, {"gpt4o": "GPT-4o"}


def _real(pools: Pool, name: str) -> dict[str, float]:
    """Shares of English, code and everything else behind a real list, with the same samples for all."""
    samples = {**pools, ENGLISH: [*pools[ENGLISH], *_take(_speeches(), POOL_BYTES), *_paragraphs("en")]}
    tokenizer = load_tokenizer(Path(os.environ["MINTAGE_TOKENIZERS"]) / name / "tokenizer.json")
    report = DataMixture(samples=samples, max_merges=REAL_MERGES, bootstrap=0).run(tokenizer, name=name)
    found = {str(row["category"]): float(row["share of bytes"] or 0) for row in report.table}
    return {
        "English": found.pop(ENGLISH),
        "code": found.pop(CODE),
        "other languages": sum(found.values()),
        "objective": float(report.findings["objective"] or 0),
    }


# -- the check ---------------------------------------------------------------------------------------------------------


class _Journal:
    """Values by name in a file, so that a killed check goes on; taken away when the check is complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held = {row["key"]: row["value"] for row in read_jsonl(path)} if path.exists() else {}

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        if key not in self._held:
            self._held[key] = make()
            append_line(self._path, json.dumps({"key": key, "value": self._held[key]}))
        return self._held[key]

    def close(self) -> None:
        self._path.unlink(missing_ok=True)


def silent(done: int, of: int, label: str) -> None:
    """Report nothing."""


def check(
    *,
    seed: int = 0,
    limit: int | None = None,
    command: str = "",
    progress: Callable[[int, int, str], None] = silent,
    work: str | Path = ".mintage/bench-data-mixture",
) -> list[Result | Figure]:
    """Audit 30 controls (10 of 3, 4 and 5 categories each), 10 with shifted samples, and real lists where there are.

    Parameters
    ----------
    seed
        Of the mixtures and the shuffling.
    limit
        Number of controls (at least 3) instead of 30; a third as many are shifted.
    command, progress
        As in `mintage.bench.audit.joint.run`.
    work
        Keeps what is measured, control by control; the same check goes on from there after a kill.

    Returns
    -------
    list of Result or Figure
        Real lists are those of ``$MINTAGE_TOKENIZERS``: a folder NAME with a tokenizer.json each.
    """
    count = CONTROLS if limit is None else max(3, limit)
    shifts = max(1, count // 3)
    folder = os.environ.get("MINTAGE_TOKENIZERS")
    lists = {**OLDER, **NEWER}
    real = [n for n in lists if folder and (Path(folder) / n / "tokenizer.json").exists()]
    if not any(name in NEWER for name in real) or len(real) < 2:
        real = []
    total = count + shifts + len(real)
    pools = _pools(np.random.default_rng(seed))
    journal = _Journal(Path(work) / f"seed-{seed}.jsonl")
    done = 0
    made = []
    for label, make in controls(pools, count=count, seed=seed):
        progress(done, total, label)
        made.append(Control(**journal.get(label, lambda make=make: vars(make()))))
        done += 1
    moved = []
    for number in range(shifts):
        progress(done, total, f"shifted samples {number}")
        moved.append(journal.get(f"shifted {number}", lambda number=number: _shifted(number, seed)))
        done += 1
    behind = {}
    for name in real:
        progress(done, total, lists[name])
        behind[lists[name]] = journal.get(f"real {name}", lambda name=name: _real(pools, name))
        done += 1
    progress(total, total, "done")
    here = {
        "job": "audit",
        "method": OURS,
        "environment": environment(),
    }
    row = {**here, "seed": seed, "command": command, "data": "XQuAD, Tatoeba, Genesis, WikiText-2, Python's library"}
    rows = [*_of_controls(made, row, here), *_of_shifts(moved, row), *_of_real(behind, row, here)]
    journal.close()
    return rows


def _of_controls(made: list[Control], row: dict[str, Any], here: dict[str, Any]) -> list[Result | Figure]:
    generator = np.random.default_rng(row["seed"])
    errors = {
        OURS: [_mse(c.inferred, c.truth) for c in made],
        UNIFORM: [_mse(1 / len(c.truth), c.truth) for c in made],
        EFFICIENCY: [_mse(p, c.truth) for p, c in zip(_regression(made), made, strict=True)],
        VOCABULARY: [_mse(c.vocabulary, c.truth) for c in made],
        RANDOM: [
            float(np.exp(np.mean([np.log(_mse(g, c.truth)) for g in generator.dirichlet(np.ones(len(c.truth)), 400)])))
            for c in made
        ],
    }
    logs = {name: np.log10(np.maximum(values, 1e-12)) for name, values in errors.items()}
    means = {name: float(values.mean()) for name, values in logs.items()}
    settings = {"merges": MERGES, "controls": len(made)}
    rivals = {name: mean for name, mean in means.items() if name not in (OURS, UNIFORM)}
    ratios = {name: 10 ** (means[name] - means[OURS]) for name in means if name != OURS}
    sizes = [*SIZES, 1.0]
    by_size = np.log10([[*c.by_size, error] for c, error in zip(made, errors[OURS], strict=True)])
    curve = [bootstrap(by_size[:, k]) for k in range(len(sizes))]
    fall = bootstrap(by_size[:, 0] - by_size[:, -1])
    inside = [lo <= t <= hi for c in made for lo, t, hi in zip(c.low, c.truth, c.high, strict=True)]
    groups = sorted({len(c.truth) for c in made})

    def of(name: str, n: int) -> Interval:
        return bootstrap([v for v, c in zip(logs[name], made, strict=True) if len(c.truth) == n])

    found = {name: [of(name, n) for n in groups] for name in logs}
    return [
        Result(
            metric="log10 MSE of the shares, 3 to 5 categories",
            value=means[OURS],
            unit="log10",
            higher_is_better=False,
            baseline={UNIFORM: means[UNIFORM]},
            peers=rivals,
            interval=bootstrap(logs[OURS]).bounds,
            n=len(made),
            claim="the MSE is at least 100 times smaller than that of uniform shares and of encoding efficiency",
            verdict="holds" if min(ratios[UNIFORM], ratios[EFFICIENCY]) >= 100 else "does not hold",
            settings=settings,
            note=f"geometric means: {ratios[UNIFORM]:.0f} times smaller than uniform shares, {ratios[EFFICIENCY]:.0f} "
            "than the regression on encoding efficiency, which is fitted on the true shares of the other controls; "
            "the paper has -7.30 (5 languages) with 1 GB per category",
            **row,
        ),
        Result(
            metric="log10 of MSE at a sixteenth of the sample over MSE at all of it",
            value=fall.value,
            unit="log10",
            higher_is_better=True,
            interval=fall.bounds,
            n=len(made),
            claim="the error falls with the size of the sample",
            verdict="holds" if fall.low > 0 else "does not hold",
            settings=settings,
            **row,
        ),
        Result(
            metric="true shares inside the 95% interval",
            value=float(np.mean(inside)),
            unit="share",
            higher_is_better=True,
            n=len(inside),
            settings={**settings, "resamples": 10},
            note="the intervals hold the noise of the sample, not that of the training text",
            **row,
        ),
        Figure(
            name="data-mixture-controls",
            title="Error of the inferred mixture",
            caption="Mean log10 MSE of the shares over controls with known mixtures; lower is better.",
            kind="bars",
            data={
                "y_label": "log10 MSE",
                "categories": [f"{n} categories" for n in groups],
                "series": [
                    {
                        "name": name,
                        "y": [i.value for i in intervals],
                        "low": [i.low for i in intervals],
                        "high": [i.high for i in intervals],
                    }
                    for name, intervals in found.items()
                ],
            },
            **here,
        ),
        Figure(
            name="data-mixture-sample-size",
            title="Error against the size of the sample",
            caption=f"Mean log10 MSE over {len(made)} controls; the sample as a part of what there is (95 to 300 kB "
            "per category).",
            kind="curve",
            data={
                "x_label": "part of the sample",
                "y_label": "log10 MSE",
                "series": [
                    {
                        "name": OURS,
                        "x": sizes,
                        "y": [i.value for i in curve],
                        "low": [i.low for i in curve],
                        "high": [i.high for i in curve],
                    },
                    {"name": UNIFORM, "x": sizes, "y": [means[UNIFORM]] * len(sizes)},
                ],
            },
            **here,
        ),
    ]


def _of_shifts(moved: list[Any], row: dict[str, Any]) -> list[Result]:
    values = np.array(moved)
    ratio = bootstrap(np.log10(values[:, 1] / values[:, 0]))
    worse = float(np.mean(np.log10(values[:, 3] / values[:, 2])))
    return [
        Result(
            metric="objective with samples of other sources over that with samples of the same",
            value=10**ratio.value,
            unit="x",
            higher_is_better=True,
            baseline={"objective, same sources": float(values[:, 0].mean())},
            peers={"objective, other sources": float(values[:, 1].mean())},
            interval=(10**ratio.low, 10**ratio.high),
            n=len(moved),
            claim="samples of other sources make the objective at least 10 times larger",
            verdict="holds" if 10**ratio.value >= 10 else "does not hold",
            settings={"merges": SHIFTED_MERGES, "categories": 3},
            note=f"the MSE is then {10**worse:.0f} times larger (geometric mean). Trained on: WikiText-2, modules of "
            "Python's library, German XQuAD and Tatoeba; other samples, of the same sizes: speeches, "
            "packages of the library, Genesis in German. Merges and training text were chosen on another seed, where "
            "1,000 merges had 7 times",
            **row,
        )
    ]


def _of_real(behind: dict[str, dict[str, float]], row: dict[str, Any], here: dict[str, Any]) -> list[Result | Figure]:
    if not behind:
        return []
    newer = next(name for name in NEWER.values() if name in behind)
    other = {name: shares["other languages"] for name, shares in behind.items()}
    older = {name: share for name, share in other.items() if name != newer}
    baseline = next(iter(older))
    kinds = ("English", "code", "other languages")
    return [
        Result(
            metric="share of languages other than English behind GPT-4o's list",
            value=other[newer],
            unit="share",
            higher_is_better=True,
            baseline={baseline: older[baseline]},
            peers={name: share for name, share in older.items() if name != baseline},
            claim="GPT-4o's list comes from more multilingual data than the lists before it",
            verdict="holds" if all(other[newer] > share for share in older.values()) else "does not hold",
            settings={"max_merges": REAL_MERGES, "categories": len(LANGUAGES) + 6},
            note="the same samples for all lists; the paper infers 39% for GPT-4o. "
            + "; ".join(
                f"{name}: English {s['English']:.0%}, code {s['code']:.0%}, objective {s['objective']:.2f}"
                for name, s in behind.items()
            ),
            **row,
        ),
        Figure(
            name="data-mixture-real",
            title="What real tokenizers were trained on",
            caption=f"Inferred shares of bytes from the first {REAL_MERGES} merges, the same samples for all lists.",
            kind="bars",
            data={
                "y_label": "share of bytes",
                "categories": list(behind),
                "series": [{"name": kind, "y": [s[kind] for s in behind.values()]} for kind in kinds],
            },
            **here,
        ),
    ]
