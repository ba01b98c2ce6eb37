"""Train a composer for a model: words in one token shall do to the model what their parts did."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from mintage.data import Corpus
from mintage.errors import UserError
from mintage.files import parse_json
from mintage.models import CausalLM, load_causal_lm
from mintage.options import option
from mintage.progress import Progress
from mintage.retrofit.core.composer import Composer, ComposerShape, ComposerTransfer
from mintage.retrofit.core.embeddings import Parts, PartsTransfer
from mintage.retrofit.core.token_bytes import TokenBytes
from mintage.retrofit.core.words import composed_rows, word_nll
from mintage.retrofit.training.blocks import HELD_OUT, pieces_of_texts
from mintage.retrofit.training.composer_recipe import ComposerRecipe
from mintage.retrofit.training.texts import texts_cut_small
from mintage.train import Settings
from mintage.train.training import Training, Work

__all__ = ["ComposerTraining"]

_MEASURED = 16  # held-out pieces that the composer is measured on


@dataclass(frozen=True, kw_only=True)
class ComposerTraining(Training):
    """Train a composer: what gives words in one token an embedding made from those of their parts."""

    name: ClassVar[str] = "composer"
    examples: ClassVar[tuple[str, ...]] = (
        "mintage train composer --out composer.safetensors",
        "mintage train composer chemistry.txt --model ./my-model --steps 3000",
    )
    after: ClassVar[str] = 'DynamicTokens(provider="composer.safetensors")'

    texts: tuple[str, ...] = option((), "Text files or folders; none: many languages, code.", argument=True)
    model: str = option("smollm2", "smollm2 (embedded), a folder, or a hub id; float32.")
    steps: int = option(1500, "Optimiser steps.", least=1)
    warmup: int = option(100, "Of these, on the vocabulary alone.", least=0)
    lr: float = option(2e-3, "Peak learning rate; cosine to 0.", above=0)
    rows: int = option(3, "Texts per step.", least=1)
    tokens: int = option(96, "Original tokens that are read of each.", least=4)
    layers: int = option(6, "Blocks of the model after which states are compared; all of them: predictions.", least=1)
    hidden: int = option(256, "Width of the network.", least=4)
    start: Path | None = option(None, "A composer of the same model to go on from; give its --seed, too.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup > self.steps:
            raise UserError(f"warmup={self.warmup} is outside 0..{self.steps}, the steps in all")

    def learn(self, work: Work) -> Composer:
        """Train on the texts that are named, or on some of many languages."""
        lm = load_causal_lm(self.model, dtype="float32", device=self.device)
        return self.fit(lm, Corpus(*self.texts) if self.texts else texts_cut_small(self.seed), work)

    def fit(self, lm: CausalLM, texts: Iterable[str], work: Work) -> Composer:
        """Train a composer for a model in float32, which is frozen.

        To go on from a composer, `texts` must come in the order of its own training, else it has learnt from some of
        those that are held out.

        Returns
        -------
        Composer
            Its note ``held_out`` has negative log-likelihoods per word on held-out texts, all joined (``original``,
            ``mean``, ``composer``), and the share of the mean's loss that is ``recovered``.

        Raises
        ------
        UserError
            Too few texts, an unknown kind of model, a composer of another model, or a checkpoint of another run.
        """
        lm.model.requires_grad_(False)
        pieces = pieces_of_texts(lm, texts, self.tokens)
        learnt = [piece for index, piece in enumerate(pieces) if index % HELD_OUT]
        source = Parts(lm.model, TokenBytes(lm.tokenizer))
        net = self._network(source)
        recipe = ComposerRecipe(net, lm, learnt, warmup=self.warmup, rows=self.rows, layers=self.layers, seed=self.seed)
        settings = Settings(
            steps=self.steps,
            lr=self.lr,
            warmup=min(20, self.steps),
            weight_decay=0.01,
            seed=self.seed,
            save_every=20,
        )
        work.stage("training", recipe, settings)
        net.to(lm.model.device).eval()
        found = _measure(lm, recipe, pieces[::HELD_OUT][:_MEASURED], work.progress)
        return net.bind(source, {"model": lm.name, "held_out": json.dumps(found)})

    def summary(self, made: Composer) -> str:
        """Return what held-out texts cost."""
        found = parse_json(made.notes["held_out"], "the notes of a composer", "train it again")
        return "nats per word on held-out texts: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items())

    def _network(self, source: Parts) -> Composer:
        if self.start is not None:
            return Composer.load(self.start, source).train().requires_grad_(True)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            scale = float(source.input.float().std())
            shape = ComposerShape(
                width=source.input.shape[1], tied=source.tied, scale=scale, hidden=self.hidden, inner=2 * self.hidden
            )
            return Composer(shape)


def _measure(
    lm: CausalLM, recipe: ComposerRecipe, pieces: Sequence[Sequence[int]], progress: Progress
) -> dict[str, float]:
    arms = {"mean": PartsTransfer(), "composer": ComposerTransfer(recipe.module)}
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
        progress("measuring", done, len(pieces))
    found = {name: value / max(words, 1) for name, value in nats.items()}
    lost = found["mean"] - found["original"]
    return found | {"recovered": (found["mean"] - found["composer"]) / lost if lost else 0.0}
