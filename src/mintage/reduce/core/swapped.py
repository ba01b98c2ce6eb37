"""Methods that take the place of a model's own while a reducer is on it, each handing over to the attachment.

A module's class is swapped for a subclass with these; ``_reduction`` on the module says whom to ask. Copied or pickled
meanwhile, a module is what it was.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, partialmethod, wraps
from typing import Any

from torch import Tensor, nn

__all__ = [
    "SwitchedConfig",
    "layer_forward",
    "pool_forward",
    "swap",
    "timm_forward",
    "timm_intermediates",
    "timm_pool",
    "tower_forward",
]


def swap(module: nn.Module, held: Any, **methods: Any) -> list[Callable[[], None]]:
    """Put `methods` in the place of the module's own, which find `held` as ``_reduction``; return what undoes it."""
    before = type(module)
    own = {**methods, "__reduce_ex__": partialmethod(as_it_was, before), "__module__": before.__module__}
    module._reduction = held  # type: ignore[assignment]
    module.__class__ = type(before.__name__, (before,), own)
    return [lambda: delattr(module, "_reduction"), lambda: setattr(module, "__class__", before)]


class SwitchedConfig:
    """A configuration that names another attention; copied or pickled it is the one that it stands for."""

    def __init__(self, own: Any, name: str) -> None:
        self._own, self._attn_implementation = own, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def __reduce__(self) -> Any:
        return _itself, (self._own,)


def _itself(value: Any) -> Any:
    return value


def as_it_was(module: Any, before: type, protocol: int) -> Any:
    """Copy or pickle a module as the one that it was before a reducer came."""
    made: tuple[Any, ...] = super(type(module), module).__reduce_ex__(protocol)  # type: ignore[assignment]
    _, _, state, *others = made
    return _new, (before,), {k: v for k, v in state.items() if k != "_reduction"}, *others


def _new(kind: Any) -> Any:
    return kind.__new__(kind)


def layer_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run a block."""
    run, index = self._reduction
    return run.run_layer(self, index, x, args, kwargs)


def tower_forward(kind: Any) -> Any:
    """Make a transformer's forward, in the place of that of `kind`."""

    @wraps(kind.forward)  # some models look at the names of its arguments
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._reduction.run_tower(self, args, kwargs)

    return forward


def pool_forward(kind: Any) -> Any:
    """Make the forward of a module that pools by attention, in the place of that of `kind`."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        run, mask = self._reduction
        return run.run_pool(partial(kind.forward, self, x, *args, **kwargs), mask, args[0] if args else x)

    return forward


def timm_forward(self: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """Run timm's attention."""
    return self._reduction.attend_timm(self, x)


def timm_pool(self: Any, x: Tensor, pool_type: str | None = None) -> Tensor:
    """Pool timm's tokens."""
    return self._reduction.pool_timm(self, x, pool_type)


def timm_intermediates(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Run timm's transformer for what its layers give."""
    return self._reduction.intermediates_timm(self, args, kwargs)
