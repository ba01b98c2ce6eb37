"""Train a hypernetwork for one model: any sampled tokenizer shall do to it what its own does.

First the model's own vocabulary: its rows are to be found from their surface forms (the warm-up, section 3.3). Then
every batch brings a tokenizer of its own: frequent pieces of text, their scores disturbed by noise, make a Unigram
vocabulary together with the 256 bytes; the frozen model reads texts in it, and the loss is that of predicting them,
plus the distance of known tokens to their own rows. What is learnt is about tokens, not about one tokenizer.

Not here: the loop (`mintage.train`), the network (`mintage.retrofit.zett`), masked models.
"""

from __future__ import annotations

import json
import math
import sysconfig
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from torch.nn import functional

from mintage.data import data_file
from mintage.errors import UserError
from mintage.files import read_jsonl
from mintage.models import CausalLM
from mintage.retrofit.core.composer import Composed, Parts
from mintage.retrofit.core.token_bytes import TokenBytes
from mintage.retrofit.training.composer import first_blocks
from mintage.retrofit.zett import (
    Hypernetwork,
    HypernetworkShape,
    embeddings_of,
    load_hypernetwork,
    save_hypernetwork,
    scaler,
    surface_forms,
)
from mintage.train import Settings, train

__all__ = ["TokenizerSampler", "ZettRecipe", "train_zett", "training_texts"]

Report = Callable[[str, int, int], None]

_LONGEST = 16  # bytes of a sampled token
_COUNTED = 2048  # texts that pieces are counted in (section 4.1)
_IGNORED = -100
_CHARACTERS = 4  # per token, about
_SENTENCES = {"deu": "german.txt", "fra": "french.txt", "por": "portuguese.txt", "spa": "spanish", "ita": "italian"}


def _silent(stage: str, done: int, of: int) -> None:
    pass


def training_texts() -> dict[str, list[str]]:
    """Return texts by kind: English, code, and languages that others have more of.

    None of it is what the claim check reads (WikiText-2's test part, XQuAD, HumanEval, the modules at the top of the
    standard library).

    Raises
    ------
    UserError
        The data folder is not set.
    """
    library = sorted(Path(sysconfig.get_path("stdlib")).glob("*/*.py"))
    code = [path.read_text(encoding="utf-8", errors="replace") for path in library if "test" not in path.parts[-2]]
    found = {"english": [], "code": [piece for text in code for piece in _pieces(text[:6000])]}
    for row in read_jsonl(data_file("long_docs.jsonl.gz")):
        kind = row["file"] if row["corpus"] == "genesis" and not row["file"].startswith("english") else "english"
        found.setdefault(kind, []).extend(_pieces(row["text"]))
    for row in read_jsonl(data_file("tatoeba_parallel.jsonl.gz")):
        if row["lang"] in _SENTENCES:
            found.setdefault(_SENTENCES[row["lang"]], []).append(row["text"])
        found["english"].append(row["eng"])
    order = np.random.default_rng(0)
    return {kind: [texts[i] for i in order.permutation(len(texts))] for kind, texts in found.items()}


def _pieces(text: str, size: int = 600) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


class TokenizerSampler:
    """Draws tokenizers from texts (section 3.3, algorithm 1).

    Parameters
    ----------
    vocabulary
        Of the model; its pre-tokenizer cuts the texts.
    texts
        What pieces are counted in.
    largest
        Most tokens that a vocabulary shall have, the 256 bytes among them.
    spread
        Standard deviation of the log of the noise, whose median is 1e-5 (section 4.1: 4).

    Raises
    ------
    UserError
        The model's tokenizer is not byte-level, or the texts have no words.
    """

    def __init__(
        self, vocabulary: TokenBytes, texts: Sequence[str], *, largest: int = 8192, spread: float | int = 4.0
    ) -> None:
        if vocabulary.letters is None:
            raise UserError(
                "tokenizers are sampled over bytes; pass a model whose tokenizer is byte-level (GPT-2, Llama 3)"
            )
        self.spread = spread
        self._pre: Any = vocabulary.backend.pre_tokenizer
        self.letters = [vocabulary.letters[byte] for byte in range(256)]
        some = np.random.default_rng(0).permutation(len(texts))[:_COUNTED].tolist()
        words = Counter(word for place in some for word in self.cut(texts[int(place)]))
        pieces: Counter[str] = Counter()
        for word, count in words.items():
            for start in range(len(word)):
                for end in range(start + 2, min(start + _LONGEST, len(word)) + 1):
                    pieces[word[start:end]] += count
        kept = pieces.most_common(20 * largest)
        if not kept:
            raise UserError("the texts have no word of two bytes or more to make tokens of; pass more text")
        self._pieces = [piece for piece, _ in kept]
        score = np.array([count * len(piece) for piece, count in kept], float)
        self._score = score / score.sum()

    def cut(self, text: str) -> list[str]:
        """Cut a text into words, in the letters of the byte-level alphabet."""
        return [word for word, _ in self._pre.pre_tokenize_str(text)]

    def draw(self, generator: np.random.Generator, size: int) -> tuple[list[str], Tokenizer]:
        """Return a vocabulary of `size` tokens, in letters, and its tokenizer of single words.

        There are 257 at least, and as many as the texts have pieces at most.
        """
        size = min(max(size, 257), 256 + len(self._pieces))
        noise = generator.lognormal(math.log(1e-5), self.spread) * generator.standard_normal(len(self._score))
        score = self._score + noise
        chosen = np.argpartition(-score, size - 257)[: size - 256]
        kept = np.log(np.clip(score[chosen], 1e-9, None))
        floor = float(kept.min()) - 2.0
        entries = [(letter, floor) for letter in self.letters]
        entries += [(self._pieces[place], float(value)) for place, value in zip(chosen, kept, strict=True)]
        return [name for name, _ in entries], Tokenizer(models.Unigram(entries, unk_id=None, byte_fallback=False))


