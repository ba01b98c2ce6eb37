"""``mintage generate --code FILE:LINE``: complete code where the user stands."""

from __future__ import annotations

import sys
import time
from typing import Any

import typer

from mintage.cli.progress import told
from mintage.errors import UserError

__all__ = ["complete_at"]

_MOST = 100
"""Pieces that are written at most, as in the paper: what is written takes the place of what is read."""


def complete_at(asked: Any, is_other: bool) -> None:
    """Write the likeliest completion, and tell the others.

    Parameters
    ----------
    asked
        What ``mintage generate`` was told.
    is_other
        Whether the model is one of mintage's own kinds, which write no tokens.

    Raises
    ------
    UserError
        The place is not there, the model is no causal language model of tokens, or other options do not go with it.
    """
    from mintage.lm.core.completion import complete_code, text_before
    from mintage.models import load_causal_lm

    others = {
        "--draft": asked.drafts,
        "--keep": asked.keep is not None,
        "--bytes": asked.by_bytes,
        "--draft-model": asked.draft_model is not None,
        "--compile": asked.compile,
        "--compare": asked.compare,
        "--table": asked.table is not None,
        "--system": asked.system is not None,
        "--temperature": bool(asked.temperature),
        "--top-k": asked.top_k > 0,
        "--top-p": asked.top_p != 1.0,
        "--repetition-penalty": asked.repetition_penalty != 1.0,
        "--seed": asked.seed is not None,
        "--engine": asked.engine == "native",
    }
    for name, given in others.items():
        if given:
            raise UserError(
                f"{name} does not go with --code, which takes the likeliest of five beams; drop one of them"
            )
    before = text_before(asked.code)
    if is_other:
        raise UserError(
            f"{asked.model} is no model of code that writes tokens; pass one, or make it: mintage train pycoder"
        )
    if asked.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {asked.max_new_tokens} completes nothing; pass at least 1")
    if asked.max_new_tokens > _MOST and asked.max_new_tokens != type(asked).max_new_tokens:  # the default is a text's
        raise UserError(f"--max-new-tokens {asked.max_new_tokens} is more than a line has; pass at most {_MOST}")
    lm = load_causal_lm(asked.model, dtype=asked.dtype, device=asked.device, note=told)
    began = time.perf_counter()
    found = complete_code(lm.model, lm.tokenizer, before, level=asked.level, most=min(asked.max_new_tokens, _MOST))
    seconds = time.perf_counter() - began
    sys.stdout.write(f"{found[0].text}\n")
    for other in found[1:]:
        typer.echo(f"or, {other.share:.0%}: {other.text}", err=True)
    typer.echo(f"{found[0].share:.0%} of {len(found)} proposals, {seconds:.2f} s", err=True)
