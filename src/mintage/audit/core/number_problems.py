"""The paper's arithmetic test: additions of prescribed lengths, prompts in every number format, and what goes wrong.

The test does not care where answers come from: `prompts` makes them for any model (plain text, or turns of a chat),
`greedy_answers` asks a transformers model, and `evaluate` scores any list of texts. An answer that cannot be read is
wrong, and is counted apart as well, because models that fall out of the format would otherwise look better.

Source: Singh & Strouse, "Tokenization counts", arXiv 2402.14903, sections 3 to 5. Not here: the authors' system
prompts, and their exact 1300 problems (`length_problems` deals its own evenly over the length combinations).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mintage.audit.core.digits import Direction, format_scheme, group_digits, scheme
from mintage.errors import UserError
from mintage.options import Options, option

__all__ = [
    "Evaluation",
    "Outcome",
    "Problem",
    "Prompting",
    "draw_problem",
    "evaluate",
    "first_problems",
    "greedy_answers",
    "judge",
    "length_problems",
    "prompts",
    "thinking_spaces",
]

Lengths = tuple[int, int, int]


@dataclass(frozen=True)
class Problem:
    """The addition ``a + b``."""

    a: int
    b: int

    @property
    def answer(self) -> int:
        """The sum."""
        return self.a + self.b

    @property
    def lengths(self) -> Lengths:
        """Digits of the addends and of the answer."""
        return len(str(self.a)), len(str(self.b)), len(str(self.answer))

    @property
    def length_match(self) -> bool:
        """Whether the answer is as long as the longer addend; else it is one digit longer."""
        return self.lengths[2] == max(self.lengths[:2])

    @property
    def carries(self) -> int:
        """How many digits of the addition carry."""
        count = carry = 0
        for power in range(max(self.lengths[:2])):
            carry = (self.a // 10**power % 10 + self.b // 10**power % 10 + carry) // 10
            count += carry
        return count


# -- problems ----------------------------------------------------------------------------------------------------------


def draw_problem(lengths: Lengths, generator: np.random.Generator) -> Problem:
    """Draw an addition whose addends and answer have these lengths, as the paper does.

    The shorter addend is uniform over what leaves the answer's length possible, the answer uniform over what is then
    feasible, and the longer addend is their difference.

    Raises
    ------
    UserError
        No addition has these lengths, or one is outside 1 to 18.
    """
    first, second, third = lengths
    short, long = sorted((first, second))
    if not 1 <= short <= long <= 18 or third not in (long, long + 1):
        raise UserError(f"no addition has lengths {list(lengths)}; the answer has the longer one's length, or one more")
    low, high = _range(short)
    long_low, long_high = _range(long)
    sum_low, sum_high = _range(third)
    smaller = int(generator.integers(max(low, sum_low - long_high), min(high, sum_high - long_low), endpoint=True))
    total = int(generator.integers(max(sum_low, smaller + long_low), min(sum_high, smaller + long_high), endpoint=True))
    return Problem(smaller, total - smaller) if first <= second else Problem(total - smaller, smaller)


def _range(length: int) -> tuple[int, int]:
    """Return the smallest and the largest number of this length; zero is no addend."""
    return 10 ** (length - 1), 10**length - 1


def first_problems(lengths: Iterable[int] = (7, 8, 9), per_combination: int = 10, *, seed: int = 0) -> list[Problem]:
    """Draw the paper's first set: uniform addends, `per_combination` for each pair of lengths (9 x 10 by default)."""
    generator = np.random.default_rng(seed)
    return [
        Problem(*(int(generator.integers(*_range(length), endpoint=True)) for length in pair))
        for pair in product(lengths, repeat=2)
        for _ in range(per_combination)
    ]