class _Read(NamedTuple):
    """A text in new tokens and in the model's own, places after which both have read the same, and its bytes."""

    ids: list[int]
    original: list[int]
    aligned: list[tuple[int, int]]
    bytes: int


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[_IGNORED] * (width - len(row))] for row in rows])


class ZettRecipe:
    """What `mintage.train` needs to train a hypernetwork.

    Parameters
    ----------
    net
        What is trained.
    lm
        The model, frozen.
    texts
        To read, and to sample tokenizers from, by kind; a tokenizer is made for one kind, and reads it.
    warmup
        Batches of the model's own vocabulary alone.
    rows, tokens
        Texts per batch, and the new tokens that are read of each.
    size
        Of a sampled vocabulary, which is as often half and twice as large.
    spread
        Of the noise, see `TokenizerSampler`.
    identity
        Own tokens per batch of the warm-up.
    lexical
        Weight of the distance of known tokens to their own rows (section 3.3: 0.5).
    distil
        Weight of the distance of the model's last states to those that it has after the same text in its own tokens,
        where both end at the same byte. Not in the paper (0), but minutes of training see few tokens, and a state says
        more than the next token.
    """

    def __init__(
        self,
        net: Hypernetwork,
        lm: CausalLM,
        texts: Mapping[str, Sequence[str]],
        *,
        warmup: int,
        rows: int = 4,
        tokens: int = 64,
        size: int = 4096,
        spread: float | int = 4.0,
        identity: int = 2048,
        lexical: float | int = 0.5,
        distil: float | int = 0.0,
        seed: int = 0,
    ) -> None:
        self.module, self.lm = net, lm
        self.vocabulary = TokenBytes(lm.tokenizer)
        self.source = Parts(lm.model, self.vocabulary)
        self.size = size
        self.samplers = [
            TokenizerSampler(self.vocabulary, some, largest=2 * size, spread=spread) for some in texts.values()
        ]
        self.texts, self.warmup, self.rows, self.tokens = [list(t) for t in texts.values()], warmup, rows, tokens
        amount = np.sqrt([sum(map(len, some)) for some in self.texts])  # so that small kinds are read, too
        self.share = amount / amount.sum()
        self.identity, self.lexical, self.distil, self.seed = identity, lexical, distil, seed
        head: Any = lm.model.get_output_embeddings()
        self.biased = getattr(head, "bias", None) is not None  # else there is no place for one in the model
        self._own_model: Any = self.vocabulary.backend.model
        self._base: Any = first_blocks(lm.model, lm.model.config.num_hidden_layers)
        self._read = embeddings_of(self.source)
        self._norm = self.source.input.float().norm(dim=1).mean()
        self._own = [place for place, token in enumerate(self.vocabulary.tokens) if token]
        self._parts: dict[bytes, list[int]] = {}
        self._byte = {letter: byte for byte, letter in enumerate(self.samplers[0].letters)}
        self.pad = net.vocabulary + net.shape.fallback

    def batch(self, index: int) -> dict[str, Tensor]:
        """Return own tokens, or a tokenizer's surface forms and texts in it."""
        draw = np.random.default_rng((self.seed, index))
        if index < self.warmup:
            own = draw.choice(self._own, min(self.identity, len(self._own)), replace=False)
            return {"own": torch.from_numpy(own)}
        kind = int(draw.choice(len(self.texts), p=self.share))
        sampler, texts = self.samplers[kind], self.texts[kind]
        names, tokenizer = sampler.draw(draw, int(self.size * 2.0 ** draw.integers(-1, 2)))
        rows = [self._read_text(sampler.cut(self._passage(texts, draw)), tokenizer) for _ in range(self.rows)]
        tokens = [bytes(map(self._byte.__getitem__, name)) for name in names]
        parts = [self._cut(token) for token in tokens]
        aligned = [(row, *pair) for row, made in enumerate(rows) for pair in made.aligned]
        return {
            "surface": surface_forms(parts, self.module.shape.length, pad=self.pad, empty=self.module.vocabulary),
            "known": torch.tensor([self.vocabulary.ids.get(token, _IGNORED) for token in tokens]),
            "ids": _padded([made.ids for made in rows]),
            "original": _padded([made.original for made in rows]),
            "aligned": torch.tensor(aligned, dtype=torch.long).reshape(-1, 3),
            "bytes": torch.tensor(sum(made.bytes for made in rows)),
        }

    def _passage(self, texts: Sequence[str], draw: np.random.Generator) -> str:
        """Draw a text, and more where it is short."""
        found = texts[int(draw.integers(len(texts)))]
        while len(found) < _CHARACTERS * self.tokens:
            found += "\n" + texts[int(draw.integers(len(texts)))]
        return found

    def _read_text(self, words: Sequence[str], tokenizer: Tokenizer) -> _Read:
        """Cut words into new tokens, as many as are read, and into the model's own."""
        ids: list[int] = []
        ends, original, own_ends = [0], [], [0]
        for word in words:
            new, own = tokenizer.model.tokenize(word), self._own_model.tokenize(word)
            if len(ids) + len(new) > self.tokens:
                if ids:
                    break
                new = new[: self.tokens]  # the whole text is one word
            for found, held, places in ((new, ids, ends), (own, original, own_ends)):
                held += [piece.id for piece in found]
                places += (places[-1] + np.cumsum([len(piece.value) for piece in found])).tolist()
        _, one, other = np.intersect1d(ends[:-1], own_ends, return_indices=True)
        return _Read(ids, original, list(zip(one.tolist(), other.tolist(), strict=True)), ends[-1])

    def _cut(self, token: bytes) -> list[int]:
        if token not in self._parts:
            self._parts[token] = self.vocabulary.parts(token)
        return self._parts[token]

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the loss; ``bits`` is bits per byte of the texts, ``lexical`` the distance of known tokens."""
        loss, told = self._loss(module, batch)
        unused = sum(weight.sum() for weight in module.parameters() if weight.requires_grad)
        return loss + 0.0 * unused, told  # each weight has a gradient in each step: a checkpoint holds all their states

    def _loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        if "own" in batch:
            own = batch["own"]
            surface = surface_forms([[i] for i in own.tolist()], 1, pad=self.pad, empty=0).to(own.device)
            made = module(surface, self._read, self.pad)
            away = self._away(made, own)
            return away, {"lexical": away.item()}
        made = module(batch["surface"], self._read, self.pad)
        known = batch["known"] != _IGNORED
        away = self._away(Composed(made.input[known], made.output[known]), batch["known"][known])
        ids = batch["ids"]
        states = self._states(made.input[ids.clamp_min(0)][:, :-1])
        logits = states @ made.output.T + (made.bias if self.biased else 0)
        nats = functional.cross_entropy(logits.flatten(0, 1), ids.flatten(), ignore_index=_IGNORED, reduction="sum")
        per_byte = nats / batch["bytes"] / math.log(2)
        loss = per_byte + self.lexical * away
        told = {"bits": per_byte.item(), "lexical": away.item()}
        if self.distil:
            row, place, own = batch["aligned"].unbind(1)
            with torch.no_grad():
                wanted = self._states(self.source.input[batch["original"].clamp_min(0)].float())[row, own]
            apart = ((states[row, place] - wanted) ** 2).sum(-1) / (wanted**2).sum(-1)
            loss, told["states"] = loss + self.distil * apart.mean(), apart.mean().item()
        return loss, told

    def _away(self, made: Composed, own: Tensor) -> Tensor:
        """Distance of rows to the model's own, over the mean norm of a row."""
        pairs = [(made.input, self.source.input)]
        if not self.source.tied:
            pairs.append((made.output, self.source.output))
        return torch.stack([(row - old[own].float()).norm(dim=1).mean() for row, old in pairs]).mean() / self._norm

    def _states(self, given: Tensor) -> Tensor:
        """States of the model behind the opening token and behind all that is given, [texts, 1 + tokens, width]."""
        opening = self.lm.opening
        if opening is None:
            raise UserError(f"{self.lm.name} has no token that starts a text, so the first token cannot be predicted")
        start = self.source.input[opening].float().expand(len(given), 1, -1)
        return self._base(inputs_embeds=torch.cat([start, given], 1), use_cache=False).last_hidden_state.float()


