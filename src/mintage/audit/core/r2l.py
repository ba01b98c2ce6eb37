r"""Make an existing tokenizer cut numbers from the right, with no new tokens; other text is cut as before.

The digit branch of its pre-tokenizer is rewritten, whatever form it has. Not here: the grouping itself
(`mintage.audit.core.digits`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from mintage.audit.core.digits import CLASSES, DigitClass, check_sizes, digits_of, first_group, group_digits, whole_run
from mintage.errors import UserError
from mintage.files import parse_json, replace_folder
from mintage.options import check_literals

__all__ = ["save_tokenizer", "to_r2l"]

_BRANCH = re.compile(
    r"(?P<space> \?)?(?P<class>\\p\{Nd?\}|\[\\p\{Nd?\}\]|\\d|\[0-9\])(?P<count>\+\+?|\{1,(?P<up_to>\d+)\}|)$"
)
"""An alternative that takes digits and nothing else, but for a space in front."""

_LOOKS_AHEAD = re.compile(r"(\\p\{Nd?\}|\\d|\[0-9\])\]?(\+|\*|\{[\d,]+\})?\)*\(\?[=!]")

_FIXED = {r"\d": r"\p{Nd}", r"[\p{N}]": r"\p{N}", r"[\p{Nd}]": r"\p{Nd}"}

_PROBES = ("7", "42", "007", "2024", "10642122", "x12345y", "9876543210+1234567=", "(31415926535897)")


@check_literals
def to_r2l(
    tokenizer: Any,
    *,
    size: int = 3,
    digit_class: DigitClass | None = None,
    fraction: Literal["l2r"] | None = None,
    only_if_longer_than: int = 0,
    allow_missing: bool = False,
) -> Tokenizer:
    r"""Return a copy of `tokenizer` that cuts numbers from the right; no token is added, other text is cut as before.

    Rewritten is the digit branch of the pre-tokenizer: ``\p{N}{1,3}`` and its like in a ``Split`` (GPT-4, GPT-4o, Llama
    3), ``\p{N}`` (Qwen), ``Digits``, or the whole numbers of GPT-2's ``ByteLevel``.

    Parameters
    ----------
    tokenizer
        Any fast tokenizer; it stays as it is.
    size
        Digits per group.
    digit_class
        Which characters count as digits; default: those of the branch. A narrower class leaves the other numerals to
        the branch as it was.
    fraction
        As in `format_numbers`.
    only_if_longer_than
        Cut runs of at most this many digits as before.
    allow_missing
        Return the copy even where the vocabulary cannot build every group: to train a new vocabulary on it.

    Raises
    ------
    UserError
        There is no digit branch, it looks ahead already, a group cannot be built from the vocabulary, or a setting does
        not fit.
    """
    check_sizes(size, only_if_longer_than)
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(f"{type(tokenizer).__name__} is no tokenizers.Tokenizer; open one with load_tokenizer")
    change = _Change(size, digit_class, fraction, only_if_longer_than)
    described = json.loads(tokenizer.to_str())
    described["pre_tokenizer"] = change.stage(described["pre_tokenizer"])
    if not change.done and (described["pre_tokenizer"] or {}).get("type") in ("ByteLevel", "Sequence"):
        described["pre_tokenizer"] = change.before_byte_level(described["pre_tokenizer"])
    if not change.done:
        raise UserError(
            r"this pre-tokenizer has no digit branch (such as \p{N}{1,3}, \p{N} or Digits) to rewrite; "
            "put number_split() in front of it and train a new vocabulary"
        )
    changed = Tokenizer.from_str(json.dumps(described, ensure_ascii=False))
    _check_cut(changed, size, only_if_longer_than)
    if not allow_missing:
        _check_groups(changed, size, spaced=change.spaced)
    return changed


@dataclass
class _Change:
    """The walk through a pre-tokenizer's JSON, and what it found."""

    size: int
    digit_class: str | None
    fraction: str | None
    longer_than: int
    done: bool = False
    spaced: bool = False
    """Whether a number's first group holds the space in front of it."""

    def stage(self, node: dict[str, Any] | None) -> dict[str, Any] | None:
        """Return the stage with its digit branches rewritten."""
        kind = (node or {}).get("type")
        if node is None or kind not in ("Sequence", "Split", "Digits"):
            return node
        if kind == "Sequence":
            return {**node, "pretokenizers": [self.stage(part) for part in node["pretokenizers"]]}
        if kind == "Digits":
            count = "" if node["individual_digits"] else "+"
            return _isolate(self.branch(r"\p{N}", count, ""))
        pattern = node["pattern"].get("Regex")
        rewritten = self.pattern(pattern) if pattern else None
        if not rewritten:
            return node
        if node["behavior"] != "Isolated" and not (node["behavior"] == "Removed" and node["invert"]):
            raise UserError(f"a Split that is {node['behavior']} cannot be rewritten; only one that keeps its matches")
        return {**node, "pattern": {"Regex": rewritten}}

    def pattern(self, pattern: str) -> str | None:
        """Rewrite the digit branches among the alternatives; None where there are none."""
        if _LOOKS_AHEAD.search(pattern):
            raise UserError(f"the digit branch looks ahead already ({pattern[:60]!r}...); pass the original tokenizer")
        opening, inner, closing = _unwrapped(pattern)
        parts = list(_alternatives(inner))
        found = [_BRANCH.match(part) for part in parts]
        if not any(found):
            return None
        for index, match in enumerate(found):
            if match:
                parts[index] = self.branch(match["class"], match["count"], match["space"] or "")
        return opening + "|".join(parts) + closing

    def branch(self, known: str, count: str, space: str) -> str:
        """Return what takes the place of the branch ``space known count``."""
        known = _FIXED.get(known, known)
        d = self.digit_class or known
        if CLASSES.index(d) > CLASSES.index(known):
            raise UserError(f"digit_class {d} is wider than this tokenizer's {known}; pass {known}")
        self.done, self.spaced = True, self.spaced or bool(space)
        rest = f"{space}{d}{{1,{self.size}}}"
        before = ""
        if self.longer_than > 1 and count.startswith("+"):
            before = whole_run(d, self.longer_than, space)
        elif self.longer_than > 1 and count != f"{{1,{self.size}}}":
            raise UserError(
                f"only_if_longer_than={self.longer_than} needs a tokenizer that cuts groups of {self.size} from the "
                f"left or keeps numbers whole; this one's branch is {known}{count}; pass 0"
            )
        lead = first_group(d, self.size, self.fraction, self.longer_than, space)
        others = f"{space}(?:(?!{d}){known}){count}" if d != known else ""
        return "|".join(part for part in (before, lead, rest, others) if part)

    def before_byte_level(self, node: dict[str, Any]) -> dict[str, Any]:
        """Put a Split in front of the ByteLevel that keeps a number, with a space before it, in one piece."""
        parts = node["pretokenizers"] if node["type"] == "Sequence" else [node]
        for index, part in enumerate(parts):
            if part["type"] == "ByteLevel" and part["use_regex"]:
                if part["add_prefix_space"]:
                    raise UserError(
                        "this ByteLevel puts a space in front of every piece (add_prefix_space), which would come "
                        "between digit groups; it cannot be rewritten"
                    )
                split = _isolate(self.branch(r"\p{N}", "+", " ?"))
                return {"type": "Sequence", "pretokenizers": [*parts[:index], split, *parts[index:]]}
        return node


