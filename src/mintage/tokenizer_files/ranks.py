"""Byte-level vocabularies as tiktoken and Mistral write them: rank files and tekken.json.

A rank file is no whole tokenizer: how text is cut first is told by a table of patterns, in which a published file is
found by its content, any other by its name, or by the caller.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from mintage.errors import UserError, missing_extra
from mintage.tokenizer_files.letters import BYTE_CHARS

__all__ = [
    "PATTERNS",
    "RankFile",
    "for_tokenizers",
    "last_pieces",
    "looks_like_ranks",
    "read_ranks",
    "read_tekken",
    "recover_merges",
    "splits",
]

_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
_GPT4 = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

PATTERNS: dict[str, str] = {
    "gpt2": _GPT2,
    "r50k_base": _GPT2,
    "p50k_base": _GPT2,
    "p50k_edit": _GPT2,
    "multilingual": _GPT2,  # Whisper's
    "cl100k_base": _GPT4,
    "o200k_base": _GPT4O,
    "o200k_harmony": _GPT4O,
    "llama3": _LLAMA3,
    "qwen": _LLAMA3.replace("{1,3}", ""),
}
"""How well-known rank files cut text into pre-tokens: name of the file to regular expression, as tiktoken writes it."""

_PUBLISHED = {
    (50256, "6c3a12d345e6"): "gpt2",
    (50257, "5b98216c4cec"): "multilingual",
    (50280, "7c8ce0f284ba"): "p50k_base",
    (100256, "5afc6e4960ba"): "cl100k_base",
    (199998, "0ed1d9b15240"): "o200k_base",
    (128000, "3e40aced3ec1"): "llama3",
    (151643, "d3ee67455bf4"): "qwen",
}
"""Published files by their number of ranks and a digest of their tokens, whatever they are called."""

_RANK_LINE = re.compile(rb"(?:[A-Za-z0-9+/]+={0,2}|=) \d+\r?(?:\n|\Z)")
_MOST = 1 << 24  # ids; a larger one is no id but damage
_SPECIAL = (  # noqa: SIM905 - of a tekken.json without a list of its own (mistral-common)
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CALLS] "
    "[IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"
).split()


@dataclass(frozen=True)
class RankFile:
    """A byte-level vocabulary and how text is cut for it.

    Attributes
    ----------
    name
        Of the file.
    ranks
        Bytes of every token to its id; those of lower ids were made earlier.
    pattern
        Cuts text into pre-tokens, as tiktoken reads regular expressions.
    special
        Control tokens, by name. Written in a text they are text.
    composed
        Whether text is brought to NFC first (Qwen).
    note
        What had to be assumed.
    """

    name: str
    ranks: Mapping[bytes, int]
    pattern: str
    special: Mapping[str, int] = field(default_factory=dict)
    composed: bool = False
    note: str = ""

    def tokenizer(self) -> Tokenizer:
        """Write it for ``tokenizers``, with the ids of tiktoken."""
        spelled = {token: "".join(map(BYTE_CHARS.__getitem__, token)) for token in self.ranks}
        order = sorted(self.ranks, key=self.ranks.__getitem__)
        model = models.BPE(
            vocab={spelled[token]: rank for token, rank in self.ranks.items()} | dict(self.special),
            merges=[(spelled[a], spelled[b]) for token in order for a, b in splits(token, self.ranks)],
            ignore_merges=True,  # a pre-token that is a token stays whole
        )
        tokenizer = Tokenizer(model)
        try:
            cut = Regex(for_tokenizers(self.pattern))
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"pattern {self.pattern!r} is no regular expression: {str(error).splitlines()[0]}"
            ) from None
        if self.composed:
            tokenizer.normalizer = normalizers.NFC()
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(cut, "isolated"), byte_level])
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(list(self.special))
        tokenizer.encode_special_tokens = True
        return tokenizer

    def encoding(self) -> Any:
        """Write it for tiktoken: a ``tiktoken.Encoding``."""
        try:
            import tiktoken
        except ModuleNotFoundError:
            raise missing_extra("tiktoken", "segment") from None
        ranks = {token: rank for token, rank in self.ranks.items() if token}
        try:
            return tiktoken.Encoding(
                self.name, pat_str=self.pattern, mergeable_ranks=ranks, special_tokens=dict(self.special)
            )
        except Exception as error:  # ValueError of its regular expressions
            raise UserError(
                f"pattern {self.pattern!r} is no regular expression: {str(error).splitlines()[0]}"
            ) from None


def looks_like_ranks(data: bytes) -> bool:
    """Whether a file begins with a token in base64 and its rank."""
    return _RANK_LINE.match(data) is not None


def read_ranks(path: Path, data: bytes, pattern: str | None = None, fallback: str | None = None) -> RankFile:
    """Read a rank file: a token in base64 and its rank on every line.

    `pattern` counts before all else, `fallback` where neither content nor name tell one.

    Raises
    ------
    UserError
        It is damaged, or nothing says how it cuts text.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            read = b"" if token == b"=" else base64.b64decode(token, validate=True)
            if not rank.isdigit() or len(rank) > 9:
                raise ValueError
        except ValueError:
            raise UserError(f"{path}, line {number}: not a base64 token and its rank; get the file again") from None
        if read in ranks:
            raise UserError(f"{path}, line {number}: gives a token a second rank; get the file again")
        ranks[read] = int(rank)
    _check(path, ranks)
    told = _PUBLISHED.get((len(ranks), _digest(ranks)))
    note = ""
    if pattern is None and told is None:
        told, note = path.stem, f"cut as {path.stem}, after its name"
        if path.stem not in PATTERNS:
            told, note = fallback, ""
        if told is None:
            raise UserError(
                f"{path} does not say how it cuts text; pass the pattern, --pattern "
                f"(one of {', '.join(PATTERNS)}, or a regex)"
            )
    name = pattern if pattern is not None else str(told)
    return RankFile(path.stem, ranks, PATTERNS.get(name, name), composed=name == "qwen", note=note)


