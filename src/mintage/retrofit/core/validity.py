"""Which tokens may follow a canonical encoding: told for a whole vocabulary at once, without asking the tokenizer.

Two facts about byte-pair encodings save 49,152 questions per byte:

- a list of tokens within one word is canonical exactly where every two neighbours are, and two neighbours are unless
  a merge across them would have come before those that made them (`Neighbours`);
- where words end depends on the kinds of characters: with letters replaced by one letter, a text is cut alike
  (`Cuts`), so that few texts have to be cut for all tokens, and most are remembered.

What these cannot tell, about a few tokens, is left open (`ASK`). Not here: other models than BPE, normalizers that
rewrite characters, pre-tokenizers that look further back than two words; for those `Validity.of` gives None.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

__all__ = ["ASK", "Cuts", "Neighbours", "Validity"]

ASK = -1
"""Neither valid (1) nor invalid (0): ask the tokenizer."""

_NEVER = np.iinfo(np.int32).max
_KEPT = 128


# -- within a word -----------------------------------------------------------------------------------------------------


class Neighbours:
    """Canonical neighbours under the merges of a BPE model.

    A merge happens at the rank of its pair, or, where what it joins came later, as soon as both are there. Undoing the
    later of the two sides step by step meets every moment at which their inner ends stood beside each other.

    Parameters
    ----------
    vocab
        Ids of all tokens.
    merges
        Pairs of tokens, the first merged first.
    """

    def __init__(self, vocab: dict[str, int], merges: Sequence[tuple[str, str]]) -> None:
        self.size = max(vocab.values()) + 1
        self.left, self.right = np.full(self.size, -1), np.full(self.size, -1)
        self.level = np.full(self.size, -1)  # when a token is there; characters are from the beginning
        self.early = np.zeros(self.size, bool)  # joined as soon as its parts were there
        self.reachable = np.zeros(self.size, bool)
        pairs = [(vocab[a], vocab[b], vocab[a + b]) for a, b in merges]
        first, second, made = (np.array(column, np.int64) for column in zip(*pairs, strict=True)) if pairs else (
            np.zeros(0, np.int64),
        ) * 3  # fmt: skip
        self._ranks = np.arange(len(made))
        order = np.lexsort((second, first))
        self._second, self._rank = second[order], self._ranks[order]
        self._start = np.searchsorted(first[order], np.arange(self.size + 1))
        self._keys = first[order] * self.size + second[order]
        self._after: OrderedDict[int, NDArray[np.int8]] = OrderedDict()
        self._derive(vocab, first, second, made)

    def _derive(self, vocab: dict[str, int], first: NDArray[Any], second: NDArray[Any], made: NDArray[Any]) -> None:
        """Tell how each token comes about: by the one merge that nothing across its two sides comes before."""
        length = np.zeros(self.size, int)
        for name, token in vocab.items():
            length[token] = len(name)
        self.reachable[(length == 1) | ~np.isin(np.arange(self.size), made)] = True
        for size in np.unique(length[made]):
            some = np.flatnonzero(length[made] == size)
            a, b = first[some], second[some]
            some = some[self.reachable[a] & self.reachable[b]]
            a, b, t, rank = first[some], second[some], made[some], self._ranks[some]
            stands = self._look(a, b, np.maximum(rank, np.maximum(self.level[a], self.level[b]))) != 0
            a, b, t, rank = a[stands], b[stands], t[stands], rank[stands]
            self.left[t], self.right[t], self.reachable[t] = a, b, True
            self.level[t] = np.maximum(rank, np.maximum(self.level[a], self.level[b]))
            self.early[t] = (rank < self.level[t]) | self.early[a] | self.early[b]

    def _pair_ranks(self, x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
        keys = x * self.size + y
        place = np.minimum(np.searchsorted(self._keys, keys), max(len(self._keys) - 1, 0))
        if not len(self._keys):
            return np.full(len(keys), _NEVER)
        return np.where(self._keys[place] == keys, self._rank[place], _NEVER)

    def _look(self, a: NDArray[Any], b: NDArray[Any], joined: NDArray[Any] | None = None) -> NDArray[np.int8]:
        """Say of pairs of tokens whether they stay beside each other (1), do not (0), or ASK.

        Parameters
        ----------
        joined
            When they become one token; default never, and then that must not happen either.
        """
        told = np.ones(len(a), np.int8)
        lanes = np.arange(len(a))
        x, y = a.copy(), b.copy()
        until_x = np.full(len(a), _NEVER) if joined is None else joined.copy()
        until_y = until_x.copy()
        outermost = joined is not None
        tables: dict[int, NDArray[Any]] = {}
        single = len(a) > 64 and bool((a == a[0]).all())
        while len(lanes):
            rank = self._from(tables, x, y) if single else self._pair_ranks(x, y)
            born = np.maximum(self.level[x], self.level[y])
            moment = np.maximum(rank, born)
            pair = rank < _NEVER
            meets = pair & (moment < until_x) & (moment <= until_y)
            # a pair that came too late for its rank is joined at once, unless something else at that moment is
            unsure = pair & (rank < born) & ((moment == until_x) | (moment == until_y))
            unsure |= (self.level[x] == self.level[y]) & (born >= 0) & (self.early[x] | self.early[y])
            if outermost:
                meets[:], unsure[:] = False, False
                outermost = False
            told[lanes[meets]] = 0
            told[lanes[unsure]] = ASK
            going = ~meets & ~unsure & (born >= 0)
            undo = self.level[x] > self.level[y]
            undo_x, undo_y = going & undo, going & ~undo
            until_x[undo_x], x[undo_x] = self.level[x[undo_x]], self.right[x[undo_x]]
            until_y[undo_y], y[undo_y] = self.level[y[undo_y]], self.left[y[undo_y]]
            lanes, x, y, until_x, until_y = (part[going] for part in (lanes, x, y, until_x, until_y))
        return told

    def _from(self, tables: dict[int, NDArray[Any]], x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
        """Ranks of pairs whose left side takes few values: one table for each."""
        rank = np.full(len(x), _NEVER)
        for token in np.unique(x):
            if token not in tables:
                table = tables[int(token)] = np.full(self.size, _NEVER)
                span = slice(self._start[token], self._start[token + 1])
                table[self._second[span]] = self._rank[span]
            mine = x == token
            rank[mine] = tables[int(token)][y[mine]]
        return rank

    def after(self, token: int) -> NDArray[np.int8]:
        """Say of every token whether it stays beside `token` on its left, [V]; remembered."""
        known = self._after.get(token)
        if known is None:
            every = np.flatnonzero(self.reachable)
            known = np.zeros(self.size, np.int8)
            if self.reachable[token]:
                known[every] = self._look(np.full(len(every), token), every)
            self._after[token] = known
            if len(self._after) > _KEPT:
                self._after.popitem(last=False)
        self._after.move_to_end(token)
        return known


# -- between words -----------------------------------------------------------------------------------------------------

_GPT2_LETTERS = "strevmld"  # 's 't 're 've 'm 'll 'd
_JOINED, _CUT, _SPLIT, _CHANGED = 0, 1, 2, 3


class Cuts:
    """Where a pre-tokenizer cuts a text that goes on with any of many strings.

    Parameters
    ----------
    pre_tokenizer
        Of a tokenizer; None cuts nowhere.
    named
        Letters that its patterns name (those of contractions, after an apostrophe); others are alike.
    exact
        Whether characters beyond ASCII are not alike either.
    strings
        What a text may go on with.
    """

    def __init__(self, pre_tokenizer: Any, named: str, exact: bool, strings: Sequence[str]) -> None:
        self.pre_tokenizer, self.named, self.exact = pre_tokenizer, set(named), exact
        self._alike: dict[tuple[bool, str], str] = {
            (True, "Ll"): next((c for c in "abcdefghijklmnopqrstuvwxyz" if c not in self.named), "a"),
            (True, "Lu"): next((c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c.lower() not in self.named), "A"),
            (True, "Nd"): "0",
        }
        kinds: dict[str, int] = {}
        self.kind = np.array([kinds.setdefault("".join(self._signed(s)[0]), len(kinds)) for s in strings], int)
        self.kinds = list(kinds)
        self.risky = np.array([s[:1].lower() in self.named for s in strings], bool)
        self._known: OrderedDict[str, tuple[NDArray[np.int8], NDArray[Any], list[tuple[int, ...]]]] = OrderedDict()

    def starts(self, text: str) -> list[int]:
        """Return where the words of a text start."""
        if self.pre_tokenizer is None or not text:
            return [0] if text else []
        return [start for _, (start, _) in self.pre_tokenizer.pre_tokenize_str(text)]

    def _signed(self, text: str) -> tuple[list[str], list[int]]:
        """Replace characters by others of their kind, long runs of letters by short ones; and where each was."""
        if "'" in text or "\u2019" in text:
            return list(text), list(range(len(text)))
        letters: list[str] = []
        places: list[int] = []
        for place, c in enumerate(text):
            kind = c.isascii(), unicodedata.category(c)
            if not (c.isspace() or (c.isascii() and not c.isalnum()) or (self.exact and not c.isascii())):
                c = self._alike.setdefault(kind, c)
            if kind[1][0] == "L" and letters[-3:] == [c] * 3:
                places[-1] = place
                continue
            letters.append(c)
            places.append(place)
        return letters, places

    def tell(self, text: str, ends: set[int]) -> NDArray[np.int8]:
        """Say of every string whether its first character continues the last word of `text` or starts a new one.

        Parameters
        ----------
        text
            The last two words.
        ends
            Where tokens start and end in it.

        Returns
        -------
        ``_JOINED``, ``_CUT``, ``_SPLIT`` (a word ends within the string or within a token of the text) or ASK,
        [strings].
        """
        letters, places = self._signed(text)
        key = "".join(letters)
        if key not in self._known:
            self._known[key] = self._cut(key)
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        codes, which, changes = self._known[key]
        if changes:
            codes = codes.copy()
            for number, added in enumerate(changes):
                within = any(places[cut] not in ends for cut in added)
                codes[which == number] = _SPLIT if within else ASK
        told = codes[self.kind]
        if "'" in text[-3:] or "\u2019" in text[-3:]:
            told = np.where(self.risky, np.int8(ASK), told)
        return told

    def _cut(self, text: str) -> tuple[NDArray[np.int8], NDArray[Any], list[tuple[int, ...]]]:
        size, own = len(text), set(self.starts(text))
        codes, which = np.zeros(len(self.kinds), np.int8), np.full(len(self.kinds), -1)
        changes: dict[tuple[int, ...], int] = {}
        for number, string in enumerate(self.kinds):
            starts = set(self.starts(text + string))
            before = {start for start in starts if start < size}
            if any(start > size for start in starts):
                codes[number] = _SPLIT
            elif before != own:
                codes[number] = _CHANGED
                which[number] = changes.setdefault(tuple(sorted(before - own)), len(changes))
            else:
                codes[number] = _CUT if size in starts else _JOINED
        return codes, which, list(changes)


# -- both --------------------------------------------------------------------------------------------------------------


class Validity:
    """What may follow an encoding, for a tokenizer whose parts allow to tell.

    Parameters
    ----------
    neighbours
        Of the merges.
    cuts
        Of the pre-tokenizer, over the strings of `owners`.
    owners
        The token that each string belongs to; one that ends within a character has several, with completions.
    alone
        Whether each string, encoded alone, begins with its token.
    tokens
        Bytes of every token.
    added
        Texts that the tokenizer takes out before it encodes.
    kinds
        Of each string's first character: 0 a letter, 1 a number, 2 anything else, 3 white space.
    """

    def __init__(
        self,
        neighbours: Neighbours,
        cuts: Cuts,
        owners: NDArray[Any],
        alone: NDArray[np.bool_],
        tokens: Sequence[bytes],
        added: Sequence[bytes] = (),
        kinds: NDArray[Any] | None = None,
    ) -> None:
        self._kinds = np.full(len(owners), 3) if kinds is None else kinds
        self.neighbours, self.cuts, self.owners, self.alone = neighbours, cuts, owners, alone
        self.tokens, self.added = tokens, [text for text in added if text]
        within = re.compile(b"|".join(map(re.escape, self.added)) or b"(?!)")
        self._taken = np.array([within.search(token) is not None for token in tokens], bool)
        whole = np.bincount(owners, minlength=len(tokens)) == 1
        self._simple = np.flatnonzero(whole[owners])  # strings of tokens that have only one
        self._several = np.flatnonzero(~whole[owners])
        self._inner = np.array([raw[:1] != b"" and raw[0] & 0xC0 == 0x80 for raw in tokens], bool)
        # bytes that stand for themselves, and tokens that no merges make
        self._unowned = (np.bincount(owners, minlength=len(tokens)) == 0) & ~self._inner
        self._unowned[np.flatnonzero(~neighbours.reachable)] = True

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, tokens: Sequence[bytes], completions: Callable[[bytes], list[str]]
    ) -> Validity | None:
        """Read a tokenizer; None where only it can tell.

        Parameters
        ----------
        tokenizer
            Takes special tokens for text.
        tokens
            Bytes of every token.
        completions
            Texts that bytes may become where their last character is cut, else the one that they are.
        """
        held = json.loads(tokenizer.to_str())
        model = held["model"]
        plain = model.get("type") == "BPE" and not any(
            model.get(name) for name in ("dropout", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
        )
        pattern = _patterns(held.get("pre_tokenizer"))
        if not plain or pattern is None or not _keeps_characters(held.get("normalizer")):
            return None
        named, exact, cutting = pattern
        spaced = held.get("normalizer") is not None  # spaces are another character when they are cut
        if spaced and cutting:
            return None
        merges = [tuple(pair) if not isinstance(pair, str) else tuple(pair.split(" ")) for pair in model["merges"]]
        neighbours = Neighbours(model["vocab"], merges)  # type: ignore[arg-type]
        alike = set(_byte_tokens(model["vocab"])) if model.get("byte_fallback") else set()
        owners, strings = [], []
        for token, raw in enumerate(tokens):
            if raw and token not in alike and raw[0] & 0xC0 != 0x80:
                for string in completions(raw) if cutting or not _whole(raw) else [""]:
                    owners.append(token)
                    strings.append(string)
        owners = np.array(owners, int)
        first = [e.ids[:1] for e in tokenizer.encode_batch_fast(strings, add_special_tokens=False)]
        alone = np.array(
            [ids == [owner] if ids else neighbours.reachable[owner] for ids, owner in zip(first, owners, strict=True)],
            bool,
        )
        cuts = Cuts(
            tokenizer.pre_tokenizer if cutting else None, named, exact, strings if cutting else [""] * len(owners)
        )
        added = [t["content"].encode() for t in held.get("added_tokens", []) if not t["special"]]
        return cls(neighbours, cuts, owners, alone, tokens, added, np.array([_kind(string) for string in strings], int))

    def after(self, left: Sequence[int], *, before: Sequence[bool | None] | None = None) -> NDArray[np.int8]:
        """Say of every token whether it may follow an encoding: 1, 0 or ASK, [V].

        Parameters
        ----------
        left
            The canonical encoding, or its last words.
        before
            Given where `left` ends in white space and is an encoding only before certain characters: for letters,
            numbers and others, whether they start a word (or go on with the one that its last token is), or None.
        """
        size = len(self.tokens)
        text = b"".join(self.tokens[t] for t in left)
        try:
            string = text.decode()
        except UnicodeDecodeError:  # within a character: only its other bytes can follow
            return np.where(self._inner, ASK, 0).astype(np.int8)
        told = np.full(size, ASK, np.int8)
        if left and self._taken[left[-1]]:
            return told
        if before is not None:
            codes = np.array([_SPLIT if cut is None else _CUT if cut else _JOINED for cut in (*before, None)])
            return self._told(codes[self._kinds], left, text)
        starts = self.cuts.starts(string)
        begin = starts[-2] if len(starts) > 1 else 0
        ends = _ends(self.tokens, left, string, begin)
        if self.cuts.starts(string[begin:]) != [start - begin for start in starts[-2:]]:
            return told
        codes = self.cuts.tell(string[begin:], ends)
        return self._told(codes, left, text)

    def _told(self, codes: NDArray[Any], left: Sequence[int], text: bytes) -> NDArray[np.int8]:
        """Say of tokens what follows from how their strings are cut off from `left`."""
        size = len(self.tokens)
        if left:
            beside = np.zeros(size, np.int8)
            known = self.neighbours.after(left[-1])
            beside[: min(size, len(known))] = known[:size]
            if left[-1] >= len(known) or not self.neighbours.reachable[left[-1]]:
                beside[:] = ASK
        else:
            beside, codes = np.zeros(size, np.int8), np.where(codes == _JOINED, np.int8(_CUT), codes)
        joined = np.where(beside[self.owners] == 1, self.alone.astype(np.int8), beside[self.owners])
        by_string = np.select([codes == _JOINED, codes == _CUT, codes == _SPLIT], [joined, self.alone, 0], ASK)
        told = np.zeros(len(self.tokens), np.int8)
        told[self.owners[self._simple]] = by_string[self._simple]
        for want in (ASK, 1):  # a token is valid if one of its completions keeps it
            told[self.owners[self._several[by_string[self._several] == want]]] = want
        told[self._unowned] = ASK
        if self.added:
            told[self._taken] = ASK
            told[self._starting(text)] = ASK
        return told

    def _starting(self, text: bytes) -> NDArray[np.bool_]:
        """Tokens with which an added text that begins at the end of `text` would be complete."""
        rests = {a[cut:] for a in self.added for cut in range(1, len(a)) if text.endswith(a[:cut])}
        if not rests:
            return np.zeros(len(self.tokens), bool)
        return np.array([any(raw.startswith(rest) for rest in rests) for raw in self.tokens], bool)


def _ends(tokens: Sequence[bytes], left: Sequence[int], string: str, begin: int) -> set[int]:
    """Where tokens end in the string from `begin` on, in characters; ends within a character are left out."""
    raw, ends = string[begin:].encode(), set()
    at = len(raw)
    for token in reversed(left):
        if at < 0:
            break
        if at == len(raw) or raw[at] & 0xC0 != 0x80:
            ends.add(len(raw[:at].decode()))
        at -= len(tokens[token])
    return ends | {0}


def _kind(string: str) -> int:
    first = string[:1]
    if not first or (first.isspace() and first not in "\x1c\x1d\x1e\x1f"):  # which Unicode does not call white space
        return 3
    return 0 if first.isalpha() else 1 if first.isnumeric() else 2


def _whole(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _byte_tokens(vocab: dict[str, int]) -> list[int]:
    return [i for name, i in vocab.items() if re.fullmatch(r"<0x[0-9A-F]{2}>", name)]


def _keeps_characters(part: Any) -> bool:
    """Whether a normalizer does no more than to write spaces otherwise."""
    if part is None:
        return True
    if part["type"] == "Sequence":
        return all(map(_keeps_characters, part["normalizers"]))
    if part["type"] == "Replace":
        return part["pattern"] == {"String": " "} and part["content"] == "\u2581"
    return part["type"] == "Prepend"


def _patterns(part: Any) -> tuple[str, bool, bool] | None:
    """Return letters that a pre-tokenizer names, whether it names others, whether it cuts; None for unknown ones."""
    if part is None:
        return "", False, False
    kind = part["type"]
    if kind == "Sequence":
        found = [_patterns(one) for one in part["pretokenizers"]]
        known = [one for one in found if one is not None]
        if len(known) < len(found):
            return None
        return "".join(one[0] for one in known), any(one[1] for one in known), any(one[2] for one in known)
    if kind == "ByteLevel":
        if part.get("add_prefix_space"):
            return None
        return (_GPT2_LETTERS, False, True) if part.get("use_regex", True) else ("", False, False)
    if kind in ("Digits", "Punctuation"):
        return "", False, True
    if kind == "Split":
        if "Regex" not in part["pattern"]:  # of a space, which the normalizer has replaced
            return ("", False, False) if part["pattern"] == {"String": " "} else None
        source: str = part["pattern"]["Regex"]
        classes = re.findall(r"\\[pP]\{\^?(\w+)\}", source)
        rest = re.sub(r"\\[pP]\{\^?\w+\}|\\.|\(\?[a-z]+[:)]|a-z|A-Z", "", source)
        letters = "".join(sorted({c.lower() for c in rest if c.isascii() and c.isalpha()}))
        general = all(re.fullmatch(r"[LMNPSZC][a-z&]?", name) for name in classes)
        return letters, not general or not rest.isascii(), True
    return None