def _isolate(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _alternatives(pattern: str) -> Iterator[str]:
    """Yield the alternatives of a regular expression at its top level."""
    start = depth = brackets = 0
    at = 0
    while at < len(pattern):
        character = pattern[at]
        if character == "\\":
            at += 1
        elif character == "[":
            brackets += 1
        elif character == "]" and brackets:
            brackets -= 1
        elif not brackets and character in "()":
            depth += 1 if character == "(" else -1
        elif not brackets and not depth and character == "|":
            yield pattern[start:at]
            start = at + 1
        at += 1
    yield pattern[start:]


def _unwrapped(pattern: str) -> tuple[str, str, str]:
    """Take off a group around the whole pattern."""
    for opening in ("(?:", "("):
        inner = pattern[len(opening) : -1]
        if pattern.startswith(opening) and pattern.endswith(")") and f"{opening}{inner})" == pattern:
            whole = len(list(_alternatives(pattern))) == 1 and not inner.startswith("?")
            if whole and _balanced(inner):
                return opening, inner, ")"
    return "", pattern, ""


def _balanced(pattern: str) -> bool:
    """Whether no group closes that was not opened."""
    depth = 0
    for character in re.sub(r"\\.|\[(?:\\.|[^\]])*\]", "", pattern):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 0:
            return False
    return depth == 0


def _check_cut(changed: Tokenizer, size: int, longer_than: int) -> None:
    """Refuse where another alternative takes digits before the rewritten one can."""
    for probe in _PROBES:
        pieces = ["".join(filter(str.isdigit, p)) for p, _ in changed.pre_tokenizer.pre_tokenize_str(probe)]
        runs = [run for run in re.findall("[0-9]+", probe) if len(run) > longer_than]
        wanted = [group for run in runs for group in group_digits(run, size)]
        got = [piece for piece in pieces if piece]
        if runs and len(runs) == len(re.findall("[0-9]+", probe)) and got != wanted:
            raise UserError(
                f"{probe!r} is cut {'|'.join(got)}: another part of this pre-tokenizer takes its digits first"
            )


def _check_groups(changed: Tokenizer, size: int, *, spaced: bool) -> None:
    """Refuse where the vocabulary has no single token for a group."""
    marks = ("", "Ġ") if spaced else ("",)
    widths = range(1, size + 1)
    strings = [f"{n:0{w}d}" for w in widths for n in range(0, 10**w, max(1, 10**w // 10_000))]
    missing = [s for s in strings for mark in marks if _groups_of(changed.model.tokenize(mark + s)) != [s]]
    if missing:
        raise UserError(
            f"this vocabulary cannot build {len(missing)} of {len(strings) * len(marks)} groups of up to {size} digits "
            f"(e.g. {missing[0]!r}) as one token; train a new vocabulary on this pre-tokenizer (allow_missing)"
        )


def _groups_of(tokens: Sequence[Any]) -> list[str]:
    return [digits for token in tokens if (digits := digits_of(token.value))]


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path, source: str | Path | None = None) -> None:
    """Write a folder that ``AutoTokenizer.from_pretrained`` opens, and check that it cuts numbers as `tokenizer` does.

    Parameters
    ----------
    tokenizer
        What to write.
    folder
        New, or empty.
    source
        Folder of the tokenizer it was made from: its special tokens and chat template are taken over.

    Raises
    ------
    UserError
        `folder` is in use, `source`'s configuration is damaged, or the written folder is read differently.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    target = Path(folder)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError(f"{target} exists; pass a new folder, nothing was written")
    with replace_folder(target) as temporary:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_special_tokens(source)).save_pretrained(temporary)
        if source is not None and (template := Path(source) / "chat_template.jinja").exists():
            (temporary / template.name).write_text(template.read_text(encoding="utf-8"), encoding="utf-8")
        again: Any = AutoTokenizer.from_pretrained(temporary, local_files_only=True)
        for probe in _PROBES:
            if again(probe, add_special_tokens=False)["input_ids"] != _ids(tokenizer, probe):
                raise UserError(
                    f"transformers reads the written tokenizer differently ({probe!r}); nothing was written"
                )


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def _special_tokens(source: str | Path | None) -> dict[str, Any]:
    """Read what a tokenizer_config.json says about special tokens; the class is left out, it would fix the pattern."""
    path = Path(source or "") / "tokenizer_config.json"
    if source is None or not path.exists():
        return {}
    try:
        config = parse_json(path.read_text(encoding="utf-8"), str(path), "get it again")
        named = {name: value for name, value in config.items() if name.endswith("_token") and value is not None}
    except UserError:
        raise
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); get it again") from None
    held = {name: v["content"] if isinstance(v, dict) else v for name, v in named.items() if not isinstance(v, bool)}
    if isinstance(length := config.get("model_max_length"), int):
        held["model_max_length"] = length
    if isinstance(template := config.get("chat_template"), str):
        held["chat_template"] = template
    return held
