"""Find the transformers model inside what wraps it, and say what of a model keeps drafting from being exact.

A wrapper is taken off where the model inside computes the same: `torch.compile`, adapters whose layers stand in the
model (PEFT's LoRA kinds), data parallelism. Everything else is refused by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from mintage.errors import UserError

__all__ = ["forward_arguments", "long_rotation", "unwrapped"]


def unwrapped(model: Any) -> Any:
    """Return the model to draft for.

    Raises
    ------
    UserError
        It is no transformers model, or it is one whose forwards over several tokens are not those over one: learned
        prompts outside the model, dynamic quantisation.
    """
    name = type(model).__name__
    if hasattr(model, "_orig_mod"):  # torch.compile
        return unwrapped(model._orig_mod)
    if hasattr(model, "get_base_model") and hasattr(model, "peft_config"):
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise UserError(f"{name} puts learned prompts before its model, which drafting would leave out; merge them")
        return unwrapped(model.get_base_model())  # its layers hold the adapters
    if isinstance(model, torch.nn.parallel.DataParallel | torch.nn.parallel.DistributedDataParallel):
        return unwrapped(model.module)
    if not hasattr(model, "config") or not hasattr(model, "generation_config") or not hasattr(model, "generate"):
        inside = [key for key, part in getattr(model, "_modules", {}).items() if hasattr(part, "generation_config")]
        at = f", e.g. its .{inside[0]}" if inside else ""
        raise UserError(f"{name} is no transformers model that generates; pass the model inside it{at}")
    if any(type(module).__module__.startswith(_DYNAMIC) for module in model.modules()):
        raise UserError(
            f"{name} has dynamically quantised layers, which round each token by the others in its forward, so that no "
            "draft equals plain decoding; generate without a drafter, or load it unquantised"
        )
    return model


_DYNAMIC = ("torch.ao.nn.quantized.dynamic", "torch.nn.quantized.dynamic", "torch.ao.nn.intrinsic.quantized.dynamic")


def forward_arguments(model: Any) -> Mapping[str, inspect.Parameter]:
    """Return what the model's forward takes; one that hands on ``*args, **kwargs`` takes what its parent class does."""
    for forward in (model.forward, *(vars(kind)["forward"] for kind in type(model).__mro__ if "forward" in vars(kind))):
        parameters = inspect.signature(forward).parameters
        if {"input_ids", "inputs_embeds"} & parameters.keys():
            return parameters
    return {}


def long_rotation(config: Any) -> int:
    """Return how many tokens are rotated by the short factors of a longrope model; 0 for any other.

    A forward with a position beyond takes the long factors for all its tokens.
    """
    settings = getattr(config, "rope_parameters", None) or {}
    kinds = [kind for kind in (settings, *settings.values()) if isinstance(kind, Mapping)]
    return min((k["original_max_position_embeddings"] for k in kinds if k.get("rope_type") == "longrope"), default=0)