def _digest(ranks: Mapping[bytes, int]) -> str:
    tokens = sorted(ranks, key=ranks.__getitem__)
    return hashlib.sha256(b"\n".join(map(base64.b64encode, tokens))).hexdigest()[:12]


def _check(path: Path, ranks: Mapping[bytes, int]) -> None:
    """Refuse what tiktoken would panic over."""
    if not ranks:
        raise UserError(f"{path} holds no ranks; get it again")
    if len(set(ranks.values())) < len(ranks):
        raise UserError(f"{path} gives a rank to two tokens; get it again")
    if max(ranks.values()) >= _MOST:
        raise UserError(f"{path} holds rank {max(ranks.values())}, which is no id; get it again")
    absent = [b for b in range(256) if bytes([b]) not in ranks]
    if absent:
        raise UserError(f"{path} lacks byte 0x{absent[0]:02x}; such a file holds all 256, get it again")


def read_tekken(path: Path, held: Any) -> RankFile:
    """Read Mistral's tekken.json: control tokens first, then as many tokens as its size says.

    Raises
    ------
    UserError
        It is damaged.
    """
    try:
        config = held["config"]
        pattern, size, first = config["pattern"], config["default_vocab_size"], config["default_num_special_tokens"]
        special = {one["token_str"]: one["rank"] for one in held.get("special_tokens") or ()}
        special = special or {name: number for number, name in enumerate(_SPECIAL[:first])}
        special |= {f"<SPECIAL_{number}>": number for number in range(len(special), first)}
        if not isinstance(pattern, str) or sorted(special.values()) != list(range(first)):
            raise ValueError
        rows = sorted(held["vocab"], key=lambda one: one["rank"])[: size - first]
        if [one["rank"] for one in rows] != list(range(size - first)):
            raise ValueError
        ranks = {base64.b64decode(one["token_bytes"], validate=True): one["rank"] + first for one in rows}
        if len(ranks) < len(rows):
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{path} is no whole tekken.json (config, vocab, ranks from 0 on); get it again") from None
    _check(path, ranks)
    return RankFile(path.stem, ranks, pattern, special)


# -- regular expressions -----------------------------------------------------------------------------------------------