def length_problems(*, match: bool, count: int, lengths: Iterable[int] = (7, 8, 9), seed: int = 0) -> list[Problem]:
    """Draw a length-match set (900 in the paper) or a length-mismatch set (400), evenly over the pairs of lengths.

    Raises
    ------
    UserError
        `count` is below 1, or a length is outside 1 to 18.
    """
    if count < 1:
        raise UserError(f"count={count} is below 1; the paper has 900 that match and 400 that do not")
    pairs = list(product(lengths, repeat=2))
    generator = np.random.default_rng([seed, int(match)])
    chosen = (pairs[i % len(pairs)] for i in range(count))
    return [draw_problem((a, b, max(a, b) + (not match)), generator) for a, b in chosen]


# -- prompts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Prompting(Options):
    """How a problem is put to a model. Formats are named as in `mintage.audit.core.digits.SCHEMES`.

    Raises
    ------
    UserError
        A format is unknown, or a count is negative.
    """

    question: str = option("nosep", "Number format of the addends.")
    answers: str = option("nosep", "Number format of the answers in the shots.")
    shots: int = option(8, "Worked examples in front, of the lengths of the problem; the paper takes 1 to 8.", least=0)
    repeat: str = option("", "The repeat experiment: shots first write the problem again in this format; empty: no.")
    operator_spaces: int = option(0, "Spaces around + and before =: the control for extra thinking tokens.", least=0)
    trailing_spaces: int = option(0, "Spaces after =.", least=0)
    system: str = option("", "System turn of a chat; empty: none.")
    seed: int = option(0, "Of the shots.", least=0, below=2**63)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (self.question, self.answers, *filter(None, [self.repeat])):
            scheme(name)

    def ask(self, problem: Problem) -> str:
        """Write the question, e.g. ``"1,234,567+89="``."""
        a, b = (format_scheme(str(n), self.question) for n in (problem.a, problem.b))
        around = " " * self.operator_spaces
        return f"{a}{around}+{around}{b}{around}={' ' * self.trailing_spaces}"

    def solve(self, problem: Problem) -> str:
        """Write what a shot answers."""
        if not self.repeat:
            return format_scheme(str(problem.answer), self.answers)
        a, b, c = (format_scheme(str(n), self.repeat) for n in (problem.a, problem.b, problem.answer))
        return f"{a}+{b}={c}"

    def examples(self, problem: Problem) -> list[Problem]:
        """Draw the shots of a problem: of its lengths, none twice, never the problem itself."""
        generator = np.random.default_rng([self.seed, problem.a, problem.b])
        found: dict[Problem, None] = {}
        for _ in range(100 * self.shots):
            if len(found) == self.shots:
                break
            drawn = draw_problem(problem.lengths, generator)
            if drawn != problem:
                found[drawn] = None
        if len(found) < self.shots:
            raise UserError(
                f"{self.shots} shots of lengths {list(problem.lengths)} are not to be had; pass fewer shots"
            )
        return list(found)

    def text(self, problem: Problem) -> str:
        """Write a prompt for a base model: one line per shot, then the question."""
        lines = [self.ask(shot) + self.solve(shot) for shot in self.examples(problem)]
        return "\n".join([*lines, self.ask(problem)])

    def turns(self, problem: Problem) -> list[dict[str, str]]:
        """Write a prompt for a chat model: every shot is a turn of the user and one of the assistant."""
        turns = [{"role": "system", "content": self.system}] if self.system else []
        for shot in self.examples(problem):
            turns.append({"role": "user", "content": self.ask(shot)})
            turns.append({"role": "assistant", "content": self.solve(shot)})
        return [*turns, {"role": "user", "content": self.ask(problem)}]


def prompts(problems: Iterable[Problem], prompting: Prompting) -> list[str]:
    """Write a plain prompt for each problem."""
    return [prompting.text(problem) for problem in problems]


