"""Less-is-Better (LiB): learn a ranked lexicon of subwords, words and phrases by memorising and forgetting.

The learner reads articles, always taking the longest unit that it knows. It memorises units that keep standing side by
side, moves a unit up when reading with it needs fewer steps than reading with its next-shorter rival, down when it does
not, and forgets what is not used on probation. No pre-tokenizer is needed: units may hold spaces, and text without
spaces is read the same way. A newline ends a sentence; no unit crosses it.

Training is that of the authors' code (the 2020 model that the paper re-uses), number for number when nothing is drawn
(``memorize=1``). Ours: articles are drawn from a bounded sample of the corpus, so that it can stream; the tokenizer is
made byte-lossless, by 256 byte tokens and an alphabet that stays even where the learner forgot a character.

Not here: the skip-gram mode, which the authors' code has as an experiment.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mintage.errors import UserError, missing_extra
from mintage.files import replace_file
from mintage.segment.contract import Progress, Segmenter, Trainer, as_bytes, silent
from mintage.segment.core.hf import BYTE_CHARS, byte_level, to_byte_chars

__all__ = ["ArticleStats", "Lexicon", "LiB", "LiBSegmenter"]

_READ = 14_000_000  # characters: the authors' 5000 articles of 200 utterances of 14 characters
_LONGEST = 2000  # characters of a line read as one sentence
_SAVE_EVERY = 10  # articles
_BLOCK = 128  # units that a move searches one by one
_WINDOW = 1 << 13  # bytes cut at once


class ArticleStats(NamedTuple):
    """What reading one article was like."""

    covered: float
    """Share of characters inside a known unit."""
    mean_length: float
    """Characters per unit read; an unknown character counts as one unit."""
    used: float
    """Share of the lexicon, after the article, that was read in it."""
    added: int
    """Units memorised."""
    size: int
    """Units in the lexicon after the article."""


class Lexicon:
    """The ranked list of units and the probation table, with a trie over the list.

    Parameters
    ----------
    units
        In rank order, best first, without duplicates.
    probation
        Unit to the number of articles in which it must prove itself.
    max_len, life, memorize, forget, update, max_gap
        As in `LiB`.
    """

    def __init__(
        self,
        units: Iterable[str],
        probation: dict[str, int],
        *,
        max_len: int = 12,
        life: int = 10,
        memorize: float = 0.25,
        forget: float = 1e-4,
        update: float = 0.2,
        max_gap: int = 2,
    ) -> None:
        self.units = list(units)
        self.probation = dict(probation)
        self.max_len, self.life, self.max_gap = max_len, life, max_gap
        self.memorize, self.forget, self.update = memorize, forget, update
        self.ranks = {unit: rank for rank, unit in enumerate(self.units)}
        # a node maps characters to nodes, and "" to its answer: the longest unit on the way to it, and the second
        self._trie: dict[str, Any] = {"": ("", "")}
        for unit in self.units:
            self._insert(unit)

    def match(self, text: str, start: int = 0) -> tuple[str, str]:
        """Return the longest unit that `text` has at `start`, and the next-shorter one; either may be empty."""
        node = self._trie
        for char in text[start : start + self.max_len]:
            deeper = node.get(char)
            if deeper is None:
                break
            node = deeper
        return node[""]

    def read(self, article: Iterable[str], rng: random.Random) -> ArticleStats:
        """Read one article, a list of sentences, and learn from it."""
        units, ranks, probation, match = self.units, self.ranks, self.probation, self.match
        known_before = len(units)
        events: list[tuple[str, int]] = []
        proposed: set[str] = set()
        used: set[str] = set()
        chars = pieces = gaps = streak = 0
        for sentence in article:
            length = len(sentence)
            chars += length
            found: list[Any] = [None] * length  # answers of `match` by position; both paths ask for many twice
            pending: dict[str, list[Any]] = {}  # tests: unit -> where its rival path is, where its own starts, rival
            path: list[str] = []  # units read in this sentence; "" is an unknown character
            last, known = "", False
            i = 0
            while i < length:
                # 1. advance the rival path of every test; where both paths meet, decide
                decided = []
                for unit, test in pending.items():
                    end, start, rival = test
                    while end < i:
                        answer = found[end]
                        if answer is None:
                            answer = found[end] = match(sentence, end)
                        rival.append(answer[0])
                        end += len(answer[0]) or 1
                    test[0] = end
                    if end == i:
                        decided.append(unit)
                        if self._is_redundant(path[start:], rival):
                            events += ((unit, +1), (match(unit[:-1])[0], -1))
                        else:
                            events.append((unit, -1))
                            probation.pop(unit, None)
                for unit in decided:
                    del pending[unit]
                # 2. the longest unit here, and its next-shorter rival
                answer = found[i]
                if answer is None:
                    answer = found[i] = match(sentence, i)
                unit, second = answer
                path.append(unit)
                if not unit:  # 4. an unknown character: the unknown stretch grows
                    last, known = (sentence[i] if known else last + sentence[i]), False
                    i += 1
                    gaps, pieces, streak = gaps + 1, pieces + 1, 0
                    continue
                # 3a. a candidate is noted when met once in this article, memorised when met twice;
                # the guard with the number 2 is as in the authors' code: the size of a record, not a length
                if 2 + len(unit) <= self.max_len and rng.random() < self.memorize:
                    candidate = ""
                    if known:
                        if len(last) + len(unit) <= self.max_len:
                            candidate = last + unit
                    elif len(last) <= self.max_gap:
                        candidate = last
                    if candidate and candidate not in ranks:
                        if candidate in proposed:
                            proposed.remove(candidate)
                            ranks[candidate] = len(units)
                            units.append(candidate)
                            self._insert(candidate)
                            found = [None] * length
                        else:
                            proposed.add(candidate)
                # 3b. test the unit against its rival; one without a rival has only to occur
                if second and len(unit) > 1:
                    pending[unit] = [i + len(second), len(path) - 1, [second]]
                elif unit in probation:
                    del probation[unit]
                if i == 0 and streak == 1:
                    pieces -= 1  # as in the authors' statistics: a sentence of one unit and the next unit count as one
                streak = streak + 1 if known else 1
                pieces += 1
                used.add(unit)
                i += len(unit)
                last, known = unit, True
        added = len(units) - known_before
        self._update(events)
        size = len(self.units)
        share = len(used & self.ranks.keys()) / size if size else 0.0
        return ArticleStats(1 - gaps / chars if chars else 0.0, chars / pieces if chars else 0.0, share, added, size)

    def _is_redundant(self, path: list[str], rival: list[str]) -> bool:
        """Whether the rival path knows more characters, or as many with fewer units or units of better rank."""
        unknown, rival_unknown = path.count(""), rival.count("")
        if unknown != rival_unknown:
            return unknown > rival_unknown
        steps = len(path) - unknown
        if steps != len(rival):
            return steps > len(rival)
        ranks = self.ranks
        return sum([ranks[u] for u in path if u]) > sum([ranks[u] for u in rival if u])

    def _update(self, events: list[tuple[str, int]]) -> None:
        """Forget, move and put on probation after an article; +1 moves a unit to the tail, -1 to the head."""
        expired = {unit for unit, life in self.probation.items() if life <= 1}
        self.probation = {unit: life - 1 for unit, life in self.probation.items() if life > 1}
        for unit in expired & self.ranks.keys():
            self._delete(unit)
        left = [unit for unit in self.units if unit not in expired] if expired else self.units
        self.units, dropped = _moved(left, events, self.update)
        for unit in dropped:
            self._delete(unit)
        self.ranks = {unit: rank for rank, unit in enumerate(self.units)}
        for unit in self.units[int((1 - self.forget) * len(self.units)) :]:
            self.probation.setdefault(unit, self.life)

    def _insert(self, unit: str) -> None:
        node = self._trie
        for char in unit:
            deeper = node.get(char)
            if deeper is None:
                deeper = node[char] = {"": node[""]}
            node = deeper
        _answer(node, (unit, node[""][0]), len(unit))

    def _delete(self, unit: str) -> None:
        path = [self._trie]
        for char in unit:
            path.append(path[-1][char])
        for depth in range(len(unit), 0, -1):
            node = path[depth]
            if len(node) > 1 or (depth < len(unit) and len(node[""][0]) == depth):
                break  # others run through this node, or a shorter unit ends here
            del path[depth - 1][unit[depth - 1]]
        _answer(path[-1], path[-2][""], len(unit))


def _answer(node: dict[str, Any], answer: tuple[str, str], depth: int) -> None:
    """Give the node at `depth` its answer, and hand down what changes by it."""
    node[""] = answer
    for char, deeper in node.items():
        if char:
            longest, second = deeper[""]
            if len(longest) != depth + 1:  # no unit ends there
                _answer(deeper, answer, depth + 1)
            elif second != answer[0]:
                _answer(deeper, (longest, answer[0]), depth + 1)


def _moved(units: list[str], events: list[tuple[str, int]], rate: float) -> tuple[list[str], list[str]]:
    """Move units by a share of their rank, one event after the other; return them, and those moved past the end.

    The list is cut into blocks, so that a move costs a search within one and a walk over some, not over all units.
    """
    blocks = [units[k : k + _BLOCK] for k in range(0, len(units), _BLOCK)]
    sizes = list(map(len, blocks))
    block_of = {unit: b for b, block in enumerate(blocks) for unit in block}
    size, dropped = len(units), []
    for unit, direction in events:
        b = block_of.get(unit)
        if b is None:
            continue  # forgotten, or the empty rival
        place = blocks[b].index(unit)
        rank = sum(sizes[:b]) + place
        if not rank:
            continue  # the best unit stays
        step = int(rank * rate) + 1
        del blocks[b][place]
        sizes[b] -= 1
        if direction > 0 and rank + step >= size:
            size -= 1
            del block_of[unit]
            dropped.append(unit)
            continue
        place += direction * step
        while place < 0:
            b -= 1
            place += sizes[b]
        while place > sizes[b]:
            place -= sizes[b]
            b += 1
        blocks[b].insert(place, unit)
        sizes[b] += 1
        block_of[unit] = b
    return [unit for block in blocks for unit in block], dropped


@dataclass(frozen=True, kw_only=True)
class LiB(Trainer):
    """Train a Less-is-Better tokenizer.

    Parameters
    ----------
    vocab_size
        Entries of the tokenizer: 256 bytes, the alphabet, and the units of best rank. Fewer when fewer were learned;
        None keeps all.
    max_len
        Characters of the longest unit, in training and after (the authors' code reads with 10 where it trained with
        12).
    life
        Articles in which a unit on probation must prove itself, or it is forgotten.
    memorize
        Probability that neighbours are noted for memorising (alpha).
    forget
        Share of the lexicon, at its tail, that goes on probation after every article (omega).
    update
        Share of its rank by which a unit moves (delta).
    max_gap
        Unknown characters in a row that may become one unit.
    article_size
        Sentences (lines) drawn for an article, with replacement; doubles are dropped, as in the authors' demonstration.
    epochs
        Articles read, which is what the authors call an epoch. None reads about 14 million characters, as much as
        their 5000 articles of 200 short utterances.
    pool
        Sentences held in memory; articles are drawn from them. A longer corpus is sampled evenly while it streams by.
    character_coverage
        Share of the characters read that the alphabet must cover; rarer ones become bytes.
    seed
        Of the sample, the articles and the memorising.

    Raises
    ------
    UserError
        A setting is out of range.

    References
    ----------
    Yang, "Rethinking Tokenization: Crafting Better Tokenizers for Large Language Models", 2024 (arXiv:2403.00417);
    Yang, Frank and van den Bosch, "Less is Better", CogALex 2020.
    """

    vocab_size: int | None = None
    max_len: int = 12
    life: int = 10
    memorize: float = 0.25
    forget: float = 1e-4
    update: float = 0.2
    max_gap: int = 2
    article_size: int = 200
    epochs: int | None = None
    pool: int = 100_000
    character_coverage: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_len", "life", "article_size", "pool"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}; pass at least 1")
        for name in ("memorize", "forget", "update", "character_coverage"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} is outside [0, 1]; pass a share, e.g. 0.2")
        if self.max_gap < 0:
            raise UserError(f"max_gap={self.max_gap}; pass 0 or more characters")
        if self.epochs is not None and self.epochs < 1:
            raise UserError(f"epochs={self.epochs}; pass at least 1 article, or None to choose by the length of lines")
        if self.vocab_size is not None and self.vocab_size < 257:
            raise UserError(f"vocab_size={self.vocab_size}; pass more than the 256 bytes, e.g. 8000")

    def train(
        self, texts: Iterable[str], *, work: str | Path | None = None, progress: Progress = silent
    ) -> LiBSegmenter:
        """Learn a lexicon and make a tokenizer of it.

        Parameters
        ----------
        texts
            Documents, read once; lines of more than 2000 characters are read in pieces of that length.
        work
            A folder that keeps the lexicon every 10 articles; the same call goes on from there after a kill, and one
            with more `epochs` or another `vocab_size` from the end.
        progress
            Told the sentences collected and the articles read.

        Raises
        ------
        UserError
            The corpus is empty, `vocab_size` is smaller than the bytes and the alphabet, or `work` holds other work.
        """
        sentences = self._sample(texts, progress)
        alphabet = self._alphabet(sentences)
        fixed = 256 + sum(char > "\x7f" for char in alphabet)
        if self.vocab_size is not None and self.vocab_size < fixed:
            raise UserError(
                f"vocab_size={self.vocab_size} is smaller than 256 bytes and {fixed - 256} characters; "
                f"pass more than {fixed}, or a character_coverage below {self.character_coverage:g}"
            )
        lexicon = self._learn(sentences, alphabet, None if work is None else Path(work) / "lib.json", progress)
        return LiBSegmenter(
            _best(lexicon.units, alphabet, None if self.vocab_size is None else self.vocab_size - fixed), alphabet
        )

    def _sample(self, texts: Iterable[str], progress: Progress) -> list[str]:
        """Return the corpus's sentences, or an even sample of `pool` of them (reservoir sampling)."""
        if isinstance(texts, (str, bytes)):
            raise UserError("a corpus is an iterable of texts, not one text; pass [text], or Corpus(path) for a file")
        rng = random.Random(f"{self.seed} sample")
        held: list[str] = []
        for count, sentence in enumerate(_sentences(texts)):
            if count < self.pool:
                held.append(sentence)
            elif (place := rng.randrange(count + 1)) < self.pool:
                held[place] = sentence
            if count % 10_000 == 0:
                progress("collecting", count, 0)
        if not held:
            raise UserError("the corpus is empty; pass at least one line of text")
        return held

    def _alphabet(self, sentences: list[str]) -> list[str]:
        """Return the characters, in code order, that make up `character_coverage` of the sample."""
        counts: Counter[str] = Counter()
        for sentence in sentences:
            counts.update(sentence)
        left = (1 - self.character_coverage) * counts.total()
        kept = set(counts)
        for char, count in sorted(counts.items(), key=lambda item: (item[1], item[0])):
            if count > left:
                break
            left -= count
            kept.remove(char)
        return sorted(kept)

    def _learn(self, sentences: list[str], alphabet: list[str], state: Path | None, progress: Progress) -> Lexicon:
        settings = {name: getattr(self, name) for name in _LEXICON_SETTINGS}
        lexicon, done = Lexicon(alphabet, dict.fromkeys(alphabet, self.life), **settings), 0
        epochs, mark = self._epochs(sentences), ""
        if state:
            mark = self._mark(sentences)
            if state.exists():
                done, units, probation = _read_state(state, mark)
                lexicon = Lexicon(units, probation, **settings)
            if done > epochs:
                raise UserError(f"{state} holds {done} articles, epochs={epochs}; pass more epochs or another folder")
        for article in range(done, epochs):
            # every article has a generator of its own, so that a resumed run draws what the killed one would have
            rng = random.Random(f"{self.seed} article {article}")
            drawn = sorted(set(rng.choices(range(len(sentences)), k=self.article_size)))
            lexicon.read([sentences[k] for k in drawn], rng)
            progress("reading articles", article + 1, epochs)
            if state and ((article + 1) % _SAVE_EVERY == 0 or article + 1 == epochs):
                _write_state(state, mark, article + 1, lexicon)
        return lexicon

    def _epochs(self, sentences: list[str]) -> int:
        mean = sum(map(len, sentences)) / len(sentences)
        return self.epochs or math.ceil(_READ / (mean * self.article_size))

    def _mark(self, sentences: list[str]) -> str:
        """What a lexicon half learned depends on: the sample and the settings, but not how long or how much is kept."""
        settings = {name: v for name, v in asdict(self).items() if name not in ("epochs", "vocab_size")}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for sentence in sentences:
            digest.update(sentence.encode() + b"\n")
        return digest.hexdigest()[:16]

    @classmethod
    def tiny(cls) -> LiB:
        """Learn from a few lines in a fraction of a second."""
        return cls(vocab_size=480, epochs=30, memorize=0.5)


