"""Train PPD's prompt tokens: the model teaches them itself, on its own greedy continuations of prompts.

arXiv 2405.18628, section 3. A continuation is cut at random places; at each cut the prompt tokens see what lies before
it, and learn the distributions that the model has later in the same text. The model is frozen, and its own tokens
never see the prompt tokens, so one forward of the text serves all cuts and is the teacher as well.

Deviations: several cuts per text and step (the authors take one); the teacher is exact, computed along with the text.
Not here: the loop (`mintage.train`), drafting (`mintage.draft.ppd`).
"""

from __future__ import annotations

import gzip
import inspect
import json
import os
import random
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.draft.baselines import Plain
from mintage.draft.core.loop import generate
from mintage.draft.core.target import Target
from mintage.draft.ppd import PromptTokens, describe, distill_loss
from mintage.errors import UserError
from mintage.files import append_line, read_jsonl
from mintage.models import CausalLM
from mintage.train import Settings, train

__all__ = [
    "Continuation",
    "PromptTokenRecipe",
    "continuations",
    "frequency_accuracy",
    "guess_accuracy",
    "guess_logits",
    "text_initialised",
    "train_prompt_tokens",
    "training_prompts",
]

Report = Callable[[str, int, int], None]
"""Progress: ``report(stage, done, of)``."""

_GENERATED_TOGETHER = 64
_HELD_OUT = 10  # every tenth text calibrates and is not trained on
_RANKS = 10


def _silent(stage: str, done: int, of: int) -> None:
    pass


# -- prompts and texts ---------------------------------------------------------------------------------------------


def training_prompts(
    count: int = 240, *, folder: str | Path | None = None, words: int = 70, seed: int = 0
) -> list[str]:
    """Make chat prompts from texts at hand: mathematics, questions on paragraphs, summaries, continuations, code.

    Parameters
    ----------
    count
        How many prompts.
    folder
        Holds ``gsm8k.jsonl.gz``, ``xquad.jsonl.gz``, ``wikitext2_valid.txt.gz``, ``long_docs.jsonl.gz``; default:
        ``$MINTAGE_DATA``. Files that are absent are left out. Code is the interpreter's own standard library.
    words
        Longest passage.
    seed
        Of the choice.

    Raises
    ------
    UserError
        No folder is given, or it holds none of the files.
    """
    place = folder or os.environ.get("MINTAGE_DATA")
    if not place:
        raise UserError("no training texts; set MINTAGE_DATA to a folder that holds e.g. gsm8k.jsonl.gz")
    chosen = random.Random(seed)
    kinds = [
        prompts for make in (_mathematics, _questions, _articles, _speeches) if (prompts := make(Path(place), words))
    ]
    if not kinds:
        raise UserError(f"{place} holds no training texts, e.g. gsm8k.jsonl.gz; pass another folder")
    kinds.append(_code())
    for kind in kinds:
        chosen.shuffle(kind)
    mixed = [prompt for row in zip(*(kind[:count] for kind in kinds), strict=False) for prompt in row]
    return mixed[:count]


def _passage(text: str, words: int) -> str:
    return " ".join(text.split()[:words])


def _mathematics(folder: Path, words: int) -> list[str]:
    path = folder / "gsm8k.jsonl.gz"
    rows = read_jsonl(path) if path.exists() else []
    return [row["question"] for row in rows if row["split"] == "train" and len(row["question"].split()) <= words]


def _questions(folder: Path, words: int) -> list[str]:
    path = folder / "xquad.jsonl.gz"
    rows = [row for row in read_jsonl(path) if row["lang"] == "en"] if path.exists() else []
    asked = []
    for row in rows:
        text = _passage(row["context"], words)
        question = row["qas"][0]["question"]
        asked.append(f"{text}\n\nAnswer this question about the text: {question}")
        asked.append(f"Explain in a few sentences: {row['qas'][-1]['question']}")
    return asked