_PART = re.compile(
    r"(?P<escape>\\(?:[pP]\{[^}]*\}|[xu]\{[^}]*\}|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|.))"
    r"|(?P<open>\((?:\?(?:<?[=!]|>|P?<\w+>|[a-z-]*:))?)|(?P<close>\))"
    r"|(?P<counted>\{\d*,?\d*\}[+?]?)|(?P<other>.)",
    re.DOTALL,
)


def for_tokenizers(pattern: str) -> str:
    r"""Write a regular expression of tiktoken's for ``tokenizers`` (Oniguruma in Ruby's syntax).

    ``{1,3}+`` is possessive there and repeated here, so it becomes an atomic group; ``$`` and ``^`` are the ends of the
    text there and of a line here.

    Raises
    ------
    UserError
        It sets flags that the two read differently.
    """
    if told := re.search(r"\(\?[a-z]*[msxU][a-z-]*[:)]", pattern):
        raise UserError(f"pattern {pattern!r}: {told[0]} is read differently by tokenizers; write it without the flag")
    parts: list[str] = []
    opened: list[int] = []
    atom = i = 0
    while i < len(pattern):
        if pattern[i] == "[":
            end, atom = _class_end(pattern, i), len(parts)
            parts.append(pattern[i:end])
            i = end
            continue
        found = _PART.match(pattern, i)
        assert found is not None
        i = found.end()
        text = found[0]
        if found["open"]:
            opened.append(len(parts))
        elif found["close"] and opened:
            atom = opened.pop()
        elif found["counted"] and parts:
            if text.endswith("+") and not opened and pattern[i : i + 1] in ("", "|"):
                text = text[:-1]  # nothing behind it asks for less
            if text.endswith("+"):
                parts[atom:] = ["(?>" + "".join(parts[atom:]) + text[:-1] + ")"]
                continue
            text = text.removesuffix("?") if "," not in text else text
            parts[atom:] = ["".join(parts[atom:]) + text]
            continue
        elif text in "*+?" and parts:
            parts[-1] += text
            continue
        else:
            atom = len(parts)
            text = {"$": r"\z", "^": r"\A"}.get(text, text)
        parts.append(text)
    return "".join(parts)


def _class_end(pattern: str, start: int) -> int:
    """Where the character class that begins at `start` ends, classes within it included."""
    depth, i = 0, start
    while i < len(pattern):
        if pattern[i] == "\\":
            i += 1
        elif pattern[i] == "[":
            depth += 1
        elif pattern[i] == "]":
            depth -= 1
            if not depth:
                return i + 1
        i += 1
    return len(pattern)


# -- merges ------------------------------------------------------------------------------------------------------------

Token = TypeVar("Token", str, bytes)


def splits(token: Token, ranks: Mapping[Token, float | int]) -> list[tuple[Token, Token]]:
    """Return every way to make a token of two, the one of the earliest parts first: what encoders by rank may join."""
    cuts = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
    return sorted(cuts, key=lambda parts: (ranks[parts[0]], ranks[parts[1]]))


def recover_merges(ranks: Mapping[Token, int]) -> list[tuple[Token, Token]]:
    """Recover the merge list of a BPE vocabulary that only says in which order its tokens were made.

    A token was made of the two pieces that are left when the tokens before it are applied to it. Tokens for which that
    leaves more than two pieces were placed by hand; they have no merge.

    Parameters
    ----------
    ranks
        Token to rank, lower made earlier; tokens of one symbol count as given.
    """
    found = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pieces = last_pieces(token, ranks)
        if len(pieces) == 2:
            found.append((pieces[0], pieces[1]))
    return found


def last_pieces(token: Token, ranks: Mapping[Token, int]) -> list[Token]:
    """Cut `token` with the tokens of lower rank alone."""
    limit = ranks[token]
    pieces = [token[i : i + 1] for i in range(len(token))]
    joined = [ranks.get(a + b, limit) for a, b in pairwise(pieces)]
    while len(pieces) > 2 and (best := min(joined)) < limit:
        at = joined.index(best)
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        del joined[at]
        if at:
            joined[at - 1] = ranks.get(pieces[at - 1] + pieces[at], limit)
        if at < len(joined):
            joined[at] = ranks.get(pieces[at] + pieces[at + 1], limit)
    return pieces