_LEXICON_SETTINGS = ("max_len", "life", "memorize", "forget", "update", "max_gap")


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        as_bytes(text)  # tells a lone surrogate
        for line in text.split("\n"):
            for start in range(0, len(line), _LONGEST):
                yield line[start : start + _LONGEST]


def _best(units: list[str], alphabet: list[str], room: int | None) -> list[str]:
    """Return the units of best rank, so many that they and the alphabet fill the vocabulary; bytes take no room."""
    if room is None:
        return units
    free, kept = set(alphabet), []
    for unit in units:
        if unit in free or (len(unit) == 1 and unit <= "\x7f"):
            kept.append(unit)
        elif room:
            kept.append(unit)
            room -= 1
    return kept


def _write_state(path: Path, mark: str, done: int, lexicon: Lexicon) -> None:
    held = {"mark": mark, "articles": done, "units": lexicon.units, "probation": lexicon.probation}
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(held, ensure_ascii=False), encoding="utf-8")


def _read_state(path: Path, mark: str) -> tuple[int, list[str], dict[str, int]]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        of, done, units, probation = (held[name] for name in ("mark", "articles", "units", "probation"))
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged; delete it to train from the beginning") from None
    if of != mark:
        raise UserError(f"{path} holds training on other text or with other settings; pass another work folder")
    return done, units, probation


