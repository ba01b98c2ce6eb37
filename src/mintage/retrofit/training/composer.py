"""Train a composer for a model: words in one token shall do to the model what their parts did.

Two lessons. First the model's own vocabulary: tokens are cut at random places, and the embedding of the whole is to be
found from those of the pieces (the warm-up of zett). Then texts: the model reads a text as it is and merged, and behind
every merged token its states shall be those behind the last part. States are compared after the first few blocks,
where a model puts words together; after the last one the predictions are, which costs five times as much and is what
counts: for the end of a training.

Not here: the loop (`mintage.train`), the network (`mintage.retrofit.core.composer`).
"""

from __future__ import annotations

import copy
import json
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mintage.data import Corpus, data_file
from mintage.errors import UserError
from mintage.files import read_jsonl
from mintage.models import CausalLM
from mintage.retrofit.core.composer import (
    Composed,
    Composer,
    ComposerShape,
    Parts,
    PartsTransfer,
    Provider,
    load_composer,
    pad_parts,
    save_composer,
)
from mintage.retrofit.core.merging import DynamicBatch, DynamicTokenizer
from mintage.retrofit.core.token_bytes import TokenBytes
from mintage.train import Settings, train

__all__ = [
    "ComposerRecipe",
    "WordNLL",
    "composed_rows",
    "first_blocks",
    "pieces_of_texts",
    "train_composer",
    "training_texts",
    "word_nll",
]

Report = Callable[[str, int, int], None]

_HELD_OUT = 20  # every twentieth piece of text is not trained on
_MEASURED = 16  # of these, what the composer is measured on
_REDUCTIONS = (0.5, 1.0)  # drawn from evenly
_TRIES = 1000
_CUT = 20_000  # tokens of the vocabulary that are cut


def _silent(stage: str, done: int, of: int) -> None:
    pass


# -- texts -------------------------------------------------------------------------------------------------------------


def training_texts(seed: int = 0) -> list[str]:
    """Return texts that tokenizers made for English cut small: 50 languages, Genesis in five, code; some English, too.

    None of it is what the claim check reads (XQuAD, the modules at the top of the standard library).

    Raises
    ------
    UserError
        The data folder is not set.
    """
    by_language: dict[str, list[str]] = {}
    for row in read_jsonl(data_file("tatoeba_parallel.jsonl.gz")):
        by_language.setdefault(row["lang"], []).append(row["text"])
    found = [" ".join(some[i : i + 12]) for some in by_language.values() for i in range(0, len(some), 12)]
    for row in read_jsonl(data_file("long_docs.jsonl.gz")):
        if row["corpus"] == "genesis" and not row["file"].startswith("english"):
            found += [row["text"][i : i + 600] for i in range(0, len(row["text"]), 600)]
    english = [line.strip() for line in Corpus(data_file("wikitext2_valid.txt.gz")) if len(line) > 200]
    library = sorted(Path(sysconfig.get_path("stdlib")).glob("*/*.py"))
    code = [path.read_text(encoding="utf-8", errors="replace") for path in library if "test" not in path.parts[-2]]
    found += english[:600]
    found += [text[i : i + 600] for text in code for i in range(0, min(len(text), 6000), 600)]
    return [found[i] for i in np.random.default_rng(seed).permutation(len(found))]


