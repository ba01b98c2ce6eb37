"""What does a model lose when it is given a tokenizer that it has never seen, and who loses least?

- Bits per byte of held-out texts in four tokenizers that no hypernetwork was trained with: English of 4,000 and of
  16,000 tokens, German, code. Every method makes the embeddings; the model as it is reads the same texts.
- The model's own tokenizer through the hypernetwork: what it makes of tokens that it could have copied.
- In the joint run, all its kinds of text in one tokenizer, learnt from many languages and code.
- How fast a few dozen steps of training on the embeddings close the gap, from FVT's and from the hypernetwork's.

The texts that tokenizers, static embeddings and the tuning learn from are none of those that are measured.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional

from mintage import catalog
from mintage.bench.retrofit.measures import Arm, Bits, Document, Trial, bits_of, difference, documents
from mintage.data import Corpus, data_file
from mintage.errors import UserError
from mintage.measure import Figure, Result
from mintage.measure.trial import Report, silent
from mintage.models import CausalLM
from mintage.retrofit.core.composer import Parts
from mintage.retrofit.core.token_bytes import TokenBytes
from mintage.retrofit.core.transfer import EmbeddingTransfer, transfer
from mintage.retrofit.training.composer import training_texts
from mintage.retrofit.zett import Zett

__all__ = ["run"]

PLAIN = "original"
METHODS = ("zett", "fvt", "focus", "wechsel", "omp", "lexical", "mean")
TARGETS: dict[str, tuple[str, int]] = {
    "english 4k": ("prose", 4000),
    "english 16k": ("prose", 16_000),
    "german 8k": ("de", 8000),
    "code 8k": ("humaneval", 8000),
}
"""Held-out tokenizers: the kind of text that is measured, and how many tokens."""

JOINT, JOINT_SIZE = ("zett", "fvt", "focus"), 16_000
"""In the joint run: who embeds one tokenizer for all its kinds of text, and how many tokens that has."""

TEXTS, SIZE = 6, 512
LEARNT = 300_000  # characters that static embeddings are learnt from
STEPS, MARKS, ROWS, WINDOW = 24, (0, 4, 8, 16, 24), 4, 64
TUNED = "english 4k"


def run(
    *,
    model: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    command: str = "",
    progress: Report = silent,
    work: Path | None = None,
) -> list[Result | Figure]:
    """Run the check; `limit` is the number of texts per tokenizer (default 6)."""
    number = limit or TEXTS
    trial = Trial(
        "zett",
        definition={"texts": number, "size": SIZE, "targets": {k: list(v) for k, v in TARGETS.items()}, "steps": STEPS},
        seed=seed,
        command=command,
        progress=progress,
        model=model,
        work=work,
    )
    held = _Held(trial, number)
    trial.total = number * (len(TARGETS) * (1 + len(held.methods)) + 2 * held.trained) + 1 + held.trained
    rows = [*_of_quality(trial, held), *_of_identity(trial, held), *_of_tuning(trial, held)]
    trial.memo.delete()
    return rows


def arms(lm: CausalLM, seed: int) -> dict[str, Arm]:
    """Return the arms of the joint run: the model in a tokenizer of many languages and code, by who embeds it."""
    texts = training_texts(seed)
    tokenizer = _bpe(texts, JOINT_SIZE)

    def arm(made: EmbeddingTransfer) -> Arm:
        read = _some(texts) if made.reads_texts else ()
        found = transfer(lm.model, lm.tokenizer, tokenizer, made, texts=read, share=True)
        moved = CausalLM(found.model, found.tokenizer, lm.name)
        return lambda text: bits_of(moved, text)

    methods = list(JOINT)
    try:
        Zett().fitted(Parts(lm.model, TokenBytes(lm.tokenizer)), [], [])
    except UserError:  # none was trained for this model
        methods.remove("zett")
    return {name: arm(catalog.build(name, "retrofit")) for name in methods}


class _Held:
    """Held-out texts and tokenizers, and the model in each of them by every method."""

    def __init__(self, trial: Trial, number: int) -> None:
        self.lm = trial.lm
        kinds = {kind for kind, _ in TARGETS.values()}
        self.texts = {kind: documents(kind, number, size=SIZE, seed=trial.seed) for kind in kinds}
        self.methods = list(METHODS)
        try:
            self.given(PLAIN, "zett")
        except UserError as error:  # none was trained for this model
            self.methods.remove("zett")
            self.missing = str(error)
        self.trained = "zett" in self.methods

    @cache  # noqa: B019 (lives as long as the run)
    def learnt(self, kind: str) -> list[str]:
        """Texts to learn from: none of the measured ones."""
        measured = [document.text for document in self.texts[kind]]
        return [text for text in _learnt(kind) if not any(text.startswith(one[:100]) for one in measured)]

    @cache  # noqa: B019
    def tokenizer(self, target: str) -> Tokenizer:
        """Train the tokenizer of a target."""
        kind, size = TARGETS[target]
        return _bpe(self.learnt(kind), size)

    @cache  # noqa: B019
    def given(self, target: str, method: str) -> CausalLM:
        """Return the model with the tokenizer of a target (or its own), embedded by a method."""
        made: EmbeddingTransfer = catalog.build(method, "retrofit")
        own = target == PLAIN
        texts = _some(self.learnt(TARGETS[target][0])) if made.reads_texts and not own else ()
        new = self.lm.tokenizer if own else self.tokenizer(target)
        found = transfer(self.lm.model, self.lm.tokenizer, new, made, texts=texts, share=True)
        return CausalLM(found.model, found.tokenizer, f"{method}, {target}")

    def arm(self, target: str, method: str) -> Arm:
        """Return what measures the bits of a text; models are made when they are first needed."""
        if method == PLAIN:
            return lambda text: bits_of(self.lm, text, window=SIZE)
        return lambda text: bits_of(self.given(target, method), text, window=SIZE)


def _learnt(kind: str) -> Iterable[str]:
    if kind == "prose":
        return [line.strip() for line in Corpus(data_file("wikitext2_valid.txt.gz")) if len(line) > 100]
    if kind == "humaneval":
        folder = Path(sysconfig.get_path("stdlib"))
        return [path.read_text(encoding="utf-8", errors="replace")[:20_000] for path in sorted(folder.glob("*.py"))]
    return list(Corpus(data_file("xquad.jsonl.gz"), key="context", where={"lang": kind}))


def _some(texts: Iterable[str]) -> list[str]:
    found, read = [], 0
    for text in texts:
        if read >= LEARNT:
            break
        found.append(text)
        read += len(text)
    return found


def _bpe(texts: Iterable[str], size: int) -> Tokenizer:
    """Train byte-level BPE of the usual kind."""
    made: Any = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    return made


# -- bits per byte -----------------------------------------------------------------------------------------------------


def _of_quality(trial: Trial, held: _Held) -> list[Result | Figure]:
    found: dict[str, dict[str, list[Bits]]] = {}
    for target, (kind, _) in TARGETS.items():
        arms = {name: held.arm(target, name) for name in (PLAIN, *held.methods)}
        found[target] = trial.bits(arms, held.texts[kind], kind=target)
    whole = {name: [bits for target in TARGETS for bits in found[target][name]] for name in (PLAIN, *held.methods)}
    rows: list[Result | Figure] = []
    if held.trained:
        rows += [_against(trial, whole, "fvt", 0.15), _against(trial, whole, "focus", 0.0)]
    rows += [_cost(trial, found[target], target, name) for target in TARGETS for name in held.methods]
    rows.append(
        trial.figure(
            name="zett-tokenizers",
            title="What a new tokenizer costs, by who makes the embeddings",
            caption="Bits per byte of held-out texts in tokenizers that the model has never seen; nothing is tuned.",
            kind="bars",
            data={
                "categories": list(TARGETS),
                "y_label": "bits per byte",
                "series": [
                    {"name": name, "y": [_mean(found[target][name]) for target in TARGETS]}
                    for name in (PLAIN, *held.methods)
                ],
            },
        )
    )
    return rows


def _mean(rows: list[Bits]) -> float:
    return sum(row.bits for row in rows) / sum(row.bytes for row in rows)


def _against(trial: Trial, whole: dict[str, list[Bits]], rival: str, goal: float) -> Result:
    interval = difference(whole[rival], whole["zett"])
    told = f"at least {goal:g} bits per byte less" if goal else "less"
    return trial.result(
        claim=f"in tokenizers that it has not seen, the hypernetwork's embeddings cost {told} than those of {rival}",
        verdict="holds" if interval.value >= goal and interval.low > 0 else "does not hold",
        metric=f"bits per byte that zett saves against {rival}, {len(TARGETS)} held-out tokenizers",
        value=interval.value,
        unit="bits",
        higher_is_better=True,
        interval=interval.bounds,
        n=len(whole["zett"]),
        baseline={rival: 0.0},
        peers={name: _mean(whole[rival]) - _mean(rows) for name, rows in whole.items() if name not in (rival, "zett")},
        data=", ".join(TARGETS),
        note="bits per byte: " + ", ".join(f"{name} {_mean(rows):.3f}" for name, rows in whole.items()),
    )


def _cost(trial: Trial, rows: dict[str, list[Bits]], target: str, name: str) -> Result:
    interval = difference(rows[name], rows[PLAIN])
    kind, size = TARGETS[target]
    longer = sum(row.tokens for row in rows[name]) / sum(row.tokens for row in rows[PLAIN])
    return trial.result(
        metric=f"bits per byte lost to a new tokenizer, {target}, {name}",
        value=interval.value,
        unit="bits",
        higher_is_better=False,
        interval=interval.bounds,
        n=len(rows[name]),
        baseline={PLAIN: 0.0},
        settings={"embeddings": name, "vocabulary": size},
        data=f"{kind}, {len(rows[name])} texts of at most {SIZE} bytes",
        note=f"{PLAIN} {_mean(rows[PLAIN]):.3f} bits per byte; {longer:.2f} times as many tokens",
    )


# -- the model's own tokenizer -----------------------------------------------------------------------------------------


def _of_identity(trial: Trial, held: _Held) -> list[Result | Figure]:
    if not held.trained:
        return []
    arms = {name: held.arm(PLAIN, name) for name in (PLAIN, "zett")}
    found = trial.bits(arms, held.texts["prose"], kind="own tokenizer")
    interval = difference(found["zett"], found[PLAIN])
    return [
        trial.result(
            claim="a transfer to the model's own tokenizer costs at most 0.1 bits per byte",
            verdict="holds" if interval.value <= 0.1 else "does not hold",
            metric="bits per byte lost to the model's own tokenizer, zett",
            value=interval.value,
            unit="bits",
            higher_is_better=False,
            interval=interval.bounds,
            n=len(found[PLAIN]),
            baseline={PLAIN: 0.0},
            peers=dict.fromkeys(("fvt", "focus", "wechsel", "omp", "lexical", "mean"), 0.0),
            data=f"prose, {len(found[PLAIN])} texts of at most {SIZE} bytes",
            note="methods that copy known tokens change no bit here",
        )
    ]


# -- training on -------------------------------------------------------------------------------------------------------


def _of_tuning(trial: Trial, held: _Held) -> list[Result | Figure]:
    starts = ("fvt", "zett") if held.trained else ("fvt",)
    texts = held.texts[TARGETS[TUNED][0]][:4]
    found = {
        name: trial.measured(
            f"tuning {name}", lambda name=name: _tune(held, name, texts, trial.seed), f"tuning from {name}"
        )
        for name in starts
    }
    per_step = ROWS * WINDOW
    figure = trial.figure(
        name="zett-tuning",
        title="How fast training on the embeddings closes the gap",
        caption=f"{TUNED}: bits per byte of held-out texts against tokens of training, nothing but embeddings trained.",
        kind="curve",
        data={
            "x_label": "tokens of training",
            "y_label": "bits per byte",
            "series": [{"name": k, "x": [m * per_step for m in MARKS], "y": found[k]} for k in starts],
        },
    )
    if not held.trained:
        return [figure]
    goal = found["fvt"][-1]
    reached = next((m for m, bits in zip(MARKS, found["zett"], strict=True) if bits <= goal), None)
    share = 1.0 if reached is None else reached / MARKS[-1]
    return [
        trial.result(
            metric="share of the training from FVT's embeddings that zett's need to be as good",
            value=share,
            unit="share",
            higher_is_better=False,
            n=len(texts),
            baseline={"fvt": 1.0},
            data=f"{TUNED}, {MARKS[-1] * per_step} tokens of training",
            note="bits per byte: "
            + "; ".join(f"{k} " + ", ".join(f"{bits:.3f}" for bits in found[k]) for k in starts)
            + f"; after {', '.join(str(m * per_step) for m in MARKS)} tokens"
            + ("; not reached" if reached is None else ""),
        ),
        figure,
    ]


def _tune(held: _Held, method: str, texts: list[Document], seed: int) -> list[float]:
    """Train the embeddings alone on texts of the kind, and give bits per byte at the marks."""
    lm = held.given(TUNED, method)
    tokenizer: Any = lm.tokenizer
    model: Any = lm.model
    flat = [
        i for text in held.learnt(TARGETS[TUNED][0]) for i in tokenizer(text, add_special_tokens=False)["input_ids"]
    ]
    draw = np.random.default_rng(seed)
    weights = list(
        {id(w): w for w in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}.values()
    )
    before = [weight.detach().clone() for weight in weights]
    trained = {name: weight.requires_grad for name, weight in model.named_parameters()}
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    optimiser, measure = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.0), _bits_per_byte(lm, texts)
    found = [measure()]
    for step in range(1, STEPS + 1):
        starts = draw.integers(len(flat) - WINDOW, size=ROWS)
        ids = torch.tensor([[lm.opening, *flat[start : start + WINDOW]] for start in starts])
        logits = model(ids[:, :-1], use_cache=False).logits
        functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
        optimiser.step()
        optimiser.zero_grad()
        if step in MARKS:
            found.append(measure())
    with torch.no_grad():  # what is measured next shall be untuned
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(old)
    for name, weight in model.named_parameters():
        weight.requires_grad_(trained[name])
    return found


def _bits_per_byte(lm: CausalLM, texts: list[Document]) -> Callable[[], float]:
    return lambda: _mean([bits_of(lm, text.text, window=SIZE) for text in texts])
