"""Weights of word-pool as its authors' code names them (eTok, a fork of minGPT)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mintage.errors import UserError
from mintage.lm.word_pool import WordPool, WordPoolConfig

__all__ = ["from_etok"]


def from_etok(weights: Mapping[str, Tensor], *, heads: int, vectors: int, most: int) -> WordPool:
    """Make a word-pool model of the authors' weights; what they lack (the end of a word, the start) is zero.

    Parameters
    ----------
    weights
        ``in_emb.*``, ``in_pe``, ``word_pe``, ``wordenc.*``, ``blocks.*``, ``decoder_blocks.*``, ``ln_f.*``, ``head.*``;
        units are bytes, as far as the table goes. Ids of CLS are `most` and on, as in their code.
    heads
        Of attention.
    vectors, most
        Vectors and units of a word.

    Raises
    ------
    UserError
        A weight is missing.
    """
    try:
        return _filled({name: value.float() for name, value in weights.items()}, heads, vectors, most)
    except KeyError as error:
        raise UserError(f"the weights of eTok lack {error}; pass all of a checkpoint's") from None


def _filled(w: Mapping[str, Tensor], heads: int, vectors: int, most: int) -> WordPool:
    width = w["in_emb.weight"].shape[1]
    config = WordPoolConfig(
        width=width,
        heads=heads,
        vectors=vectors,
        pool_layers=_count(w, "wordenc.layers"),
        layers=_count(w, "blocks"),
        spell_layers=_count(w, "decoder_blocks"),
        feed_forward=w["wordenc.layers.0.linear1.weight"].shape[0],
        most_words=w["word_pe"].shape[1] // vectors,
        most=most,
        positions_twice=True,
    )
    state = {name: torch.zeros_like(value) for name, value in WordPool(config).state_dict().items()}
    units = min(len(w["in_emb.weight"]) - vectors, 256)
    state["units.weight"][:units] = w["in_emb.weight"][:units]
    state["marks.weight"][:] = w["in_emb.weight"][most : most + vectors]
    state["places.weight"][:] = state["speller.wpe.weight"][:] = w["in_pe"][0]
    state["backbone.wpe.weight"][:] = w["word_pe"][0]
    state["head.weight"][:units] = w["head.weight"][:units]
    for part in ("weight", "bias"):
        state[f"backbone.ln_f.{part}"][:] = w[f"ln_f.{part}"]
        for number in range(config.pool_layers):
            _pool_block(state, w, number, part)
        for theirs, mine in (("blocks", "backbone"), ("decoder_blocks", "speller")):
            for number in range(_count(w, theirs)):
                _gpt_block(state, w, f"{theirs}.{number}", f"{mine}.h.{number}", part)
    model = WordPool(config)
    model.load_state_dict(state)
    return model.eval()


def _count(w: Mapping[str, Tensor], stem: str) -> int:
    return len({name.removeprefix(f"{stem}.").partition(".")[0] for name in w if name.startswith(f"{stem}.")})


def _pool_block(state: dict[str, Tensor], w: Mapping[str, Tensor], number: int, part: str) -> None:
    theirs, mine = f"wordenc.layers.{number}", f"pooler.layer.{number}"
    for name, value in zip(("query", "key", "value"), w[f"{theirs}.self_attn.in_proj_{part}"].chunk(3), strict=True):
        state[f"{mine}.attention.self.{name}.{part}"][:] = value
    for name, other in (
        ("attention.output.dense", "self_attn.out_proj"),
        ("attention.output.LayerNorm", "norm1"),
        ("intermediate.dense", "linear1"),
        ("output.dense", "linear2"),
        ("output.LayerNorm", "norm2"),
    ):
        state[f"{mine}.{name}.{part}"][:] = w[f"{theirs}.{other}.{part}"]


def _gpt_block(state: dict[str, Tensor], w: Mapping[str, Tensor], theirs: str, mine: str, part: str) -> None:
    turned = {"weight": lambda t: t.T, "bias": lambda t: t}[part]  # GPT-2 keeps its matrices turned
    joined = torch.cat([w[f"{theirs}.attn.{name}.{part}"] for name in ("query", "key", "value")])
    state[f"{mine}.attn.c_attn.{part}"][:] = turned(joined)
    for name, other in (("attn.c_proj", "attn.proj"), ("mlp.c_fc", "mlp.0"), ("mlp.c_proj", "mlp.2")):
        state[f"{mine}.{name}.{part}"][:] = turned(w[f"{theirs}.{other}.{part}"])
    for name, other in (("ln_1", "ln1"), ("ln_2", "ln2")):
        state[f"{mine}.{name}.{part}"][:] = w[f"{theirs}.{other}.{part}"]