def thinking_spaces(problem: Problem, tokenizer: Tokenizer, name: str = "comma_r2l", *, at_most: int = 8) -> int:
    """Return the `operator_spaces` with which the unformatted question has as many tokens as in format `name`, or more.

    The control: were it the extra tokens that help, and not the grouping, these spaces would help as much.

    Raises
    ------
    UserError
        Even `at_most` spaces do not bring that many tokens: this tokenizer joins them.
    """

    def count(prompting: Prompting) -> int:
        return len(tokenizer.encode(prompting.ask(problem), add_special_tokens=False).ids)

    wanted = count(Prompting(question=name))
    for spaces in range(at_most + 1):
        if count(Prompting(operator_spaces=spaces)) >= wanted:
            return spaces
    raise UserError(f"{at_most} spaces do not bring the {wanted} tokens of {name}: this tokenizer joins runs of spaces")


def greedy_answers(
    model: Any,
    problems: Sequence[Problem],
    prompting: Prompting,
    *,
    chat: bool = False,
    max_new_tokens: int = 32,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[str]:
    """Ask a causal language model greedily, one problem after the other.

    Parameters
    ----------
    model
        A `mintage.models.CausalLM`, or anything with a transformers ``model`` and ``tokenizer``.
    problems, prompting
        What to ask, and how.
    chat
        Use the tokenizer's chat template.
    max_new_tokens
        Longest answer; its first line is kept.

    Raises
    ------
    UserError
        `chat` is asked of a tokenizer without a chat template.
    """
    import torch

    tokenizer = model.tokenizer
    if chat and not tokenizer.chat_template:
        raise UserError("this tokenizer has no chat template; pass chat=False")
    answers = []
    for done, problem in enumerate(problems, start=1):
        if chat:
            ids = tokenizer.apply_chat_template(
                prompting.turns(problem), add_generation_prompt=True, return_tensors="pt", return_dict=True
            )["input_ids"]
        else:
            ids = tokenizer(prompting.text(problem), return_tensors="pt")["input_ids"]
        ids = ids.to(model.model.device)
        with torch.inference_mode():
            out = model.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            )
        text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        answers.append(text.strip().split("\n")[0])
        progress(done, len(problems))
    return answers


# -- scoring -----------------------------------------------------------------------------------------------------------


def read_answer(text: str, name: str = "nosep") -> int | None:
    """Read the number an answer gives in format `name`, or None where it gives none.

    A restated problem is skipped up to its last ``=``. Separators are removed wherever they stand, so that a number
    grouped from the wrong side still counts (the paper's integer equality); what stands after the number must not touch
    it.
    """
    mark = scheme(name).separator
    text = text.rsplit("=", 1)[-1].strip()
    between = f"(?:{re.escape(mark)})?" if mark else ""
    found = re.match(rf"(?P<number>[0-9](?:{between}[0-9])*)(?![0-9A-Za-z])", text)
    return int(re.sub("[^0-9]", "", found["number"])) if found else None


@dataclass(frozen=True)
class Outcome:
    """One problem and what a model made of it.

    Parameters
    ----------
    problem
        What was asked.
    given
        The number answered; None where there was none to read.
    size, direction
        Digit groups that errors are told for.
    """

    problem: Problem
    given: int | None
    size: int = 3
    direction: Direction = "l2r"

    @property
    def right(self) -> bool:
        """Whether the answer is the sum."""
        return self.given == self.problem.answer

    @property
    def error(self) -> int | None:
        """Given minus right; None where nothing was given."""
        return None if self.given is None else self.given - self.problem.answer

    @property
    def off_by_one(self) -> bool:
        """Whether one digit is off by one: the error is a power of ten."""
        return bool(self.error) and re.fullmatch("10*", str(abs(self.error or 0))) is not None

    @property
    def digit_errors(self) -> list[bool]:
        """Which digits of the right answer are wrong or missing, counted from the left; all, where none was given."""
        given = "" if self.given is None else str(self.given)
        return [i >= len(given) or given[i] != digit for i, digit in enumerate(str(self.problem.answer))]

    @property
    def token_errors(self) -> list[bool]:
        """Which digit groups of the right answer are wrong or missing, counted from the left."""
        given = [] if self.given is None else group_digits(str(self.given), self.size, self.direction)
        right = group_digits(str(self.problem.answer), self.size, self.direction)
        return [i >= len(given) or given[i] != group for i, group in enumerate(right)]

    @property
    def digit_dropped(self) -> bool:
        """Whether the answer would be right but for one digit left out."""
        right = str(self.problem.answer)
        return str(self.given) in {right[:i] + right[i + 1 :] for i in range(len(right))}