def pieces_of_texts(lm: CausalLM, texts: Iterable[str], tokens: int = 160) -> list[list[int]]:
    """Return the beginnings of texts, the opening token before each; texts of less than a quarter are left out.

    Raises
    ------
    UserError
        There are fewer than twenty.
    """
    opening = [] if lm.opening is None else [lm.opening]
    found = []
    texts = list(texts)
    tokenizer: Any = lm.tokenizer
    for first in range(0, len(texts), 1024):
        encoded = tokenizer(texts[first : first + 1024], add_special_tokens=False)["input_ids"]
        found += [[*opening, *ids[: tokens - 1]] for ids in encoded if len(ids) >= tokens // 4]
    if len(found) < _HELD_OUT:
        raise UserError(f"only {len(found)} texts have {tokens // 4} tokens; pass at least {_HELD_OUT}, one per line")
    return found


# -- the recipe --------------------------------------------------------------------------------------------------------


def first_blocks(model: Any, layers: int) -> Any:
    """Return the model's first blocks and its last norm, as a model of its own that shares the weights.

    Raises
    ------
    UserError
        The model has no ``layers``, or not as many.
    """
    base = model.base_model
    blocks = getattr(base, "layers", None)
    if blocks is None:
        raise UserError(f"the blocks of {type(model).__name__} are not known; supported: models with model.layers")
    if not 1 <= layers <= len(blocks):
        raise UserError(f"layers={layers} is outside 1..{len(blocks)}, the blocks of the model")
    if layers == len(blocks):
        return base
    cut = copy.copy(base)
    cut._modules = dict(base._modules)
    cut.config = copy.copy(base.config)
    cut.config.num_hidden_layers = layers
    cut.layers = nn.ModuleList(blocks[:layers])
    return cut


def _cut_vocabulary(vocabulary: TokenBytes, longest: int, seed: int) -> tuple[list[int], list[list[int]]]:
    """Cut tokens of the vocabulary at one to three random places, and cut what falls out as the tokenizer does."""
    draw = np.random.default_rng(seed)
    tokens = [token for token in vocabulary.ids if len(token) > 2]
    whole, parts = [], []
    for place in draw.permutation(len(tokens))[:_CUT]:
        token = tokens[place]
        cuts = sorted(1 + draw.choice(len(token) - 1, min(len(token) - 1, int(draw.integers(1, 4))), replace=False))
        ends = zip([0, *cuts], [*cuts, len(token)], strict=True)
        made = [part for start, end in ends for part in vocabulary.parts(token[start:end])]
        if 2 <= len(made) <= longest:
            whole.append(vocabulary.ids[token])
            parts.append(made)
    if not whole:
        raise UserError("no token of this vocabulary is made of others, so nothing can be learnt from it")
    return whole, parts


class ComposerRecipe:
    """What `mintage.train` needs to train a composer.

    Parameters
    ----------
    net
        What is trained.
    lm
        The model, frozen.
    pieces
        From `pieces_of_texts`.
    warmup
        Batches of the vocabulary alone; later ones are of texts, with a smaller batch of the vocabulary.
    rows
        Texts per batch.
    cut
        Tokens of the vocabulary that are cut per batch of the warm-up.
    layers
        Blocks after which states are compared; all of them: predictions.
    """

    def __init__(
        self,
        net: Composer,
        lm: CausalLM,
        pieces: Sequence[Sequence[int]],
        *,
        warmup: int,
        rows: int = 3,
        cut: int = 128,
        layers: int = 6,
        seed: int = 0,
    ) -> None:
        self.module = net
        self.merger = DynamicTokenizer(lm.tokenizer)
        self.source = Parts(lm.model, self.merger.vocabulary)
        self._model, self._pieces = first_blocks(lm.model, layers), pieces
        self._head: Any = lm.model.get_output_embeddings() if self._model is lm.model.base_model else None
        self._warmup, self._rows, self._cut, self._seed = warmup, rows, cut, seed
        whole, parts = _cut_vocabulary(self.merger.vocabulary, net.shape.parts, seed)
        self._whole = torch.tensor(whole)
        self._cut_ids, self._cut_mask = pad_parts(parts, net.shape.parts)

    def batch(self, index: int) -> dict[str, Tensor]:
        """Return tokens that were cut, and from the end of the warm-up on texts."""
        draw = np.random.default_rng((self._seed, index))
        early = index < self._warmup
        batch = self._cut_tokens(draw, self._cut if early else self._cut // 2)
        return batch if early else batch | self._texts(draw)

    def _cut_tokens(self, draw: np.random.Generator, count: int) -> dict[str, Tensor]:
        chosen = torch.from_numpy(draw.choice(len(self._whole), count))
        mask = self._cut_mask[chosen]
        longest = int(mask.sum(1).max())
        return {
            "whole": self._whole[chosen],
            "cut": self._cut_ids[chosen, :longest],
            "cut_mask": mask[:, :longest],
        }

    def _texts(self, draw: np.random.Generator) -> dict[str, Tensor]:
        some: list[Sequence[int]] = []
        for _ in range(_TRIES):
            piece = self._pieces[int(draw.integers(len(self._pieces)))]
            words = self.merger.merge_ids([piece], reduction=1.0)
            # words of many parts, as in scripts without spaces, are cut short and teach little
            if words.length < len(piece) <= self.module.shape.parts / 2 * words.length:
                some.append(piece)
            if len(some) == self._rows:
                break
        else:
            raise UserError("hardly a text holds words of two to seven tokens; pass texts that are cut smaller")
        merged = self.merger.merge_ids(some, reduction=float(draw.choice(_REDUCTIONS)))
        new = self.source.of([token.surface for token in merged.unique if token.id is None])
        ids, mask = pad_parts([row or [0] for row in new], self.module.shape.parts)
        ends = [[*row[1:], len(piece)] for row, piece in zip(merged.starts, some, strict=True)]
        pad = nn.utils.rnn.pad_sequence
        return {
            "ids": pad([torch.tensor(piece) for piece in some], batch_first=True),
            "unique": torch.tensor([-1 if t.id is None else t.id for t in merged.unique]),
            "parts": ids,
            "parts_mask": mask,
            "places": pad([torch.tensor(row) for row in merged.tokens], batch_first=True, padding_value=-1),
            "ends": pad([torch.tensor(row) - 1 for row in ends], batch_first=True),
        }

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Distance to the vocabulary's embeddings, and to the states or predictions behind words."""
        made = self._compose(module, batch["cut"], batch["cut_mask"])
        scale = self.module.scale
        distances = [((made.input - self.source.input[batch["whole"]].float()) / scale).square().mean()]
        distances.append(((made.output - self.source.output[batch["whole"]].float()) / scale).square().mean())
        vocabulary = (distances[0] + distances[1]) / 2
        if "ids" not in batch:
            return vocabulary, {"vocabulary": vocabulary.item()}
        made = self._compose(module, batch["parts"], batch["parts_mask"])
        rows = self.source.input[batch["unique"].clamp(min=0)].float()
        rows = rows.index_copy(0, (batch["unique"] < 0).nonzero()[:, 0], made.input)
        with torch.no_grad():
            wanted = self._states(input_ids=batch["ids"])
            wanted = wanted.gather(1, batch["ends"][..., None].expand(-1, -1, wanted.shape[-1]))
        got = self._states(inputs_embeds=rows[batch["places"].clamp(min=0)].to(self.source.input.dtype))
        read = batch["places"] >= 0
        name, lost = "states", _apart
        if self._head is not None:
            name, lost = "predictions", self._divergence
        found = lost(got[read], wanted[read])
        return found + 0.1 * vocabulary, {"vocabulary": vocabulary.item(), name: found.item()}

    def _divergence(self, got: Float[Tensor, "tokens width"], wanted: Float[Tensor, "tokens width"]) -> Tensor:
        """Divergence of what is predicted from what was, in nats."""
        told, right = (self._head(states.to(self._head.weight.dtype)).float() for states in (got, wanted))
        law = nn.functional.kl_div
        return law(told.log_softmax(-1), right.log_softmax(-1), reduction="batchmean", log_target=True)

    def _compose(self, module: nn.Module, ids: Int[Tensor, "tokens parts"], mask: Tensor) -> Composed:
        return module(self.source.input[ids].float(), self.source.output[ids].float(), mask)

    def _states(self, **given: Tensor) -> Float[Tensor, "texts tokens width"]:
        """States after the first blocks; padding stands behind, where causal attention does not see it."""
        return self._model(**given, use_cache=False).last_hidden_state.float()


def _apart(got: Float[Tensor, "tokens width"], wanted: Float[Tensor, "tokens width"]) -> Tensor:
    """Squared distance of states, as a part of their squared norm."""
    return ((got - wanted).square().sum(-1) / wanted.square().sum(-1)).mean()


# -- what it is worth --------------------------------------------------------------------------------------------------


class WordNLL(NamedTuple):
    """Negative log-likelihood of the first part of every word but the first, in nats, and how many there are."""

    nats: float
    words: int


@torch.no_grad()
def word_nll(
    lm: CausalLM, ids: Sequence[int], words: Sequence[int], starts: Sequence[int], embeds: Tensor | None = None
) -> WordNLL:
    """Score the first part of words, in the original vocabulary, after a text in any tokens that keep their bounds.

    Parameters
    ----------
    ids
        Original tokens of the text.
    words
        Where in `ids` the scored words start; each must be in `starts`.
    starts
        Where in `ids` each token that is read starts.
    embeds
        What is read, [tokens, width]; None reads `ids`.
    """
    model: Any = lm.model
    place = {start: number for number, start in enumerate(starts)}
    before = torch.tensor([place[word] - 1 for word in words])
    given = {"input_ids": torch.tensor([ids])} if embeds is None else {"inputs_embeds": embeds[None]}
    states = model.base_model(**given, use_cache=False).last_hidden_state[0, before]
    logp = model.get_output_embeddings()(states).float().log_softmax(-1)
    targets = torch.tensor([ids[word] for word in words])
    return WordNLL(float(-logp.gather(-1, targets[:, None]).double().sum()), len(words))


def composed_rows(source: Parts, provider: Provider, batch: DynamicBatch) -> Float[Tensor, "tokens width"]:
    """Return the embeddings of a batch's distinct tokens: originals, and the provider's for new ones."""
    rows = source.input[[0 if t.id is None else t.id for t in batch.unique]].clone()
    new = [place for place, token in enumerate(batch.unique) if token.id is None]
    if new:
        rows[new] = provider.rows(source, [batch.unique[place].surface for place in new]).input.to(rows)
    return rows


def train_composer(
    lm: CausalLM,
    texts: Iterable[str],
    out: str | Path,
    *,
    folder: str | Path,
    steps: int = 1500,
    warmup: int = 100,
    lr: float = 2e-3,
    rows: int = 3,
    tokens: int = 96,
    layers: int = 6,
    hidden: int = 256,
    start: str | Path | None = None,
    seed: int = 0,
    command: str = "",
    report: Report = _silent,
) -> dict[str, float]:
    """Train a composer and write it to `out`; a killed run goes on from what `folder` holds.

    Parameters
    ----------
    lm
        The model, in float32.
    texts
        Each one piece is taken of.
    steps, warmup
        Steps in all, and of these on the vocabulary alone.
    lr
        Peak learning rate (cosine).
    rows, tokens
        Texts per step, and original tokens of each.
    layers
        Blocks of the model after which states are compared; with all of them its predictions are.
    hidden
        Width of the network.
    start
        A composer of the same model to go on from, whose sizes are taken; default: a new one. `texts` must come in the
        order of its own training, else it has learnt from some of those that are held out.
    seed
        Of everything random.
    report
        Progress.

    Returns
    -------
    dict
        Negative log-likelihoods on held-out texts, all joined: ``original``, ``mean``, ``composer``; and the share of
        the mean's loss that is ``recovered``.

    Raises
    ------
    UserError
        Too few texts, an unknown kind of model, a composer of another model, or a checkpoint of another run.
    """
    if not 0 <= warmup <= steps:
        raise UserError(f"warmup={warmup} is outside 0..{steps}, the steps in all")
    for parameter in lm.model.parameters():
        parameter.requires_grad_(False)
    pieces = pieces_of_texts(lm, texts, tokens)
    held, learnt = pieces[::_HELD_OUT], [piece for place, piece in enumerate(pieces) if place % _HELD_OUT]
    source = Parts(lm.model, TokenBytes(lm.tokenizer))
    if start is not None:
        net = load_composer(source, start).net.train().requires_grad_(True)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            shape = ComposerShape(width=source.input.shape[1], tied=source.tied, hidden=hidden, inner=2 * hidden)
            net = Composer(shape, float(source.input.float().std()))
    recipe = ComposerRecipe(net, lm, learnt, warmup=warmup, rows=rows, layers=layers, seed=seed)
    settings = Settings(steps=steps, lr=lr, warmup=min(20, steps), weight_decay=0.01, seed=seed, save_every=20)
    train(recipe, folder, settings, device="cpu", on_step=lambda done, of: report("training", done, of))
    found = _measure(lm, recipe, held[:_MEASURED], report)
    notes = {"model": lm.name, "command": command, "held_out": json.dumps(found)}
    save_composer(net.eval(), recipe.source, out, notes=notes)
    return found


def _measure(lm: CausalLM, recipe: ComposerRecipe, pieces: Sequence[Sequence[int]], report: Report) -> dict[str, float]:
    from mintage.retrofit.core.composer import ComposerTransfer

    arms = {"mean": PartsTransfer(), "composer": ComposerTransfer(recipe.module.eval())}
    nats, words = dict.fromkeys(["original", *arms], 0.0), 0
    for done, piece in enumerate(pieces, start=1):
        merged = recipe.merger.merge_ids([piece], reduction=1.0)
        starts = merged.starts[0]
        if len(starts) > 1:
            plain = word_nll(lm, piece, starts[1:], range(len(piece)))
            nats["original"], words = nats["original"] + plain.nats, words + plain.words
            for name, arm in arms.items():
                embeds = composed_rows(recipe.source, arm, merged)[merged.tokens[0]]
                nats[name] += word_nll(lm, piece, starts[1:], starts, embeds).nats
        report("measuring", done, len(pieces))
    found = {name: value / max(words, 1) for name, value in nats.items()}
    lost = found["mean"] - found["original"]
    return found | {"recovered": (found["mean"] - found["composer"]) / lost if lost else 0.0}
