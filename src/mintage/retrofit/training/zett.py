"""Train a hypernetwork for one model (arXiv 2405.07883, section 3). Not here: masked models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

from mintage.data import Corpus
from mintage.errors import UserError
from mintage.models import CausalLM, load_causal_lm
from mintage.options import option
from mintage.retrofit.core.embeddings import Parts
from mintage.retrofit.core.hypernetwork import (
    Hypernetwork,
    HypernetworkShape,
    embeddings_of,
    load_hypernetwork,
    scaler,
    surface_forms,
)
from mintage.retrofit.core.token_bytes import TokenBytes
from mintage.retrofit.training.texts import texts_by_kind
from mintage.retrofit.training.tokenizer_sampler import ZettSettings
from mintage.retrofit.training.zett_recipe import ZettRecipe
from mintage.train import Settings
from mintage.train.training import Training, Work

__all__ = ["ZettTraining"]


@dataclass(frozen=True, kw_only=True)
class ZettTraining(Training, ZettSettings):
    """Train a hypernetwork: what gives the tokens of any tokenizer embeddings that one model can read."""

    name: ClassVar[str] = "zett"
    examples: ClassVar[tuple[str, ...]] = (
        "mintage train zett --out zett.safetensors",
        "mintage train zett corpus/ --model ./my-model --residual none --steps 20000 --warmup 2000 --distil 0",
    )
    after: ClassVar[str] = "mintage retrofit transfer --method zett:weights=zett.safetensors --tokenizer german -o out"

    texts: tuple[str, ...] = option((), "Text files or folders; none: English, code, others.", argument=True)
    model: str = option("smollm2", "smollm2 (embedded), a folder, or a hub id; float32.")
    steps: int = option(160, "Optimiser steps, a sampled tokenizer each.", least=1)
    lr: float = option(1e-3, "Peak learning rate; a tenth of the steps warm up, then cosine to a twentieth.", above=0)
    hidden: int = option(192, "Width of the network.", least=4)
    layers: int = option(3, "Encoder layers of the network.", least=1)
    residual: Literal["mean", "none"] = option("mean", "mean: start from FVT; none: the paper's network.")
    start: Path | None = option(None, "A hypernetwork of the same model to go on from; its sizes are kept.")
    bf16: bool = option(False, "Train under bfloat16 autocast.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup > self.steps:
            raise UserError(f"warmup={self.warmup} is outside 0..{self.steps}, the steps in all")

    def learn(self, work: Work) -> Hypernetwork:
        """Train on the texts that are named, or on English, code and other languages."""
        lm = load_causal_lm(self.model, dtype="float32", device=self.device)
        return self.fit(lm, {"text": list(Corpus(*self.texts))} if self.texts else texts_by_kind(), work)

    def fit(self, lm: CausalLM, texts: Mapping[str, Sequence[str]], work: Work) -> Hypernetwork:
        """Train a hypernetwork for a model in float32, with a byte-level tokenizer, which is frozen.

        Parameters
        ----------
        texts
            By kind, see `ZettRecipe`.

        Raises
        ------
        UserError
            The tokenizer is not byte-level, there is no text, or the folder holds another run.
        """
        lm.model.requires_grad_(False)
        source = Parts(lm.model, TokenBytes(lm.tokenizer))
        net = self._network(source)
        recipe = ZettRecipe(net, lm, texts, self, self.seed)
        settings = Settings(
            steps=self.steps,
            lr=self.lr,
            warmup=max(self.steps // 10, 1),
            final_lr=0.05,
            weight_decay=0.01,
            betas=(0.9, 0.95),
            clip=1.0,
            bf16=self.bf16,
            seed=self.seed,
            save_every=20,
            log_every=5,
        )
        trained = work.stage("train", recipe, settings)
        told = {"steps": str(trained.steps), "seconds": f"{trained.seconds:.0f}", "last": json.dumps(trained.last)}
        return net.cpu().eval().bind(source, {"model": lm.name, **told})

    def _network(self, source: Parts) -> Hypernetwork:
        if self.start is not None:
            held = load_hypernetwork(self.start, source)
            net = Hypernetwork(held.shape)
            net.load_state_dict(held.state_dict())
            return net
        shape = HypernetworkShape(
            vocabulary=len(source.input),
            width=source.input.shape[1],
            tied=source.tied,
            hidden=self.hidden,
            inner=2 * self.hidden,
            heads=max(self.hidden // 32, 1),
            layers=self.layers,
            residual=self.residual,
        )
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            net = Hypernetwork(shape)
        _set_scalers(net, source)
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
    surface = surface_forms([[i] for i in some.tolist()], 1, pad=net.pad, empty=0)
    made = net(surface, read)
    for one, x, target in (
        (net.scaler, made.input, source.input[some].float()),
        (net.out_scaler, made.output, source.output[some].float()),
    ):
        if one is not None:
            factor, offset = scaler(x, target)
            one.w.copy_(factor)
            one.b.copy_(offset)
