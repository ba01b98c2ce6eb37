"""Three small decoders that learn to add: the same model, problems and steps, and numbers cut in three ways.

Number tokens start as the sum of random vectors for their digits, one per token length, place and digit (equal for all
arms and learnt like any weight; no place of a short token is tied to one of a longer token). A pretrained model knows
the digits of its tokens; learning a thousand of them from sums alone takes many times the steps.

The start, the learning rate and the number of steps were chosen on a development seed of the right-cut arm alone; the
other arms might do better under settings of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from mintage.audit.core.digits import Direction, group_digits
from mintage.audit.core.number_problems import Problem, draw_problem, evaluate, length_problems
from mintage.files import read_jsonl
from mintage.train import Settings, train

__all__ = ["ARMS", "Adder", "Additions", "addition_problems", "answered", "learnt"]

R2L, L2R, SINGLE = "R2L-3", "L2R-3", "single digits"

ARMS: dict[str, tuple[Direction, int]] = {R2L: ("r2l", 3), L2R: ("l2r", 3), SINGLE: ("l2r", 1)}
"""Direction and group size of every arm."""

LONGEST, SHORTEST = 6, 3
"""Addends of the test problems have 3 to 6 digits; training also shows shorter ones."""

MATCH, MISMATCH = 900, 400
"""Test problems, as many as in the paper."""

BATCH, RATE = 64, 2e-3
TEST_SEED = 2402_14903

NUMBERS = [f"{n:0{width}d}" for width in (1, 2, 3) for n in range(10**width)]
IDS = {token: index for index, token in enumerate([*NUMBERS, "+", "=", ";"])}
TOKENS = list(IDS)
END = IDS[";"]
_NO_LOSS = -100


def addition_problems(match: int = MATCH, mismatch: int = MISMATCH) -> dict[str, list[Problem]]:
    """Draw the test problems: those whose answer is as long as the longer addend, and those with one digit more."""
    lengths = range(SHORTEST, LONGEST + 1)
    return {
        "length match": length_problems(match=True, count=match, lengths=lengths, seed=TEST_SEED),
        "length mismatch": length_problems(match=False, count=mismatch, lengths=lengths, seed=TEST_SEED),
    }


def learnt(
    arm: str, seed: int, steps: int, folder: Path, on_step: Callable[[int, int], None] | None = None
) -> tuple[Adder, float]:
    """Train an arm, or take it up where it was left; return it, and the training tokens that it saw without padding."""
    module = Adder(seed)
    held_out = frozenset(problem for problems in addition_problems().values() for problem in problems)
    settings = Settings(
        steps=steps,
        lr=RATE,
        warmup=min(100, steps),
        final_lr=0.05,
        weight_decay=0.01,
        betas=(0.9, 0.98),
        bf16=True,
        seed=seed,
        save_every=500,
        log_every=100,
    )
    train(Additions(module, arm, seed, held_out), folder, settings, on_step=on_step)
    rows = [{"step": 0}, *read_jsonl(folder / "log.jsonl")]
    return module, sum(row["tokens"] * (row["step"] - before["step"]) for before, row in pairwise(rows))


def answered(adder: Adder, tokens: float, problems: Mapping[str, Sequence[Problem]], arm: str) -> dict[str, Any]:
    """Let a trained arm answer: which answers are right, and where those that are one digit longer go wrong."""
    judged = {kind: evaluate(some, adder.answers(some, arm)) for kind, some in problems.items()}
    longer = judged["length mismatch"]
    wrong = [o for o in longer.outcomes if not o.right and o.given is not None]
    same_length = [o for o in wrong if len(str(o.given)) == o.problem.lengths[2]]
    by_digit = longer.by_digit()
    return {
        **{kind: [o.right for o in one.outcomes] for kind, one in judged.items()},
        "invalid": longer.invalid,
        "first wrong": [o.digit_errors.index(True) + 1 for o in same_length],
        "wrong digits": by_digit + [0.0] * (LONGEST + 1 - len(by_digit)),
        "tokens": tokens,
    }


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
                parts = [digits[len(token), position, int(digit)] for position, digit in enumerate(token)]
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
            indices = [i for i, q in enumerate(questions) if len(q) == length]
            ids = torch.tensor([questions[i] for i in indices], device=lm.device)
            out = lm.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=LONGEST + 3)
            for index, row in zip(indices, out[:, length:].tolist(), strict=True):
                texts[index] = "".join(TOKENS[i] for i in row).split(";")[0]
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
