"""What a hypernetwork learns: any sampled tokenizer shall do to the model what its own does.

First the model's own vocabulary: its rows are to be found from their surface forms (the warm-up, section 3.3). Then
every batch brings a tokenizer of its own; the frozen model reads texts in it, and the loss is that of predicting them,
plus the distance of known tokens to their own rows. What is learnt is about tokens, not about one tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mintage.errors import UserError
from mintage.models import CausalLM
from mintage.retrofit.core.embeddings import Composed, Parts
from mintage.retrofit.core.hypernetwork import Hypernetwork, embeddings_of, surface_forms
from mintage.retrofit.core.token_bytes import TokenBytes
from mintage.retrofit.training.blocks import first_blocks
from mintage.retrofit.training.tokenizer_sampler import TokenizerSampler, ZettSettings, passage, read_in_both

__all__ = ["ZettRecipe"]

_IGNORED = -100
_CHARACTERS = 4  # per token, about
_IDENTITY = 2048  # own tokens per batch of the warm-up


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[_IGNORED] * (width - len(row))] for row in rows])


class ZettRecipe:
    """What `mintage.train` needs to train a hypernetwork.

    Minutes of training see few tokens, and a state says more than the next token: so the model's last states are drawn
    to those that it has after the same text in its own tokens, where both end at the same byte (`distil`).

    Parameters
    ----------
    net, lm
        What is trained, and the model, frozen.
    texts
        To read, and to sample tokenizers from, by kind; a tokenizer is made for one kind, and reads it.
    settings, seed
        Of what is drawn.
    """

    def __init__(
        self, net: Hypernetwork, lm: CausalLM, texts: Mapping[str, Sequence[str]], settings: ZettSettings, seed: int = 0
    ) -> None:
        self.module, self.lm, self.settings, self.seed = net, lm, settings, seed
        self.vocabulary = TokenBytes(lm.tokenizer)
        self.source = Parts(lm.model, self.vocabulary)
        drawn = {"largest": 2 * settings.size, "spread": settings.spread}
        self.samplers = [TokenizerSampler(self.vocabulary, some, **drawn) for some in texts.values()]
        self.texts = [list(some) for some in texts.values()]
        amount = np.sqrt([sum(map(len, some)) for some in self.texts])  # so that small kinds are read, too
        self.share = amount / amount.sum()
        self.biased = getattr(lm.model.get_output_embeddings(), "bias", None) is not None  # else it has no place
        self._own_model: Any = self.vocabulary.backend.model
        self._base: Any = first_blocks(lm.model, lm.model.config.num_hidden_layers)
        self._read = embeddings_of(self.source)
        self._norm = self.source.input.float().norm(dim=1).mean()
        self._own = [place for place, token in enumerate(self.vocabulary.tokens) if token]
        self._parts: dict[bytes, list[int]] = {}
        self._byte = {letter: byte for byte, letter in enumerate(self.samplers[0].letters)}

    def batch(self, index: int) -> dict[str, Tensor]:
        """Return own tokens, or a tokenizer's surface forms and texts in it."""
        draw = np.random.default_rng((self.seed, index))
        if index < self.settings.warmup:
            own = draw.choice(self._own, min(_IDENTITY, len(self._own)), replace=False)
            return {"own": torch.from_numpy(own)}
        kind = int(draw.choice(len(self.texts), p=self.share))
        sampler, texts = self.samplers[kind], self.texts[kind]
        names, tokenizer = sampler.draw(draw, int(self.settings.size * 2.0 ** draw.integers(-1, 2)))
        read, most = sampler.cut, self.settings.tokens
        words = [read(passage(texts, _CHARACTERS * most, draw)) for _ in range(self.settings.rows)]
        rows = [read_in_both(some, tokenizer, self._own_model, most) for some in words]
        tokens = [bytes(map(self._byte.__getitem__, name)) for name in names]
        parts = [self._cut(token) for token in tokens]
        aligned = [(row, *pair) for row, made in enumerate(rows) for pair in made.aligned]
        return {
            "surface": surface_forms(
                parts, self.module.shape.length, pad=self.module.pad, empty=self.module.shape.vocabulary
            ),
            "known": torch.tensor([self.vocabulary.ids.get(token, _IGNORED) for token in tokens]),
            "ids": _padded([made.ids for made in rows]),
            "original": _padded([made.original for made in rows]),
            "aligned": torch.tensor(aligned, dtype=torch.long).reshape(-1, 3),
            "bytes": torch.tensor(sum(made.bytes for made in rows)),
        }

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
            surface = surface_forms([[i] for i in own.tolist()], 1, pad=self.module.pad, empty=0)
            away = self._away(module(surface.to(own.device), self._read), own)
            return away, {"lexical": away.item()}
        made = module(batch["surface"], self._read)
        known = batch["known"] != _IGNORED
        away = self._away(Composed(made.input[known], made.output[known]), batch["known"][known])
        ids = batch["ids"]
        states = self._states(made.input[ids.clamp_min(0)][:, :-1])
        logits = states @ made.output.T + (made.bias if self.biased else 0)
        nats = functional.cross_entropy(logits.flatten(0, 1), ids.flatten(), ignore_index=_IGNORED, reduction="sum")
        per_byte = nats / batch["bytes"] / math.log(2)
        loss = per_byte + self.settings.lexical * away
        told = {"bits": per_byte.item(), "lexical": away.item()}
        if self.settings.distil:
            row, place, own = batch["aligned"].unbind(1)
            with torch.no_grad():
                wanted = self._states(self.source.input[batch["original"].clamp_min(0)].float())[row, own]
            apart = ((states[row, place] - wanted) ** 2).sum(-1) / (wanted**2).sum(-1)
            loss, told["states"] = loss + self.settings.distil * apart.mean(), apart.mean().item()
        return loss, told

    def _away(self, made: Composed, own: Tensor) -> Tensor:
        """Distance of rows to the model's own, over the mean norm of a row."""
        pairs = [(made.input, self.source.input), (made.output, self.source.output)][: 1 if self.source.tied else 2]
        return torch.stack([(row - old[own].float()).norm(dim=1).mean() for row, old in pairs]).mean() / self._norm

    def _states(self, given: Tensor) -> Tensor:
        """States of the model behind the opening token and behind all that is given, [texts, 1 + tokens, width]."""
        opening = self.lm.opening
        if opening is None:
            raise UserError(f"{self.lm.name} has no token that starts a text, so the first token cannot be predicted")
        start = self.source.input[opening].float().expand(len(given), 1, -1)
        return self._base(inputs_embeds=torch.cat([start, given], 1), use_cache=False).last_hidden_state.float()
