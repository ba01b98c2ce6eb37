"""Completion of code by a causal language model: the rest of a line, or the next token, by beams (CodeXGLUE's way).

Beams of 5, at most 100 pieces, summed log-probabilities, up to the first line end. The last word of the text may be cut
short by where the user stands ("ret" of "return"), and blanks may be half of a piece: both are taken back, and what is
written must begin with them.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from mintage.data.code import read_python
from mintage.errors import UserError
from mintage.lm.core.code_windows import unpythonic
from mintage.lm.core.python_lexer import lex_python

__all__ = ["Completion", "complete_code", "text_before"]

_CONTEXT = 1024
"""Pieces that a model without a limit of its own is given, with those that it writes."""

_LAST_WORD = re.compile(r"(?:\n?[ \t]*)(?:\w+|[^\w\s]+)?\Z")

_LAYOUT = {"EOL", "INDENT", "DEDENT", "BLANK"}


class Completion(NamedTuple):
    """What is proposed, and its share among the proposals."""

    text: str
    share: float


def text_before(where: str) -> str:
    """Return what stands before a place in a Python file: ``file.py:LINE`` (behind that line) or ``:LINE:COLUMN``.

    Raises
    ------
    UserError
        It names no place, the file has no such line or column, is Python 2, mixes tabs and blanks, or is no text.
    """
    found = re.fullmatch(r"(.+?):(\d+)(?::(\d+))?", where)
    if not found:
        raise UserError(f"{where!r} names no place in code; write FILE:LINE or FILE:LINE:COLUMN, e.g. main.py:12")
    path, line, column = Path(found[1]), int(found[2]), found[3]
    text = read_python(path)
    lines = re.split("\r\n?|\n", text)
    if not 1 <= line <= len(lines):
        raise UserError(f"{path} has {len(lines)} lines, no line {line}; pass one of them")
    if column is not None and not 1 <= int(column) <= len(lines[line - 1]) + 1:
        width = len(lines[line - 1])
        raise UserError(f"{path}, line {line} has {width} letters, no column {column}; pass 1 to {width + 1}")
    stop = len(lines[line - 1]) if column is None else int(column) - 1
    before = "\n".join([*lines[: line - 1], lines[line - 1][:stop]])
    if odd := unpythonic(before):
        raise UserError(f"{path}, line {odd[0]} {odd[1]}, which is not completed; mend it, e.g. with 2to3 or reindent")
    return before


class _Written:
    """What rows of pieces write behind a prompt; the beginning of it is given."""

    def __init__(self, size: int, pieces: list[str], given: str) -> None:
        self.size, self.pieces, self.given = size, pieces, given

    def of(self, rows: Any) -> list[str]:
        return ["".join(self.pieces[index] for index in row) for row in rows[:, self.size :].tolist()]

    @cache  # noqa: B019 # lives as long as one completion
    def allowed(self, rest: str) -> Tensor:
        """Return the pieces that go on with `rest`, or are a beginning of it."""
        found = [
            i for i, piece in enumerate(self.pieces) if piece and (piece.startswith(rest) or rest.startswith(piece))
        ]
        return torch.tensor(found, dtype=torch.long)


class _Begins(LogitsProcessor):
    """What is written begins with what is given."""

    def __init__(self, written: _Written) -> None:
        self.written = written

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        kept = scores.clone()
        for row, text in enumerate(self.written.of(input_ids)):
            rest = self.written.given[len(text) :]
            if rest and len(allowed := self.written.allowed(rest)):
                kept[row] = -torch.inf
                kept[row, allowed] = scores[row, allowed]
        return kept


class _Ends(StoppingCriteria):
    """A line ends behind what is given."""

    def __init__(self, written: _Written) -> None:
        self.written = written

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        given = len(self.written.given)
        ended = ["\n" in text[given:] for text in self.written.of(input_ids)]
        return torch.tensor(ended, device=input_ids.device)


@torch.no_grad()
def complete_code(
    model: Any,
    tokenizer: Any,
    before: str,
    *,
    level: Literal["line", "token"] = "line",
    beams: int = 5,
    most: int = 100,
) -> list[Completion]:
    """Return what may stand behind a text, likeliest first; a text that is all there is completed by ``""``.

    Parameters
    ----------
    model, tokenizer
        A causal language model of code.
    before
        The code up to where is gone on; of a long one the end is read.
    level
        The rest of the line, or of the token (the next one, where one ends here).
    beams
        Proposals that are followed.
    most
        Pieces to write at most.

    Raises
    ------
    UserError
        There is no text, or the numbers are below 1.
    """
    if beams < 1 or most < 1:
        raise UserError(f"beams={beams}, most={most}: pass at least 1 of each")
    ids = tokenizer(before, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UserError("there is no code before that place; pass one behind some code")
    pieces = _texts_of(tokenizer)[: model.get_output_embeddings().weight.shape[0]]
    unsure, given = _LAST_WORD.search(before[-200:]), ""
    while unsure and len(ids) > 1 and len(given) < len(unsure.group()) and "\ufffd" not in pieces[ids[-1]]:
        given = pieces[ids.pop()] + given
    room = getattr(model.config, "max_position_embeddings", None) or _CONTEXT
    ids = ids[-max(min(room, _CONTEXT) - most, 1) :]
    written = _Written(len(ids), pieces, given)
    prompt = torch.tensor([ids], device=model.device)
    end = tokenizer.eos_token_id
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=most,
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        length_penalty=0.0,
        eos_token_id=end,
        pad_token_id=0 if end is None else end,
        logits_processor=LogitsProcessorList([_Begins(written)]),
        stopping_criteria=StoppingCriteriaList([_Ends(written)]),
        output_scores=True,
        return_dict_in_generate=True,
    )
    scores = out.sequences_scores if beams > 1 else torch.zeros(1)
    shares: Counter[str] = Counter()
    rows = [row[: row.index(end)] if end in row else row for row in out.sequences[:, len(ids) :].tolist()]
    for row, share in zip(rows, scores.softmax(0).tolist(), strict=True):
        text = "".join(pieces[index] for index in row)[len(given) :].partition("\n")[0]
        shares[_cut(before, text, level)] += share
    return [Completion(text, share) for text, share in shares.most_common()]


def _cut(before: str, written: str, level: str) -> str:
    """Return the line that was written without blanks at its end, or the part of it that ends the next token."""
    if level == "line":
        return written.rstrip()
    whole = lex_python(before + written)
    for kind, start, end in zip(whole.types, whole.starts, whole.ends, strict=True):
        if end > len(before) and kind not in _LAYOUT and start < len(before) + len(written):
            return written[: end - len(before)]
    return written


def _texts_of(tokenizer: Any) -> list[str]:
    """Return what every piece writes behind another one."""
    anchor = tokenizer("x", add_special_tokens=False)["input_ids"][-1:]
    start = len(tokenizer.decode(anchor))
    rows = [[*anchor, index] for index in range(len(tokenizer))]
    return [text[start:] for text in tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)]
