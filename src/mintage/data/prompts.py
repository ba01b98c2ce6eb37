"""Prompts: those that ship with mintage, or those of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from mintage.errors import UserError, did_you_mean
from mintage.files import read_jsonl

__all__ = ["Prompt", "read_prompts", "spread"]


@dataclass(frozen=True)
class Prompt:
    """A user's request: one or more turns, of which each is sent after the answer to the one before."""

    id: str
    category: str
    turns: tuple[str, ...]


def read_prompts(path: str | Path | None = None, *, categories: Sequence[str] = ()) -> list[Prompt]:
    """Read prompts.

    Parameters
    ----------
    path
        JSON lines (also ``.gz``) with ``turns`` (a list of texts, as in Spec-Bench's ``question.jsonl``) or ``prompt``
        (one text), and optionally ``id`` or ``question_id`` and ``category``. Default: the 84 prompts that ship with
        mintage.
    categories
        Keep these only; default all.

    Raises
    ------
    UserError
        Unreadable file, a line without a usable prompt (file and line are named), an id that comes twice, or an
        unknown category.
    """
    source = path or str(files("mintage") / "assets" / "prompts.jsonl")
    prompts = [_prompt(row, source, number) for number, row in enumerate(read_jsonl(source), start=1)]
    if not prompts:
        raise UserError(f"{source} holds no prompts; expected one JSON object per line")
    seen: set[str] = set()
    for number, prompt in enumerate(prompts, start=1):
        if prompt.id in seen:  # a bench pairs the arms' answers by it
            raise UserError(f"{source}, prompt {number}: id {prompt.id!r} came before; give every prompt its own")
        seen.add(prompt.id)
    known = sorted({p.category for p in prompts})
    for category in categories:
        if category not in known:
            raise UserError(f"no prompts of category {category!r} in {source}; {did_you_mean(category, known)}")
    return [p for p in prompts if not categories or p.category in categories]


def _prompt(row: dict[str, Any], source: str | Path, number: int) -> Prompt:
    turns = row.get("turns", [row["prompt"]] if "prompt" in row else None)
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t.strip() for t in turns):
        raise UserError(f'{source}, prompt {number}: expected "turns": [text, ...] or "prompt": text')
    identity = row.get("id", row.get("question_id", number))
    return Prompt(id=str(identity), category=str(row.get("category", "all")), turns=tuple(turns))


def spread(prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """Take `limit` prompts evenly over the categories, in file order within each; all of them if `limit` is None.

    Raises
    ------
    UserError
        `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit}; keep at least 1 prompt")
    if limit is None or limit >= len(prompts):
        return list(prompts)
    by_category: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_category.setdefault(prompt.category, []).append(prompt)
    rounds = max(map(len, by_category.values()))
    dealt = [group[i] for i in range(rounds) for group in by_category.values() if i < len(group)]
    return dealt[:limit]
