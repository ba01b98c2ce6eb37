"""Which models a policy can be attached to, and where their decoder is."""

from __future__ import annotations

from typing import Any

from mintage.errors import UserError

__all__ = ["check_served", "decoder_of", "unwrapped"]

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
    return model.get_decoder()


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
    if getattr(config, "num_kv_shared_layers", 0):
        raise UserError(f"{name} has layers that read the keys of others; a policy needs every layer's own")
    if not getattr(type(model), "_supports_attention_backend", False):
        raise UserError(
            f"{name} does not take attention functions from outside; known to work: Llama, Qwen2, Mistral, GPT-2"
        )
    if config._attn_implementation not in _SERVED:
        raise UserError(
            f"attn_implementation={config._attn_implementation!r} has masks of its own; "
            f"load {name} with one of: {', '.join(_SERVED)}"
        )
