"""Which models a policy can be attached to, and where their decoder is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from mintage.errors import UserError

__all__ = ["check_served", "check_window", "decoder_of", "unwrapped", "windows_of"]

_SERVED = ("sdpa", "eager")
_KINDS = {"full_attention", "sliding_attention", "chunked_attention"}


def unwrapped(model: Any) -> Any:
    """Return the model inside `torch.compile`, PEFT or a data-parallel wrapper: a policy attaches to that."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif hasattr(model, "module") and not hasattr(model, "config"):
            model = model.module
        else:
            return model


def decoder_of(model: Any) -> Any:
    """Return the module that runs the layers: where a model has eyes as well, its text decoder."""
    found = model.get_decoder()
    return found if hasattr(found, "config") else model.base_model  # some have a projection of that name


def check_served(model: Any) -> None:
    """Refuse a model that no policy can serve.

    Raises
    ------
    UserError
        It names what the model lacks.
    """
    name = type(model).__name__
    if not hasattr(model, "config") or not hasattr(model, "set_attn_implementation"):
        raise UserError(f"{name} is no Hugging Face model; a policy attaches to a causal LM such as Llama")
    config = model.config.get_text_config(decoder=True)
    if model.config.is_encoder_decoder:
        raise UserError(f"{name} is an encoder-decoder; a policy needs a decoder-only model such as Llama")
    kinds = set(getattr(config, "layer_types", None) or ()) - _KINDS
    if kinds or getattr(model, "_is_stateful", False):
        listed = ", ".join(sorted(map(str, kinds))) or "recurrent"
        raise UserError(
            f"{name} has {listed} layers, which keep no plain keys and values; a policy needs full attention"
        )
    if getattr(config, "cross_attention_layers", None):
        raise UserError(f"{name} has layers that attend to an image's keys, which a policy does not keep")
    if getattr(config, "num_kv_shared_layers", 0):
        raise UserError(f"{name} has layers that read the keys of others; a policy needs every layer's own")
    if getattr(config, "n_recurrent_loops", 1) > 1:
        raise UserError(f"{name} runs its layers in loops, with keys of each; a policy needs one set of keys a layer")
    if not getattr(type(model), "_supports_attention_backend", False):
        raise UserError(
            f"{name} does not take attention functions from outside; known to work: Llama, Qwen2, Mistral, GPT-2"
        )
    if config._attn_implementation not in _SERVED:
        raise UserError(
            f"attn_implementation={config._attn_implementation!r} has masks of its own; "
            f"load {name} with one of: {', '.join(_SERVED)}"
        )


def windows_of(model: Any) -> list[int | None]:
    """Return how many tokens each layer's own cache holds of a model; None where it is all."""
    return [getattr(layer, "sliding_window", None) for layer in DynamicCache(config=model.config).layers]


def check_window(model: str, window: int, seen: int, mask: Tensor | None) -> None:
    """Refuse a layer that forgets by its own cache what its mask still shows: a policy goes by the mask."""
    if seen <= window:
        return
    if mask is not None:
        outside = mask[:, :, -1, : seen - window]
        if not (outside if outside.dtype == torch.bool else outside > torch.finfo(outside.dtype).min / 2).any():
            return
    raise UserError(
        f"{model} forgets all but {window} tokens by its cache, while its masks show them; texts of up to {window} "
        "tokens are served"
    )