class LiBSegmenter(Segmenter):
    """Greedy longest match over a lexicon; a character that is no unit is cut into its bytes.

    Ids are the 256 bytes, then the units of more than one byte in rank order, then characters that have lost their
    rank.

    Parameters
    ----------
    units
        In rank order, best first.
    alphabet
        Characters that are tokens whether ranked or not.

    Raises
    ------
    ValueError
        A unit is empty or stands there twice.
    """

    method: ClassVar[str] = "lib"

    def __init__(self, units: Sequence[str], alphabet: Sequence[str] = ()) -> None:
        self.units, self.alphabet = list(units), list(alphabet)
        self._ranks = {unit: rank for rank, unit in enumerate(self.units)}
        if len(self._ranks) < len(self.units) or not all(self.units) or any(len(char) != 1 for char in self.alphabet):
            raise ValueError("units are not distinct and of at least one character")
        words = (word.encode() for word in dict.fromkeys(self.units + self.alphabet))
        self._tokens = [bytes([b]) for b in range(256)] + [word for word in words if len(word) > 1]
        self._longest = max(map(len, self._tokens))

    @property
    def vocab_size(self) -> int:
        """Entries, the 256 bytes included."""
        return len(self._tokens)

    def tokens(self) -> list[bytes]:
        """Return the bytes of every id."""
        return list(self._tokens)

    @cached_property
    def _matcher(self) -> Any:
        """Leftmost-longest matches of the tokens' bytes: every byte is one, so they tile the text, greedily.

        UTF-8 synchronises itself: no unit begins or ends inside a character of valid text.
        """
        try:
            from ahocorasick_rs import BytesAhoCorasick, MatchKind
        except ModuleNotFoundError:
            raise missing_extra("ahocorasick-rs", "segment") from None
        return BytesAhoCorasick(self._tokens, matchkind=MatchKind.LeftmostLongest)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Cut bytes, UTF-8 or not."""
        find = self._matcher.find_matches_as_indexes
        ids: list[int] = []
        start, ahead = 0, _WINDOW + self._longest
        while len(data) - start > ahead:  # short windows: millions of matches at once are three times slower
            matches = find(data[start : start + ahead])
            while matches[-1][1] >= _WINDOW:  # might be longer with what comes
                matches.pop()
            ids += [match[0] for match in matches]
            start += matches[-1][2]
        return ids + [match[0] for match in find(data[start:])]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Join the ids' bytes."""
        self.check_ids(ids)
        return b"".join(map(self._tokens.__getitem__, ids))

    def decompose(self, unit: str) -> tuple[str, ...]:
        """Cut a unit into up to four sub-units of better rank; a unit without such parts is returned whole.

        Raises
        ------
        UserError
            `unit` is not in the lexicon.
        """
        if unit not in self._ranks:
            raise UserError(f"{unit!r} is no unit of this lexicon; pass one of its units")
        return tuple(part for half in self._halves(unit) for part in self._halves(half))

    def _halves(self, unit: str) -> tuple[str, ...]:
        ranks = self._ranks
        cuts = [(unit[:k], unit[k:]) for k in range(len(unit) - 1, 0, -1)]
        known = [(ranks[a], ranks[b]) for a, b in cuts if a in ranks and b in ranks]
        if not known or max(min(known)) >= ranks[unit]:
            return (unit,)
        first, second = min(known)
        return self.units[first], self.units[second]

    def to_hf(self) -> Any:
        """Return a ``transformers.PreTrainedTokenizerFast`` with the same ids, for text.

        Its pre-tokenizer is one pattern that matches the longest unit, a trie written as a regular expression; the
        model, BPE without merges, looks units up whole and cuts what lies between them into bytes. It takes linear
        time, where WordPiece's greedy match takes more than quadratic time in the length of a line.
        """
        from tokenizers import Regex, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        words = [token.decode() for token in self._tokens[256:]]
        ids = {char: byte for byte, char in enumerate(BYTE_CHARS)}
        ids |= {to_byte_chars(word): 256 + place for place, word in enumerate(words)}
        splits = [pre_tokenizers.Split(Regex(_longest_match(words)), "isolated")] if words else []
        model = models.BPE(vocab=ids, merges=[], ignore_merges=True)
        return PreTrainedTokenizerFast(tokenizer_object=byte_level(model, *splits), clean_up_tokenization_spaces=False)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the units in rank order and the alphabet."""
        return {"units": self.units, "alphabet": self.alphabet}, {}

    @classmethod
    def from_state(cls, values: dict[str, Any], arrays: dict[str, np.ndarray]) -> LiBSegmenter:
        """Make the segmenter again."""
        return cls(values["units"], values["alphabet"])

    def __reduce__(self) -> Any:
        return type(self), (self.units, self.alphabet)  # the matcher cannot travel to other processes


def _longest_match(words: Sequence[str]) -> str:
    """Return a pattern that matches the longest word at a place: a trie, with optional groups where words end."""
    trie: dict[str, Any] = {}
    for word in words:
        node = trie
        for char in word:
            node = node.setdefault(char, {})
        node[""] = {}

    def write(node: dict[str, Any]) -> str:
        ends = [_escaped(char) for char, deeper in node.items() if char and deeper.keys() == {""}]
        parts = [_escaped(char) + write(deeper) for char, deeper in node.items() if char and deeper.keys() != {""}]
        if ends:
            parts.append(f"[{''.join(ends)}]")
        return f"(?:{'|'.join(parts)}){'?' if '' in node else ''}"

    return write(trie)


def _escaped(char: str) -> str:
    return char if char.isascii() and char.isalnum() else f"\\x{{{ord(char):x}}}"
