"""A compiled decoding step for the CPU: one fixed number of nodes, weights packed into the code, kept between runs.

PyTorch's ahead-of-time Inductor turns one forward over `nodes` tokens into a shared library with the weights folded in
("freezing"): no Python per layer, and matrix products on packed weights. Smaller trees are padded, which on a
memory-bound machine costs nothing; larger ones, batches and prompts take the ordinary way over the same cache.

Compiling takes a minute or so, once per model, node count, dtype, number of threads and version of torch; the package
(somewhat larger than the weights) is kept in mintage's cache, readable by its owner alone, and loads in about a second.
It holds its own copy of the weights in memory.

Not here: GPUs (their launch overhead is another problem, with CUDA graphs as its answer), training.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from filelock import FileLock
from jaxtyping import Float
from torch import Tensor, nn
from transformers import __version__ as transformers_version
from transformers.cache_utils import Cache, DynamicLayer

from mintage.draft.core.cache import TreeCache
from mintage.draft.core.target import Target
from mintage.draft.core.tree import TokenTree
from mintage.errors import UserError
from mintage.files import cache_dir, replace_file
from mintage.models import cache_argument

__all__ = ["NODES", "CompiledTarget", "step_path"]

NODES = 8
"""Default number of nodes, the root included."""

_FORMAT = 1
_SHORTEST, _LONGEST = 64, 1 << 20  # columns of a cache that the package takes

_steps: WeakKeyDictionary[Any, dict[tuple[Any, ...], Callable[..., Tensor]]] = WeakKeyDictionary()


class CompiledTarget(Target):
    """A target whose trees of up to `nodes` nodes are scored by a compiled step.

    Parameters
    ----------
    model
        See `Target`. Full attention in every layer, weights on the CPU.
    nodes
        The fixed number of nodes, the root included.

    Raises
    ------
    UserError
        Not on the CPU, sliding-window layers, no C++ compiler, or a model that Inductor cannot export.
    """

    def __init__(self, model: Any, nodes: int = NODES) -> None:
        super().__init__(model)
        if nodes < 1:
            raise UserError(f"compile={nodes}; pass the number of nodes of a step, at least 1, e.g. {NODES}")
        name = type(model).__name__
        if self.device.type != "cpu":
            raise UserError(f"compile= is for the CPU, and {name} lies on {self.device}; generate without it")
        if self.kinds != {"full_attention"} or self.eager:
            raise UserError(f"{name} has sliding or eager attention, which compile= cannot serve; generate without it")
        self.nodes = self.compiled = nodes
        self.step = _step(self)

    def new_cache(self, batch: int, capacity: int) -> TreeCache:
        """Allocate storage that a padded tree fits into."""
        return super().new_cache(batch, max(capacity + self.nodes, _SHORTEST))

    def score(self, trees: Sequence[TokenTree], cache: TreeCache) -> list[Float[Tensor, "nodes vocabulary"]]:
        """Score with the compiled step where it fits, else as `Target.score`."""
        tree = trees[0]
        layers: list[Any] = list(cache.layers)
        fits = len(trees) == 1 and len(tree) <= self.nodes and tree.embeddings is None
        if not fits or not layers[0].storage or layers[0].capacity < cache.width + self.nodes:
            return super().score(trees, cache)
        size, start = len(tree), cache.width
        keys, values = ([layer.storage[i] for layer in layers] for i in (0, 1))
        _, depth, lineage = tree.topology.on(self.device)
        tokens = torch.zeros(1, self.nodes, dtype=torch.long)
        tokens[0, :size] = tree.tokens
        positions = torch.full((1, self.nodes), start)
        positions[0, :size] += depth
        seen = torch.zeros(1, 1, self.nodes, keys[0].shape[2], dtype=torch.bool)
        seen[..., :start] = True
        seen[0, 0, :, start : start + self.nodes].fill_diagonal_(True)  # a padding node sees the past and itself
        seen[0, 0, :size, start : start + size] = lineage
        columns = torch.arange(start, start + self.nodes)
        logits = self.step(tokens, positions, seen, columns, keys, values)
        for layer in layers:  # as after an ordinary forward over the tree
            layer.end = start + size
        return [logits[0, :size]]


# -- the step ------------------------------------------------------------------------------------------------------


class _FixedLayer(DynamicLayer):
    """Writes new keys and values at given columns of a buffer, and shows all of it; the mask says what counts."""

    def __init__(self, keys: Tensor, values: Tensor, columns: Tensor) -> None:
        super().__init__()
        self.storage, self.columns = (keys, values), columns
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        keys, values = self.storage
        keys.index_copy_(2, self.columns, key_states)
        values.index_copy_(2, self.columns, value_states)
        return keys, values

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.storage[0].shape[2], 0


class _Step(nn.Module):
    """One forward over tokens whose keys and values go to given columns of the caches."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.cache_argument = model, cache_argument(model)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        seen: Tensor,
        columns: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> Tensor:
        layers: list[Any] = [_FixedLayer(k, v, columns) for k, v in zip(keys, values, strict=True)]
        return self.model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=seen,
            **{self.cache_argument: Cache(layers=layers)},
            use_cache=True,
        ).logits