def train_zett(
    lm: CausalLM,
    texts: Mapping[str, Sequence[str]],
    output: str | Path,
    *,
    folder: str | Path,
    steps: int = 160,
    warmup: int = 0,
    lr: float = 1e-3,
    rows: int = 4,
    tokens: int = 64,
    size: int = 4096,
    spread: float = 2.0,
    lexical: float = 0.1,
    distil: float = 1.0,
    hidden: int = 192,
    layers: int = 3,
    residual: str = "mean",
    start: str | Path | None = None,
    bf16: bool = False,
    device: str = "cpu",
    seed: int = 0,
    command: str = "",
    report: Report = _silent,
) -> Hypernetwork:
    """Train a hypernetwork for `lm`, and save it.

    A killed run goes on from the checkpoint in `folder`.

    Parameters
    ----------
    lm
        A causal LM with a byte-level tokenizer, in float32; it is frozen.
    texts
        To train on, by kind (`ZettRecipe`); `training_texts` gives some.
    output
        Safetensors file to write.
    steps, warmup, lr, bf16, seed
        Optimiser steps in all, and of these on the model's own vocabulary alone, which ``residual="none"`` needs (a
        network that starts at the mean of the parts knows it); see `mintage.train.Settings`.
    rows, tokens, size, spread, lexical, distil
        See `ZettRecipe`. Less noise than in the paper makes tokenizers that are more like trained ones.
    hidden, layers, residual
        See `mintage.retrofit.zett.HypernetworkShape`.
    start
        File of a hypernetwork of the same model to go on from; its shape is kept.
    device
        ``"cpu"``, or anything else for what accelerate finds.
    command
        Kept in the file: what repeats the training.
    report
        Called as ``report(stage, done, of)``.

    Raises
    ------
    UserError
        The tokenizer is not byte-level, there is no text, or `folder` holds another run.
    """
    if residual not in ("mean", "none"):
        raise UserError(f"residual={residual!r}; pass mean (from FVT on) or none (the paper's network)")
    lm.model.requires_grad_(False)
    source = Parts(lm.model, TokenBytes(lm.tokenizer))
    shape = HypernetworkShape(
        width=source.input.shape[1],
        tied=source.tied,
        hidden=hidden,
        inner=2 * hidden,
        heads=max(hidden // 32, 1),
        layers=layers,
        residual=residual,  # type: ignore[arg-type]
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        held = None if start is None else load_hypernetwork(start, source)
        net = Hypernetwork(held.shape if held else shape, len(source.input))
    if held:
        net.load_state_dict(held.state_dict())
    else:
        _set_scalers(net, source)
    recipe = ZettRecipe(
        net,
        lm,
        texts,
        warmup=warmup,
        rows=rows,
        tokens=tokens,
        size=size,
        spread=spread,
        lexical=lexical,
        distil=distil,
        seed=seed,
    )
    settings = Settings(
        steps=steps,
        lr=lr,
        warmup=max(steps // 10, 1),
        final_lr=0.05,
        weight_decay=0.01,
        betas=(0.9, 0.95),
        clip=1.0,
        bf16=bf16,
        seed=seed,
        save_every=20,
        log_every=5,
    )
    trained = train(recipe, folder, settings, device=device, on_step=lambda done, of: report("train", done, of))
    net.cpu().eval()
    told = {"steps": str(trained.steps), "seconds": f"{trained.seconds:.0f}", "last": json.dumps(trained.last)}
    save_hypernetwork(net, source, output, notes={"model": lm.name, "command": command, **told})
    return net


@torch.no_grad()
def _set_scalers(net: Hypernetwork, source: Parts) -> None:
    """Give the network inputs of deviation 0.02, and its first predictions the spread of the model's embeddings."""
    read = embeddings_of(source)
    factor, offset = scaler(read, 0.02 * torch.randn(4096, read.shape[1], generator=torch.Generator().manual_seed(0)))
    net.in_scaler.w.copy_(factor)
    net.in_scaler.b.copy_(offset)
    if net.shape.residual == "mean":  # predictions are differences, which start at nothing
        spread = 0.5 * float(source.input.float().std())
        for one in (net.scaler, net.out_scaler):
            if one is not None:
                one.w.fill_(spread)
        return
    some = torch.linspace(0, len(source.input) - 1, 2048).long()
    surface = surface_forms([[i] for i in some.tolist()], 1, pad=net.vocabulary + net.shape.fallback, empty=0)
    made = net(surface, read, net.vocabulary + net.shape.fallback)
    for one, x, target in (
        (net.scaler, made.input, source.input[some].float()),
        (net.out_scaler, made.output, source.output[some].float()),
    ):
        if one is not None:
            factor, offset = scaler(x, target)
            one.w.copy_(factor)
            one.b.copy_(offset)
