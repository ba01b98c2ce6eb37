"""What a model itself says: its greedy continuations of prompts, to train on or to measure along."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mintage.draft.baselines import Plain
from mintage.draft.core.loop import generate
from mintage.errors import UserError
from mintage.files import append_line, read_jsonl
from mintage.models import CausalLM
from mintage.progress import Progress, silent

__all__ = ["Continuation", "continuations"]

_GENERATED_TOGETHER = 64


@dataclass(frozen=True)
class Continuation:
    """A prompt and the model's own greedy continuation: all ids, and how many of them are the prompt."""

    ids: tuple[int, ...]
    prompt: int

    def cuts(self, after: int) -> range:
        """Prefix lengths that end inside the continuation and leave `after` tokens."""
        return range(self.prompt, len(self.ids) - after + 1)


def continuations(
    lm: CausalLM,
    prompts: Sequence[str],
    *,
    new_tokens: int = 96,
    store: str | Path | None = None,
    progress: Progress = silent,
) -> list[Continuation]:
    """Let the model continue the prompts greedily, as the assistant of a chat where it has a template.

    Parameters
    ----------
    lm
        The model and its tokenizer.
    prompts
        Texts of the user's turns.
    new_tokens
        Longest continuation.
    store
        JSONL file that keeps what is done, so that a killed run goes on there.
    progress
        ``progress("continue", done, of)``, in prompts.

    Raises
    ------
    UserError
        `store` holds continuations of other prompts.
    """
    chat = bool(lm.tokenizer.chat_template)
    encoded = [lm.encode(prompt, chat=chat)[0].tolist() for prompt in prompts]
    done: dict[int, Continuation] = {}
    for row in read_jsonl(store) if store and Path(store).exists() else []:
        index, text = row["prompt"], Continuation(tuple(row["ids"]), row["length"])
        if index >= len(encoded) or list(text.ids[: text.prompt]) != encoded[index] or row["new"] != new_tokens:
            raise UserError(f"{store} holds continuations of other prompts; delete it or use another folder")
        done[index] = text
    left = sorted((i for i in range(len(encoded)) if i not in done), key=lambda i: len(encoded[i]))
    for start in range(0, len(left), _GENERATED_TOGETHER):
        progress("continue", len(done), len(encoded))
        group = left[start : start + _GENERATED_TOGETHER]
        longest = max(len(encoded[i]) for i in group)
        ids = torch.tensor([encoded[i] + [0] * (longest - len(encoded[i])) for i in group])
        mask = torch.tensor([[1] * len(encoded[i]) + [0] * (longest - len(encoded[i])) for i in group])
        out = generate(lm.model, ids, Plain(), max_new_tokens=new_tokens, attention_mask=mask, pad_token_id=-1)
        for i, row in zip(group, out.sequences[:, longest:].tolist(), strict=True):
            new = [token for token in row if token >= 0]
            done[i] = Continuation((*encoded[i], *new), len(encoded[i]))
            if store:
                record = {"prompt": i, "length": len(encoded[i]), "new": new_tokens, "ids": list(done[i].ids)}
                append_line(store, json.dumps(record))
    progress("continue", len(encoded), len(encoded))
    return [done[i] for i in range(len(encoded))]