def _step(target: CompiledTarget) -> Callable[..., Tensor]:
    """Return the compiled step, from this process, from the cache, or compiled now."""
    model = target.model
    key = (target.nodes, torch.get_num_threads(), *(p._version for p in model.parameters()))
    steps = _steps.setdefault(model, {})
    if key not in steps:
        path = step_path(target, target.nodes)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                _compile(target, path)
        steps[key] = _load(path)
    return steps[key]


def step_path(target: Target, nodes: int) -> Path:
    """Return where the package for this target and node count lies; all that it is made of goes into its name."""
    digest = hashlib.blake2b(digest_size=16)
    described = (
        _FORMAT,
        target.config.to_json_string(),
        str(target.dtype),
        nodes,
        torch.get_num_threads(),
        torch.__version__,
        transformers_version,
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        platform.python_version(),
    )
    digest.update(repr(described).encode())
    for name, weight in target.model.state_dict().items():  # they are part of the package
        digest.update(name.encode())
        digest.update(weight.detach().contiguous().view(torch.uint8).numpy().data)
    return cache_dir() / "compiled" / f"{digest.hexdigest()}.pt2"


def _compile(target: CompiledTarget, path: Path) -> None:
    from torch._inductor import aoti_compile_and_package
    from torch.export import Dim, export

    name = type(target.model).__name__
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UserError(f"compile= needs a C++ compiler, and {compiler!r} is not on PATH; install g++ or set CXX")
    example = _example(target)
    layers = target.config.num_hidden_layers
    columns = Dim("columns", min=_SHORTEST, max=_LONGEST)
    shapes: dict[str, Any] = dict.fromkeys(("tokens", "positions", "columns"))
    sized = {**shapes, "seen": {3: columns}, "keys": [{2: columns}] * layers, "values": [{2: columns}] * layers}
    try:
        with torch.no_grad(), _hushed(), replace_file(path) as temporary:
            exported = export(_Step(target.model), (), example, dynamic_shapes=sized, strict=False)
            written = aoti_compile_and_package(
                exported, package_path=str(temporary), inductor_configs={"freezing": True}
            )
            if Path(written) != temporary:  # Inductor insists on its own suffix
                Path(written).replace(temporary)
    except UserError:
        raise
    except Exception as error:  # export and Inductor have many
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{name} cannot be compiled ({reason}); generate without compile=") from error
    path.chmod(0o600)


def _example(target: CompiledTarget) -> dict[str, Any]:
    """Inputs of the right shapes; their values do not matter."""
    probe = target.new_cache(1, 2 * _SHORTEST)
    target.prefill(torch.zeros(1, 2, dtype=torch.long), [2], probe)
    layers: list[Any] = list(probe.layers)
    nodes, width = target.nodes, layers[0].capacity
    return {
        "tokens": torch.zeros(1, nodes, dtype=torch.long),
        "positions": torch.full((1, nodes), 2),
        "seen": torch.ones(1, 1, nodes, width, dtype=torch.bool),
        "columns": torch.arange(2, 2 + nodes),
        "keys": [layer.storage[0].clone() for layer in layers],
        "values": [layer.storage[1].clone() for layer in layers],
    }


def _load(path: Path) -> Callable[..., Tensor]:
    from torch._inductor import aoti_load_package

    if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
        raise UserError(f"{path} belongs to another user, and loading it would run their code; set MINTAGE_CACHE")
    try:
        with _hushed():
            package = aoti_load_package(str(path))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{path} is damaged ({reason}); delete it to compile again") from None

    def step(tokens: Tensor, positions: Tensor, seen: Tensor, columns: Tensor, keys: Any, values: Any) -> Tensor:
        return package(tokens=tokens, positions=positions, seen=seen, columns=columns, keys=keys, values=values)

    return step


@contextmanager
def _hushed() -> Any:
    """Keep Inductor's notes on its own inner workings off the screen."""
    loggers = [logging.getLogger(name) for name in ("torch._inductor", "torch.export", "torch._export")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