def _articles(folder: Path, words: int) -> list[str]:
    path = folder / "wikitext2_valid.txt.gz"
    if not path.exists():
        return []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = [line.strip() for line in file if len(line.split()) > words // 2 and not line.startswith(" =")]
    tasks = ("Summarise this text:", "Explain this text to a child:", "Continue this text:", "List the main facts of:")
    clean = [
        re.sub(r" @(.)@ ", r"\1", line).replace("<unk>", "it").replace(" ,", ",").replace(" .", ".") for line in lines
    ]
    return [f"{tasks[i % len(tasks)]} {_passage(text, words)}" for i, text in enumerate(clean)]


def _speeches(folder: Path, words: int) -> list[str]:
    path = folder / "long_docs.jsonl.gz"
    rows = read_jsonl(path) if path.exists() else []
    tasks = ("Rewrite this in modern English:", "Summarise:", "Reply to the speaker of these words:")
    passages = []
    for row in rows:
        if row["corpus"] in ("state_union", "inaugural", "shakespeare"):
            split = row["text"].split()
            passages += [" ".join(split[i : i + words]) for i in range(400, min(len(split), 4000) - words, 900)]
    return [f"{tasks[i % len(tasks)]} {text}" for i, text in enumerate(passages)]


def _code() -> list[str]:
    """Ask for functions of the standard library by name and purpose, and for explanations of short ones."""
    import calendar
    import fractions
    import heapq
    import posixpath
    import shlex
    import shutil
    import statistics
    import string
    import tokenize

    asked = []
    for module in (
        statistics,
        textwrap,
        shutil,
        heapq,
        calendar,
        fractions,
        posixpath,
        shlex,
        string,
        random,
        tokenize,
    ):
        for name, function in inspect.getmembers(module, inspect.isroutine):
            if not (inspect.isfunction(function) and function.__module__ == module.__name__):
                continue
            first = (inspect.getdoc(function) or "").split("\n")[0]
            if first:
                asked.append(f"Write a Python function `{name}{inspect.signature(function)}`. It should: {first}")
            try:
                body = inspect.getsource(function)
            except OSError:  # made at run time
                continue
            if len(body.split()) < 60:
                asked.append(f"Explain what this Python code does:\n```python\n{body}```")
    return asked


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
    report: Report = _silent,
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
    report
        Progress.

    Raises
    ------
    UserError
        `store` holds continuations of other prompts.
    """
    chat = bool(lm.tokenizer.chat_template)
    encoded = [lm.encode(prompt, chat=chat)[0].tolist() for prompt in prompts]
    done: dict[int, Continuation] = {}
    for row in read_jsonl(store) if store and Path(store).exists() else []:
        index, made = row["prompt"], Continuation(tuple(row["ids"]), row["length"])
        if index >= len(encoded) or list(made.ids[: made.prompt]) != encoded[index] or row["new"] != new_tokens:
            raise UserError(f"{store} holds continuations of other prompts; delete it or use another folder")
        done[index] = made
    left = sorted((i for i in range(len(encoded)) if i not in done), key=lambda i: len(encoded[i]))
    for start in range(0, len(left), _GENERATED_TOGETHER):
        report("continue", len(done), len(encoded))
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
    report("continue", len(encoded), len(encoded))
    return [done[i] for i in range(len(encoded))]


# -- the student ---------------------------------------------------------------------------------------------------


def guess_logits(
    target: Target,
    ids: Int[Tensor, "batch length"],
    cuts: Int[Tensor, "batch cuts"],
    embeddings: Float[Tensor, "distances copies width"],
) -> tuple[Float[Tensor, "batch cuts distances vocabulary"], Float[Tensor, "batch length vocabulary"]]:
    """Append the prompt tokens at every cut of every text.

    Parameters
    ----------
    target
        The frozen model.
    ids
        Texts, padded on the right.
    cuts
        Prefix lengths; the prompt tokens after a cut see the prefix and the ones before them of the same copy.
    embeddings
        The prompt tokens.

    Returns
    -------
    guesses, own
        Logits at the prompt tokens, averaged over copies (differentiable), and the model's own at every token.
    """
    batch, length = ids.shape
    distances, copies, width = embeddings.shape
    count = cuts.shape[1]
    cache = target.new_cache(batch, length + count * copies * distances)
    columns = torch.arange(length, device=ids.device)
    with torch.no_grad():
        causal = (columns <= columns[:, None]).expand(batch, -1, -1)
        own = target.extend(ids, columns.expand(batch, -1), causal, cache)
    new = count * copies * distances
    prefix = cuts.repeat_interleave(copies * distances, dim=1)
    chains = torch.ones(distances, distances, dtype=torch.bool, device=ids.device).tril()
    among = torch.block_diag(*[chains] * (count * copies)).bool().expand(batch, -1, -1)
    lineage = torch.cat([columns < prefix[..., None], among], dim=-1)
    step = torch.arange(distances, device=ids.device).repeat(count * copies)
    positions = torch.cat([columns.expand(batch, -1), prefix + step], dim=1)
    rows = embeddings.transpose(0, 1).expand(batch, count, -1, -1, -1).reshape(batch, new, width)
    rows = rows.to(target.model.get_input_embeddings().weight.dtype)
    logits = target.extend(ids.new_zeros(batch, new), positions, lineage, cache, rows)
    return logits.view(batch, count, copies, distances, -1).float().mean(2), own


def text_initialised(lm: CausalLM, *, distances: int = 3, copies: int = 1) -> PromptTokens:
    """Start from words, as the paper does: the mean embedding of "Next 2 word" and so on (copies: of its parts)."""
    weight: Any = lm.model.get_input_embeddings().weight
    table: Tensor = weight.detach().float()
    rows = []
    for i in range(1, distances + 1):
        ids = lm.tokenizer(f"Next {i + 1} word", add_special_tokens=False)["input_ids"]
        ids = torch.tensor((ids * copies)[: max(len(ids), copies)], device=table.device)
        rows.append(torch.stack([part.mean(0) for part in table[ids].tensor_split(copies)]))
    target = Target(lm.model)
    return PromptTokens(
        torch.stack(rows), vocabulary=target.vocabulary, model=lm.name, architecture=describe(target)
    ).to(target.device)


class PromptTokenRecipe:
    """What the training loop needs: some texts and cuts per batch, and the distillation loss.

    Parameters
    ----------
    target
        The frozen model; its parameters get no gradients.
    module
        The prompt tokens, which are trained.
    texts
        Continuations to learn from.
    batch_texts, batch_cuts
        Texts per batch, and cuts per text.
    decay
        Weight of a distance relative to the one before it.
    seed
        Of texts and cuts.

    Raises
    ------
    UserError
        No text is long enough to be cut.
    """

    def __init__(
        self,
        target: Target,
        module: PromptTokens,
        texts: Sequence[Continuation],
        *,
        batch_texts: int = 2,
        batch_cuts: int = 32,
        decay: float = 0.8,
        seed: int = 0,
    ) -> None:
        self.target, self.module = target, module
        self.texts = [text for text in texts if len(text.cuts(module.distances)) >= 1]
        if not self.texts:
            raise UserError(f"no continuation is longer than {module.distances} tokens; pass other prompts")
        self.batch_texts, self.batch_cuts = min(batch_texts, len(self.texts)), batch_cuts
        self.decay, self.seed = decay, seed

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Take the next texts of this epoch's order (padded ids) and cut each at random places (prefix lengths)."""
        per_epoch = len(self.texts) // self.batch_texts
        epoch, place = divmod(index, per_epoch)
        order = torch.randperm(len(self.texts), generator=torch.Generator().manual_seed(self.seed * 7919 + epoch))
        chosen = [self.texts[i] for i in order[place * self.batch_texts :][: self.batch_texts]]
        generator = torch.Generator().manual_seed((self.seed << 32) + index)
        ids = torch.zeros(len(chosen), max(len(text.ids) for text in chosen), dtype=torch.long)
        cuts = torch.zeros(len(chosen), self.batch_cuts, dtype=torch.long)
        for row, text in enumerate(chosen):
            ids[row, : len(text.ids)] = torch.tensor(text.ids)
            possible = torch.tensor(text.cuts(self.module.distances))
            picks = torch.randperm(len(possible), generator=generator)
            cuts[row] = possible[picks.repeat(-(-self.batch_cuts // len(picks)))[: self.batch_cuts]]
        return ids, cuts

    def loss(self, module: Any, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Distil at every cut: prompt token i learns the model's law after i more of its own tokens."""
        ids, cuts = (t.to(self.target.device) for t in batch)
        student, own = guess_logits(self.target, ids, cuts, module())
        ahead = cuts[..., None] + torch.arange(student.shape[2], device=cuts.device)
        teacher = own[torch.arange(len(ids), device=cuts.device)[:, None, None], ahead].float()
        loss = distill_loss(student.flatten(0, 1), teacher.flatten(0, 1), self.decay)
        agree = (student.argmax(-1) == teacher.argmax(-1)).float().mean((0, 1))
        return loss, {f"agree at {i + 2}": value for i, value in enumerate(agree.tolist())}


# -- calibration and rivals ----------------------------------------------------------------------------------------


@torch.no_grad()
def guess_accuracy(
    target: Target,
    tokens: PromptTokens,
    texts: Sequence[Continuation],
    *,
    ranks: int = _RANKS,
    report: Report = _silent,
) -> Float[Tensor, "distances ranks"]:
    """How often the r-th ranked guess at each distance is the token that came, over all cuts of the texts."""
    hits = torch.zeros(tokens.distances, ranks, dtype=torch.float64)
    total = 0
    for done, text in enumerate(texts):
        if cuts := text.cuts(tokens.distances + 1):
            ids = torch.tensor(text.ids, device=target.device)
            where = torch.tensor(cuts, device=target.device)
            guesses = guess_logits(target, ids[None], where[None], tokens())[0][0].topk(ranks, dim=-1).indices
            truth = ids[where[:, None] + torch.arange(1, tokens.distances + 1, device=target.device)]
            hits += (guesses == truth[..., None]).double().sum(0).cpu()
            total += len(cuts)
        report("calibrate", done + 1, len(texts))
    return hits / max(total, 1)


def frequency_accuracy(
    known: Sequence[Continuation], texts: Sequence[Continuation], *, distances: int = 3, ranks: int = _RANKS
) -> Float[Tensor, "distances ranks"]:
    """Accuracy of the obvious rival: what most often stood that far after the last token in the `known` texts.

    Ranks that a token's own counts leave open are filled with the most frequent tokens of all.
    """
    from collections import Counter, defaultdict

    hits = torch.zeros(distances, ranks, dtype=torch.float64)
    common = [token for token, _ in Counter(t for text in known for t in text.ids).most_common(2 * ranks)]
    total = 0
    for distance in range(1, distances + 1):
        after: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for text in known:
            for token, later in zip(text.ids, text.ids[distance + 1 :], strict=False):
                after[token][later] += 1
        total = 0
        for text in texts:
            for cut in text.cuts(distances + 1):
                ranked = [token for token, _ in after[text.ids[cut - 1]].most_common(ranks)]
                ranked += [token for token in common if token not in ranked][: ranks - len(ranked)]
                if (truth := text.ids[cut + distance]) in ranked:
                    hits[distance - 1, ranked.index(truth)] += 1
                total += 1
    return hits / max(total, 1)


# -- the whole -----------------------------------------------------------------------------------------------------


def train_prompt_tokens(
    lm: CausalLM,
    prompts: Sequence[str],
    output: str | Path,
    *,
    folder: str | Path,
    distances: int = 3,
    copies: int = 1,
    new_tokens: int = 96,
    steps: int = 400,
    lr: float = 1e-2,
    batch_texts: int = 2,
    batch_cuts: int = 32,
    seed: int = 0,
    command: str = "",
    report: Report = _silent,
) -> PromptTokens:
    """Train, calibrate and save prompt tokens for a model; what is done already in `folder` is not done again.

    Parameters
    ----------
    lm
        The model, frozen here, and its tokenizer.
    prompts
        Texts of users' turns, e.g. `training_prompts`; every tenth calibrates and is not trained on.
    output
        Safetensors file to write.
    folder
        Keeps the continuations, the checkpoint and the log; a killed run goes on from there.
    distances, copies
        S and n_ept: how many distances are guessed, and the size of the ensemble.
    new_tokens
        Length of the continuations, in tokens.
    steps, lr
        Optimiser steps and peak learning rate (cosine; the paper's: 1e-2, no warm-up, no weight decay).
    batch_texts, batch_cuts
        Texts per step, and cuts per text.
    seed
        Of everything random.
    command
        Kept in the file's notes: what repeats the training.
    report
        Called as ``report(stage, done, of)``; the stages are ``continue``, ``train``, ``calibrate``.

    Returns
    -------
    PromptTokens
        What was saved.

    Raises
    ------
    UserError
        There are too few prompts, or `folder` holds a run with other prompts or settings.
    """
    if len(prompts) < _HELD_OUT:
        raise UserError(f"{len(prompts)} prompts are too few; pass at least {_HELD_OUT}, better 200")
    folder = Path(folder)
    target = Target(lm.model)
    lm.model.requires_grad_(False)
    texts = continuations(lm, prompts, new_tokens=new_tokens, store=folder / "continuations.jsonl", report=report)
    learnt = [text for i, text in enumerate(texts) if i % _HELD_OUT]
    tokens = text_initialised(lm, distances=distances, copies=copies)
    recipe = PromptTokenRecipe(target, tokens, learnt, batch_texts=batch_texts, batch_cuts=batch_cuts, seed=seed)
    settings = Settings(steps=steps, lr=lr, clip=0.0, seed=seed, save_every=20)
    trained = train(
        recipe,
        folder,
        settings,
        device=target.device.type,
        on_step=lambda done, of: report("train", done, of),
    )
    tokens.accuracies = guess_accuracy(target, tokens, texts[::_HELD_OUT], report=report)
    tokens.notes = {
        "command": command,
        "texts": f"{len(recipe.texts)} own greedy continuations of up to {new_tokens} tokens",
        "settings": f"steps={steps} lr={lr} batch_texts={batch_texts} batch_cuts={batch_cuts} seed={seed}",
        "dtype": str(target.dtype).removeprefix("torch."),
        "last": json.dumps(trained.last),
        "log": (folder / "log.jsonl").read_text(),
        "calibration": f"{len(texts[::_HELD_OUT])} texts not trained on",
    }
    tokens.save(output)
    return tokens
