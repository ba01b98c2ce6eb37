"""Does the side from which numbers are cut change what a model learns? Three small decoders learn to add.

Arms: groups of three digits from the left, from the right, and single digits. Model, vocabulary (the 1110 strings of
one to three digits and ``+ = ;``), optimiser, steps, seeds and the very problems of every batch are the same; only the
cut differs. Loss is on the answer. Scored is the greedy answer to problems that no batch holds.

Number tokens start as the sum of random vectors for their digits, one per token length, place and digit (equal for all
arms and learnt like any weight; no place of a short token is tied to one of a longer token). A pretrained model knows
the digits of its tokens; learning a thousand of them from sums alone takes many times the steps.

The start, the learning rate and the number of steps were chosen on a development seed of the right-cut arm alone; the
other arms might do better under settings of their own.

Scaled down from the paper: it asks GPT-3.5 and GPT-4, which were trained on one cut and are prompted into another.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from mintage.audit.core.number_problems import Evaluation, Problem, draw_problem, evaluate, length_problems
from mintage.audit.number_tokens import NumberTokens, group_digits, to_r2l, tokenizer_cut
from mintage.data import data_file
from mintage.errors import UserError
from mintage.files import read_jsonl
from mintage.measure import Figure, Interval, Result, bootstrap
from mintage.measure.environment import environment
from mintage.tokenizer_files import load_tokenizer
from mintage.train import Settings, train

__all__ = ["ARMS", "Adder", "Additions", "check"]

R2L, L2R, SINGLE = "R2L-3", "L2R-3", "single digits"

ARMS = {R2L: ("r2l", 3), L2R: ("l2r", 3), SINGLE: ("l2r", 1)}
"""Direction and group size of every arm."""

LONGEST, SHORTEST = 6, 3
"""Addends of the test problems have 3 to 6 digits; training also shows shorter ones."""

MATCH, MISMATCH = 900, 400
"""Test problems, as many as in the paper."""

SEEDS = 3
STEPS, BATCH = 4000, 64
TEST_SEED = 2402_14903

NUMBERS = [f"{n:0{width}d}" for width in (1, 2, 3) for n in range(10**width)]
IDS = {token: place for place, token in enumerate([*NUMBERS, "+", "=", ";"])}
TOKENS = list(IDS)
END = IDS[";"]
_NO_LOSS = -100


def settings(seed: int, steps: int) -> Settings:
    """How every arm is trained."""
    return Settings(
        steps=steps,
        lr=2e-3,
        warmup=min(100, steps),
        final_lr=0.05,
        weight_decay=0.01,
        betas=(0.9, 0.98),
        bf16=True,
        seed=seed,
        save_every=500,
        log_every=100,
    )


# -- the learner -------------------------------------------------------------------------------------------------------


class Adder(nn.Module):
    """A two-layer decoder of width 128 over number tokens (0.67 M parameters)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        config = LlamaConfig(
            vocab_size=len(IDS),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            initializer_range=0.05,
            bos_token_id=None,
            eos_token_id=END,
            pad_token_id=END,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.lm = LlamaForCausalLM(config)
            digits = torch.randn(4, 3, 10, config.hidden_size) * config.initializer_range
        weight: Any = self.lm.get_input_embeddings().weight
        with torch.no_grad():
            for token in NUMBERS:
                parts = [digits[len(token), place, int(digit)] for place, digit in enumerate(token)]
                weight[IDS[token]] = torch.stack(parts).sum(0) / len(token) ** 0.5

    def forward(self, ids: Int64[Tensor, "batch length"], labels: Int64[Tensor, "batch length"]) -> Float[Tensor, ""]:
        """Return the cross-entropy of the answers' tokens."""
        hidden = self.lm.model(input_ids=ids).last_hidden_state
        scored = labels != _NO_LOSS
        return nn.functional.cross_entropy(self.lm.lm_head(hidden[scored]).float(), labels[scored])

    @torch.inference_mode()
    def answers(self, problems: Sequence[Problem], arm: str) -> list[str]:
        """Answer greedily, as text."""
        self.eval()
        lm: Any = self.lm
        texts = [""] * len(problems)
        questions = [question(problem, arm) for problem in problems]
        for length in sorted({len(q) for q in questions}):  # equal lengths need no padding
            places = [i for i, q in enumerate(questions) if len(q) == length]
            ids = torch.tensor([questions[i] for i in places], device=lm.device)
            out = lm.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=LONGEST + 3)
            for place, row in zip(places, out[:, length:].tolist(), strict=True):
                texts[place] = "".join(TOKENS[i] for i in row).split(";")[0]
        return texts