def judge(problem: Problem, text: str, *, name: str = "nosep", size: int = 3, direction: Direction = "l2r") -> Outcome:
    """Read an answer in format `name` and compare it with the sum."""
    return Outcome(problem, read_answer(text, name), size, direction)


@dataclass(frozen=True)
class Evaluation:
    """All outcomes of one way of asking."""

    outcomes: list[Outcome] = field(repr=False)

    def __post_init__(self) -> None:
        if not self.outcomes:
            raise UserError("no answers to evaluate; pass at least one problem")

    def _share(self, of: Iterable[bool]) -> float:
        flags = list(of)
        return sum(flags) / len(flags) if flags else 0.0

    @property
    def accuracy(self) -> float:
        """Share of right answers; an invalid one is wrong."""
        return self._share(o.right for o in self.outcomes)

    @property
    def accuracy_of_valid(self) -> float:
        """Share of right answers among those that could be read; flatters a model that falls out of the format."""
        return self._share(o.right for o in self.outcomes if o.given is not None)

    @property
    def invalid(self) -> float:
        """Share of answers that could not be read."""
        return self._share(o.given is None for o in self.outcomes)

    def only(self, *, match: bool) -> Evaluation:
        """Keep the problems whose answer is as long as the longer addend, or those whose answer is longer."""
        return Evaluation([o for o in self.outcomes if o.problem.length_match == match])

    @property
    def off_by_one(self) -> float:
        """Share of errors that are off by one in one digit."""
        return self._share(o.off_by_one for o in self.outcomes if not o.right)

    @property
    def digit_dropped(self) -> float:
        """Share of errors that leave one digit out."""
        return self._share(o.digit_dropped for o in self.outcomes if not o.right)

    def by_digit(self) -> list[float]:
        """Share of answers wrong at each digit, counted from the left, over the answers that have that digit."""
        return self._by_position([o.digit_errors for o in self.outcomes])

    def by_token(self) -> list[float]:
        """Share of answers wrong at each digit group, counted from the left."""
        return self._by_position([o.token_errors for o in self.outcomes])

    def by_carries(self) -> dict[int, float]:
        """Accuracy by the number of carries."""
        counts = sorted({o.problem.carries for o in self.outcomes})
        return {n: self._share(o.right for o in self.outcomes if o.problem.carries == n) for n in counts}

    def _by_position(self, flags: list[list[bool]]) -> list[float]:
        longest = max(map(len, flags))
        return [self._share(one[i] for one in flags if i < len(one)) for i in range(longest)]

    def summary(self) -> dict[str, int | float]:
        """Return the headline numbers by name."""
        names = ("accuracy", "accuracy_of_valid", "invalid", "off_by_one", "digit_dropped")
        return {"problems": len(self.outcomes), **{name: getattr(self, name) for name in names}}


def evaluate(
    problems: Sequence[Problem],
    answers: Sequence[str],
    *,
    name: str = "nosep",
    size: int = 3,
    direction: Direction = "l2r",
) -> Evaluation:
    """Score the answers to `problems`, written in format `name`.

    Raises
    ------
    UserError
        There are not as many answers as problems, or none.
    """
    if len(problems) != len(answers):
        raise UserError(f"{len(answers)} answers to {len(problems)} problems; pass one each")
    judged = (judge(p, a, name=name, size=size, direction=direction) for p, a in zip(problems, answers, strict=True))
    return Evaluation(list(judged))
