"""Haystacks of random key-value pairs, and questions whose answers lie in them (needle threading).

No text is needed, so nothing was seen in training: a JSON object of random UUIDs, reproducible from its seed. Tasks are
those of Roberts, Han and Albanie, ICLR 2025; scoring is in `mintage.measure.retrieval`.

Not here: branched threads, which the published data leave out.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, get_args

from mintage.errors import UserError

__all__ = [
    "TASKS",
    "Direction",
    "Example",
    "Haystack",
    "Placement",
    "Task",
    "conditional_needles",
    "make_haystack",
    "multi_thread",
    "multiple_needles",
    "single_needle",
    "thread",
    "thread_at",
]

Direction = Literal["forward", "backward", "random"]
Placement = Literal["random", "clustered"]

Task = Literal["single", "multiple", "conditional", "thread", "multi-thread"]

TASKS: tuple[Task, ...] = get_args(Task)
"""The five tasks."""


@dataclass(frozen=True)
class Haystack:
    """Key-value pairs in order, and the text that a model reads: 80 characters per pair of UUIDs."""

    pairs: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """A JSON object."""
        return json.dumps(dict(self.pairs))

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys in order."""
        return tuple(key for key, _ in self.pairs)

    @property
    def values(self) -> tuple[str, ...]:
        """The values in order."""
        return tuple(value for _, value in self.pairs)

    def look_up(self, key: str) -> str | None:
        """Return the value of a key."""
        return dict(self.pairs).get(key)


@dataclass(frozen=True)
class Example:
    """One question about one haystack.

    Parameters
    ----------
    task
        One of `TASKS`.
    haystack
        What the answer lies in.
    question
        Ends where the answer begins.
    answers
        The values asked for; one, or a list in the order of the text.
    about
        What the task was made from: depth, positions, steps, ...
    """

    task: str
    haystack: Haystack
    question: str
    answers: tuple[str, ...]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """Haystack, newline, question."""
        return f"{self.haystack.text}\n{self.question}"

    @property
    def completion(self) -> str:
        """A prompt for models that only go on with a text: the answer has been opened, ``{"key": "`` for one key.

        A variant of ours, not the paper's.
        """
        if self.task == "single":
            key = self.haystack.keys[self.about["positions"][0]]
            return f'{self.haystack.text}\n{{"{key}": "'
        return self.prompt + (' ["' if self.many else ' "')

    @property
    def many(self) -> bool:
        """Whether a list is asked for."""
        return self.task in ("multiple", "conditional", "multi-thread")


def make_haystack(pairs: int, seed: int = 0, hex_digits: int | None = None) -> Haystack:
    """Draw a haystack.

    Parameters
    ----------
    pairs
        Number of pairs.
    seed
        Of a Mersenne Twister, from which 128 bits are taken per UUID (no version bits): the published data's rule.
    hex_digits
        Keys and values of so many hexadecimal digits instead of UUIDs. A variant of ours, not the paper's: it parts
        finding a key from copying 36 characters.

    Raises
    ------
    UserError
        No pair, or more than the digits tell apart.
    """
    if pairs < 1:
        raise UserError(f"a haystack of {pairs} pairs is empty; pass at least 1")
    if hex_digits is not None and (hex_digits < 1 or 16**hex_digits < 8 * pairs):
        raise UserError(f"{hex_digits} hexadecimal digits do not tell {2 * pairs} keys and values apart; pass more")
    draw = random.Random(seed)
    names: dict[str, None] = {}
    while len(names) < 2 * pairs:
        if hex_digits is None:
            names[str(uuid.UUID(int=draw.getrandbits(128)))] = None
        else:
            names[f"{draw.getrandbits(4 * hex_digits):0{hex_digits}x}"] = None
    drawn = list(names)
    return Haystack(tuple(zip(drawn[::2], drawn[1::2], strict=True)))