def numbers(number: int, arm: str) -> list[int]:
    """Return the tokens of a number."""
    direction, size = ARMS[arm]
    return [IDS[group] for group in group_digits(str(number), size, direction)]


def question(problem: Problem, arm: str) -> list[int]:
    """Return the tokens of ``a+b=``."""
    return [*numbers(problem.a, arm), IDS["+"], *numbers(problem.b, arm), IDS["="]]


@dataclass(frozen=True)
class Additions:
    """The training recipe of an arm. Which problems a batch holds depends on the seed and its index alone."""

    module: Adder
    arm: str
    seed: int
    held_out: frozenset[Problem]

    def problems(self, index: int) -> list[Problem]:
        """Draw the problems of a batch: lengths uniform over all combinations, test problems left out."""
        generator = np.random.default_rng([self.seed, index])
        found: list[Problem] = []
        while len(found) < BATCH:
            problem = draw_problem(_LENGTHS[int(generator.integers(len(_LENGTHS)))], generator)
            if problem not in self.held_out:
                found.append(problem)
        return found

    def batch(self, index: int) -> dict[str, Tensor]:
        """Return ids and labels, padded on the right."""
        rows = [(question(p, self.arm), [*numbers(p.answer, self.arm), END]) for p in self.problems(index)]
        longest = max(len(q) + len(a) for q, a in rows) - 1
        ids, labels = np.full((BATCH, longest), END), np.full((BATCH, longest), _NO_LOSS)
        for row, (asked, answer) in enumerate(rows):
            whole = asked + answer
            ids[row, : len(whole) - 1] = whole[:-1]
            labels[row, len(asked) - 1 : len(whole) - 1] = answer
        return {"ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the loss, and how many tokens the batch has without padding."""
        tokens = float((batch["ids"] != END).sum() + BATCH)
        return module(batch["ids"], batch["labels"]), {"tokens": tokens}


_LENGTHS = [
    (a, b, max(a, b) + longer) for a, b, longer in product(range(1, LONGEST + 1), range(1, LONGEST + 1), (0, 1))
]


# -- the check ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A trained arm: its answers to both sets, and the training tokens it saw (without padding)."""

    match: Evaluation
    mismatch: Evaluation
    tokens: float


def check(
    *,
    seed: int = 0,
    limit: int | None = None,
    command: str = "",
    progress: Callable[[int, int, str], None] = lambda done, of, label: None,
    work: str | Path = ".mintage/number-tokens",
) -> list[Result | Figure]:
    """Train three arms with three seeds each and compare them on additions whose answer is longer than the addends.

    Where ``$MINTAGE_TOKENIZERS`` names a folder of published tokenizers (``NAME/.../tokenizer.json``), they are audited
    as well, and those that cut from the left are turned round.

    Parameters
    ----------
    seed
        The runs' seeds are this one and the two after it.
    limit
        Training steps per run (default 4000), and the most problems per test set: for a quick look.
    command, progress
        For the rows, and told after every step.
    work
        Where runs are kept; finished ones are not trained again, interrupted ones go on.

    Raises
    ------
    UserError
        `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit} is below 1; pass training steps, or nothing for {STEPS}")
    steps = limit or STEPS
    sets = problem_sets(limit)
    jobs = list(product(range(seed, seed + SEEDS), ARMS))
    runs: dict[str, list[Run]] = {arm: [] for arm in ARMS}
    for place, (one, arm) in enumerate(jobs):

        def step(done: int, of: int, label: str = f"{arm}, seed {one}", before: int = place * steps) -> None:
            progress(before + done, len(jobs) * steps, label)

        runs[arm].append(run_arm(arm, one, steps, sets, Path(work), step))
    return [*_rows(runs, seed, steps, command), *_tokenizer_rows(limit, command)]


def problem_sets(limit: int | None = None) -> tuple[list[Problem], list[Problem]]:
    """Return the problems whose answer is as long as the longer addend, and those with one digit more."""
    lengths = range(SHORTEST, LONGEST + 1)
    return tuple(  # type: ignore[return-value]
        length_problems(match=match, count=min(count, limit or count), lengths=lengths, seed=TEST_SEED)
        for match, count in ((True, MATCH), (False, MISMATCH))
    )


def run_arm(
    arm: str,
    seed: int,
    steps: int,
    sets: tuple[list[Problem], list[Problem]],
    work: Path,
    step: Callable[[int, int], None] | None = None,
) -> Run:
    """Train an arm, or take it up where it was left, and let it answer both sets."""
    module = Adder(seed)
    recipe = Additions(module, arm, seed, frozenset(problem for one in problem_sets() for problem in one))
    folder = work / f"{arm.replace(' ', '-')}-seed{seed}-{steps}"
    train(recipe, folder, settings(seed, steps), on_step=step)
    rows = [{"step": 0}, *read_jsonl(folder / "log.jsonl")]
    tokens = sum(row["tokens"] * (row["step"] - before["step"]) for before, row in pairwise(rows))
    match, mismatch = (evaluate(one, module.answers(one, arm)) for one in sets)
    return Run(match, mismatch, tokens)


def _right(runs: list[Run], which: str) -> Float[np.ndarray, " problems"]:
    """Return the share of a problem's runs (seeds) that got it right, in percent."""
    flags = [[o.right for o in getattr(run, which).outcomes] for run in runs]
    return 100 * np.mean(np.array(flags, dtype=float), axis=0)


def _first_wrong(run: Run) -> list[int]:
    """Return the place of the first wrong digit, from 1, of every wrong answer that is a number of the right length."""
    wrong = [o for o in run.mismatch.outcomes if not o.right and o.given is not None]
    same = [o for o in wrong if len(str(o.given)) == o.problem.lengths[2]]
    return [o.digit_errors.index(True) + 1 for o in same]


def _rows(runs: dict[str, list[Run]], seed: int, steps: int, command: str) -> list[Result | Figure]:
    common: dict[str, Any] = {
        "method": "number-tokens",
        "job": "audit",
        "model": "decoder, 2 layers, width 128, 0.67 M, from scratch",
        "data": f"additions of {SHORTEST}-{LONGEST} digits, drawn as in the paper",
        "seed": seed,
        "settings": {"steps": steps, "batch": BATCH, "lr": 2e-3, "seeds": SEEDS},
        "command": command,
        "environment": environment(),
    }
    scale = "Trained from scratch on additions alone, number embeddings started from digit vectors; not GPT-3.5. "
    scale += "Start, rate and steps were chosen on a development seed of the R2L-3 arm alone."
    other = float((_right(runs[R2L], "match") - _right(runs[L2R], "match")).mean())
    gap = _right(runs[R2L], "mismatch") - _right(runs[L2R], "mismatch")
    measured = bootstrap(gap, seed=seed)
    means = {arm: {w: _right(some, w) for w in ("match", "mismatch")} for arm, some in runs.items()}
    by_seed = [
        100 * (r.mismatch.accuracy - left.mismatch.accuracy) for r, left in zip(runs[R2L], runs[L2R], strict=True)
    ]
    rows: list[Result | Figure] = [
        Result(
            **common,
            metric="exact match on length mismatch, R2L-3 minus L2R-3",
            unit="points",
            higher_is_better=True,
            value=measured.value,
            interval=measured.bounds,
            n=len(gap),
            claim="cut from the right beats cut from the left by >= 15 points where the answer is longer (3 seeds)",
            verdict="holds" if measured.value >= 15 and measured.low > 0 else "does not hold",
            note=f"By seed: {', '.join(f'{g:.1f}' for g in by_seed)}. Interval over problems, not seeds. "
            f"On length match the gap is {other:.1f} points (the paper's L2R model adds well there). {scale}",
        ),
        _boundary_row(runs, seed, common),
    ]
    for which, title in (("match", "length match"), ("mismatch", "length mismatch")):
        value = bootstrap(means[R2L][which], seed=seed)
        rows.append(
            Result(
                **common,
                metric=f"exact match, {title}",
                unit="%",
                higher_is_better=True,
                value=value.value,
                interval=value.bounds,
                n=len(means[R2L][which]),
                baseline={L2R: float(means[L2R][which].mean())},
                peers={SINGLE: float(means[SINGLE][which].mean())},
                note=f"R2L-3, mean of {SEEDS} seeds. By seed: {_by_seed(runs, which)}.",
            )
        )
    rows.append(
        Result(
            **common,
            metric="training tokens",
            unit="thousand tokens",
            higher_is_better=False,
            value=_mean_tokens(runs[R2L]),
            n=SEEDS,
            baseline={L2R: _mean_tokens(runs[L2R])},
            peers={SINGLE: _mean_tokens(runs[SINGLE])},
            note="Same problems in every arm; single digits make more tokens of them. Padding not counted.",
        )
    )
    invalid = {arm: 100 * float(np.mean([r.mismatch.invalid for r in some])) for arm, some in runs.items()}
    rows.append(
        Result(
            **common,
            metric="answers that are no number, length mismatch",
            unit="%",
            higher_is_better=False,
            value=invalid[R2L],
            n=len(gap) * SEEDS,
            baseline={L2R: invalid[L2R]},
            peers={SINGLE: invalid[SINGLE]},
            note="Counted as wrong everywhere else.",
        )
    )
    return [*rows, _digit_figure(runs, common), _accuracy_figure(means, seed, common)]


def _boundary_row(runs: dict[str, list[Run]], seed: int, common: dict[str, Any]) -> Result:
    places = {arm: [place for run in some for place in _first_wrong(run)] for arm, some in runs.items()}
    share = {arm: 100 * np.mean([p == 4 for p in found]) if found else 0.0 for arm, found in places.items()}
    value = bootstrap([100.0 * (p == 4) for p in places[L2R]], seed=seed) if places[L2R] else Interval(0, 0, 0)
    counts = {place: places[L2R].count(place) for place in range(1, LONGEST + 2)}
    return Result(
        **common,
        metric="first wrong digit is the first after the first token boundary, L2R-3, length mismatch",
        unit="% of wrong answers",
        higher_is_better=False,
        value=value.value,
        interval=value.bounds,
        n=max(1, len(places[L2R])),
        baseline={R2L: float(share[R2L])},
        peers={SINGLE: float(share[SINGLE])},
        claim="errors of the cut from the left begin right after the first token boundary (digit 4) in most cases",
        verdict="holds" if value.low > 50 else "does not hold",
        note=(
            "Wrong answers of the right length, all seeds. First wrong digit of L2R-3: "
            + ", ".join(f"{place}: {count}" for place, count in counts.items())
            + f". Wrong answers: {', '.join(f'{arm} {len(p)}' for arm, p in places.items())}."
        ),
    )


PUBLISHED = ("gpt4o", "llama3", "qwen3", "gemma3", "claude")


def published_files() -> dict[str, Path]:
    """Return the tokenizer.json of every known name that ``$MINTAGE_TOKENIZERS`` holds."""
    folder = os.environ.get("MINTAGE_TOKENIZERS")
    found = {name: sorted(Path(folder).glob(f"*{name}*/**/tokenizer.json")) for name in PUBLISHED} if folder else {}
    return {name: files[0] for name, files in found.items() if files}


def _tokenizer_rows(limit: int | None, command: str) -> list[Result | Figure]:
    """Audit published tokenizers; turn those that cut from the left round, and see what that changes."""
    rows: list[Result | Figure] = []
    for name, path in published_files().items():
        tokenizer = load_tokenizer(path)
        report = NumberTokens(samples=min(1000, limit or 1000)).run(tokenizer, name=name)
        common: dict[str, Any] = {
            "method": "number-tokens",
            "job": "audit",
            "model": f"{name} tokenizer",
            "command": command,
            "environment": environment(),
        }
        rows.append(
            Result(
                **common,
                metric="digit strings of length 1 to 3 that are one token",
                unit="of 1110",
                higher_is_better=True,
                value=float(report.findings["single tokens"] or 0),
                n=1110,
                data="all 1110 strings",
                note=f"Cut: {report.findings['cut']}; {report.findings['example']}.",
            )
        )
        if str(report.findings["cut"]).startswith("left to right"):
            rows.append(_turned_row(tokenizer, limit, common))
    return rows


def _turned_row(tokenizer: Tokenizer, limit: int | None, common: dict[str, Any]) -> Result:
    changed = to_r2l(tokenizer)
    lines = read_jsonl(data_file("tatoeba_parallel.jsonl.gz"))
    texts = [line["text"] for line in lines if not any(unicodedata.category(c)[0] == "N" for c in line["text"])]
    texts = texts[: limit and 100 * limit]
    same = [tokenizer.encode(text).ids == changed.encode(text).ids for text in texts]
    strings = [str(number) for p in problem_sets(limit)[0] for number in (p.a, p.b, p.answer)]
    right = [cut == group_digits(s) for s, cut in zip(strings, tokenizer_cut(changed, strings), strict=True)]
    before = [cut == group_digits(s) for s, cut in zip(strings, tokenizer_cut(tokenizer, strings), strict=True)]
    added = changed.get_vocab_size() - tokenizer.get_vocab_size()
    return Result(
        **common,
        metric="numbers cut from the right after its digit branch is rewritten",
        unit="%",
        higher_is_better=True,
        value=100 * float(np.mean(right)),
        n=len(right),
        baseline={"as published": 100 * float(np.mean(before))},
        data=f"numbers of {SHORTEST}-{LONGEST + 1} digits; {len(texts)} digit-free sentences in 53 languages (Tatoeba)",
        claim="rewriting the digit branch cuts every number from the right, other text as before, with no new token",
        verdict="holds" if all(right) and all(same) and not added else "does not hold",
        note=f"10642122 = {'|'.join(tokenizer_cut(changed, ['10642122'])[0])}. Digit-free sentences with the same "
        f"tokens: {sum(same)} of {len(same)}; tokens added: {added}.",
    )


def _by_seed(runs: dict[str, list[Run]], which: str) -> str:
    each = {arm: [100 * getattr(run, which).accuracy for run in some] for arm, some in runs.items()}
    return "; ".join(f"{arm} {', '.join(f'{value:.1f}' for value in values)}" for arm, values in each.items())


def _mean_tokens(runs: list[Run]) -> float:
    return float(np.mean([run.tokens for run in runs])) / 1000


def _digit_figure(runs: dict[str, list[Run]], common: dict[str, Any]) -> Figure:
    longest = LONGEST + 1
    series = []
    for arm, some in runs.items():
        each = [run.mismatch.by_digit() for run in some]
        mean = np.mean([values + [0.0] * (longest - len(values)) for values in each], axis=0)
        series.append({"name": arm, "y": [100 * float(value) for value in mean]})
    return Figure(
        job="audit",
        method="number-tokens",
        name="number-tokens-errors",
        title="Wrong digits of sums that are longer than the addends",
        caption="Share of answers wrong at each digit, from the left. A cut from the left puts token 2 at digit 4.",
        kind="bars",
        data={"y_label": "% wrong", "categories": [f"digit {n}" for n in range(1, longest + 1)], "series": series},
        environment=common["environment"],
    )


def _accuracy_figure(means: dict[str, dict[str, Any]], seed: int, common: dict[str, Any]) -> Figure:
    series = []
    for arm, sets in means.items():
        measured = [bootstrap(sets[which], seed=seed) for which in ("match", "mismatch")]
        low, y, high = ([m[part] for m in measured] for part in range(3))
        series.append({"name": arm, "y": y, "low": low, "high": high})
    return Figure(
        job="audit",
        method="number-tokens",
        name="number-tokens-accuracy",
        title="Additions right, by how numbers are cut",
        caption="Same model, problems and steps. Mismatch: the answer has one digit more than the longer addend.",
        kind="bars",
        data={"y_label": "% right", "categories": ["length match", "length mismatch"], "series": series},
        environment=common["environment"],
    )