def _at(haystack: Haystack, depth: int | float) -> int:
    if not 0 <= depth <= 100:
        raise UserError(f"depth {depth} is outside 0 to 100 percent")
    return min(len(haystack.pairs) - 1, int(len(haystack.pairs) * depth // 100))


def _places(haystack: Haystack, number: int, placement: Placement, draw: random.Random) -> list[int]:
    have = len(haystack.pairs)
    if not 1 <= number <= have:
        raise UserError(f"{number} needles do not fit {have} pairs; pass 1 to {have}")
    if placement not in get_args(Placement):
        raise UserError(f"unknown placement {placement!r}; one of {', '.join(get_args(Placement))}")
    if placement == "clustered":
        first = draw.randrange(have - number + 1)
        return list(range(first, first + number))
    return sorted(draw.sample(range(have), number))


def _list(names: Sequence[str]) -> str:
    return json.dumps(list(names))


_ONLY = "Write a JSON list of the values only.\nCorresponding values:"


def single_needle(haystack: Haystack, depth: int | float) -> Example:
    """Ask for the value of the key at `depth` percent of the text."""
    place = _at(haystack, depth)
    key, value = haystack.pairs[place]
    question = f'Find the value that belongs to the key "{key}" in the JSON object above.\nCorresponding value:'
    return Example("single", haystack, question, (value,), {"depth": depth, "positions": (place,)})


def multiple_needles(haystack: Haystack, number: int, placement: Placement = "random", seed: int = 0) -> Example:
    """Ask for the values of `number` keys, spread at random or next to each other."""
    places = _places(haystack, number, placement, random.Random(seed))
    keys = _list([haystack.keys[place] for place in places])
    question = f"Find the values that belong to the keys {keys} in the JSON object above. {_ONLY}"
    about = {"number": number, "placement": placement, "positions": tuple(places)}
    return Example("multiple", haystack, question, tuple(haystack.values[place] for place in places), about)


def conditional_needles(
    haystack: Haystack, number: int, placement: Placement = "random", seed: int = 0, character: str = "*"
) -> Example:
    """Ask for the values of all keys that hold a special character, which is planted in `number` keys.

    The character takes the place of one digit of a key, so the text keeps its length.
    """
    if len(character) != 1 or any(character in name for pair in haystack.pairs for name in pair):
        raise UserError(f"{character!r} is not one character that the haystack lacks; pass e.g. '*'")
    draw = random.Random(seed)
    places = _places(haystack, number, placement, draw)
    pairs = list(haystack.pairs)
    for place in places:
        key, value = pairs[place]
        cut = draw.choice([i for i, c in enumerate(key) if c != "-"])
        pairs[place] = f"{key[:cut]}{character}{key[cut + 1 :]}", value
    question = f'Find the values of all keys that contain the character "{character}" in the JSON object above. {_ONLY}'
    about = {"number": number, "placement": placement, "positions": tuple(places), "character": character}
    answers = tuple(haystack.values[place] for place in places)
    return Example("conditional", replace(haystack, pairs=tuple(pairs)), question, answers, about)


def thread_at(haystack: Haystack, positions: Sequence[int]) -> Haystack:
    """Lay a thread: the value at each of these positions becomes the key at the next one.

    Raises
    ------
    UserError
        A position comes twice or is no pair.
    """
    have = len(haystack.pairs)
    if not positions or len(set(positions)) < len(positions) or not all(0 <= p < have for p in positions):
        raise UserError(f"a thread visits different pairs of the {have}, not {list(positions)}")
    pairs = list(haystack.pairs)
    for here, there in pairwise(positions):
        pairs[here] = pairs[here][0], haystack.keys[there]
    return replace(haystack, pairs=tuple(pairs))


def _ordered(places: list[int], direction: Direction, draw: random.Random) -> list[int]:
    if direction not in get_args(Direction):
        raise UserError(f"unknown direction {direction!r}; one of {', '.join(get_args(Direction))}")
    if direction == "random":
        return draw.sample(places, len(places))
    return sorted(places, reverse=direction == "backward")


_FOLLOW = (
    "In the JSON object above a value may be the key of another pair. Look up the value of the key, "
    "then the value of that value, and so on, until a value is no key."
)


def thread(haystack: Haystack, length: int, direction: Direction = "forward", seed: int = 0) -> Example:
    """Ask for the last value of a thread of `length` look-ups that runs forward, backward or either way."""
    draw = random.Random(seed)
    positions = _ordered(_places(haystack, length, "random", draw), direction, draw)
    laid = thread_at(haystack, positions)
    question = f'{_FOLLOW} Start with the key "{laid.keys[positions[0]]}".\nCorresponding final value:'
    about = {"steps": length, "direction": direction, "positions": tuple(positions)}
    return Example("thread", laid, question, (laid.values[positions[-1]],), about)


def multi_thread(
    haystack: Haystack, threads: int, length: int, direction: Direction = "forward", seed: int = 0
) -> Example:
    """Ask for the last values of several threads that share no pair."""
    if threads < 1 or length < 1:
        raise UserError(f"{threads} threads of {length} look-ups ask for nothing; pass at least 1 of 1")
    draw = random.Random(seed)
    places = draw.sample(_places(haystack, threads * length, "random", draw), threads * length)
    laid, ends = haystack, []
    for first in range(0, len(places), length):
        positions = _ordered(places[first : first + length], direction, draw)
        laid = thread_at(laid, positions)
        ends.append((positions[0], positions[-1], tuple(positions)))
    starts = _list([laid.keys[start] for start, _, _ in ends])
    question = f"{_FOLLOW} Do so for each of the keys {starts}. {_ONLY.replace('values:', 'final values:')}"
    about = {"threads": threads, "steps": length, "direction": direction, "positions": tuple(p for _, _, p in ends)}
    return Example("multi-thread", laid, question, tuple(laid.values[end] for _, end, _ in ends), about)
