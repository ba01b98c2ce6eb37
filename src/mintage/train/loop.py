"""The one training loop: AdamW or Muon, cosine with warm-up, accumulation, clipping; survives kills, repeats exactly.

A method brings a `Recipe`: what is trained, the batch of any index, and the loss of a batch. Because a batch is a
function of its index, and every micro-step seeds the generators from the run's seed and its own index, a resumed run
takes exactly the steps that the uninterrupted one would have taken.

A run lives in a folder: ``checkpoint.safetensors`` (weights, optimiser state, average; the state of the run as JSON in
its metadata, so that one rename replaces all of it at once) and ``log.jsonl`` (one row per logged step).

Not here: data loading, evaluation, early stopping, a learning rate per optimiser, sharded models; processes started by
``accelerate launch`` train one replica each (data parallel).
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from mintage.errors import UserError, missing_extra
from mintage.files import append_line
from mintage.train.checkpoint import read_checkpoint, trim_log, write_checkpoint
from mintage.train.recipe import Recipe, Settings

__all__ = ["Trained", "train"]

CHECKPOINT, LOG = "checkpoint.safetensors", "log.jsonl"
_STATE = {"adam": ("exp_avg", "exp_avg_sq"), "muon": ("momentum_buffer",)}  # what an optimiser keeps per parameter
_FREE = {"save_every", "log_every"}  # settings that a resumed run may change


@dataclass(frozen=True)
class Trained:
    """Outcome of a run: steps taken in all and in this call, seconds over all calls, and the last logged row."""

    steps: int
    new_steps: int
    seconds: float
    last: dict[str, Any]


def train(
    recipe: Recipe,
    folder: str | Path,
    settings: Settings,
    *,
    device: str | None = None,
    progress: bool = False,
    on_step: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train ``recipe.module`` in place, from the checkpoint in `folder` if there is one.

    Parameters
    ----------
    recipe
        What to train.
    folder
        Where the run lives.
    settings
        How to train. A run resumes only under the settings it was started with.
    device
        ``"cpu"`` keeps off an accelerator; by default accelerate chooses.
    progress
        Draw a progress bar.
    on_step
        Called as ``on_step(steps done, steps)`` after every step.

    Raises
    ------
    UserError
        Accelerate is missing, the checkpoint is damaged or of another run, nothing is trainable, or the loss is not
        finite.
    """
    try:
        from accelerate import Accelerator
    except ModuleNotFoundError:
        raise missing_extra("accelerate", "train") from None
    accelerator = Accelerator(cpu=True) if device == "cpu" else Accelerator()
    run = _Run(recipe, Path(folder), settings, accelerator)
    run.restore()
    first, began = run.step, time.perf_counter() - run.seconds
    with _bar(settings.steps, run.step, progress and accelerator.is_main_process) as advance:
        while run.step < settings.steps:
            run.take_step()
            run.seconds = time.perf_counter() - began
            last = run.step == settings.steps
            if last or run.step % settings.log_every == 0:
                run.write_log()
            if last or run.step % settings.save_every == 0:
                run.save()
            advance()
            if on_step is not None:
                on_step(run.step, settings.steps)
    for name, tensor in run.averages.items():
        run.averaged[name].data.copy_(tensor)
    return Trained(run.step, run.step - first, run.seconds, run.last)


class _Run:
    """The state of one run: all that a checkpoint holds, and the step that advances it."""

    def __init__(self, recipe: Recipe, folder: Path, settings: Settings, accelerator: Any) -> None:
        self.recipe, self.settings, self.accelerator = recipe, settings, accelerator
        self.path, self.log = folder / CHECKPOINT, folder / LOG
        if not any(p.requires_grad for p in recipe.module.parameters()):
            raise UserError(f"{type(recipe.module).__name__} has no trainable parameters; nothing to train")
        self.optimisers = _optimisers(recipe.module, settings)
        self.wrapped, *self.stepping = accelerator.prepare(recipe.module, *self.optimisers)
        self.weights = {name: p for name, p in recipe.module.named_parameters() if p.requires_grad}
        floating = {name: b for name, b in recipe.module.named_buffers() if b.is_floating_point()}
        self.averaged = self.weights | floating if settings.ema else {}
        self.averages = {name: t.detach().clone() for name, t in self.averaged.items()}
        self.step, self.seconds = 0, 0.0
        self.last: dict[str, Any] = {}
        self.sums: dict[str, float] = {}  # of loss and metrics since the last log row

    def take_step(self) -> None:
        from accelerate.utils import send_to_device, set_seed

        settings, accelerator = self.settings, self.accelerator
        self.recipe.module.train()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = settings.lr_at(self.step)
        for part in range(settings.accumulate):
            last = part == settings.accumulate - 1
            index = (self.step * settings.accumulate + part) * accelerator.num_processes + accelerator.process_index
            set_seed((settings.seed * 1_000_003 + index) % 2**32)
            batch = send_to_device(self.recipe.batch(index), accelerator.device)
            with nullcontext() if last else accelerator.no_sync(self.wrapped):
                with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=settings.bf16):
                    loss, metrics = self.recipe.loss(self.wrapped, batch)
                accelerator.backward(loss / settings.accumulate)
            if not math.isfinite(loss.item()):
                raise UserError(f"the loss is {loss.item()} at step {self.step + 1}; lower lr={settings.lr}")
            for name, value in {"loss": loss.item(), **metrics}.items():
                self.sums[name] = self.sums.get(name, 0.0) + value / settings.accumulate
        if settings.clip:
            accelerator.clip_grad_norm_(self.wrapped.parameters(), settings.clip)
        for optimiser in self.stepping:
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        for name, average in self.averages.items():
            average.lerp_(self.averaged[name].detach(), 1 - settings.ema)

    def write_log(self) -> None:
        """Append one row: means since the last one."""
        count = self.step - self.last.get("step", 0)
        self.last = {"step": self.step, **{name: total / count for name, total in self.sums.items()}}
        self.last |= {"lr": self.settings.lr_at(self.step - 1), "seconds": round(self.seconds, 3)}
        self.sums = {}
        if self.accelerator.is_main_process:
            append_line(self.log, json.dumps(self.last))

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors of a checkpoint by name; tensors that the module ties together stand once."""
        found = {f"weights.{name}": p for name, p in self.recipe.module.named_parameters()}
        found |= {f"weights.{name}": b for name, b in self.recipe.module.named_buffers()}
        found |= {f"average.{name}": t for name, t in self.averages.items()}
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.weights.items()}
        for optimiser in self.optimisers:
            for parameter, held in optimiser.state.items():
                found |= {f"{_name(optimiser)}.{key}.{names[parameter]}": t for key, t in held.items()}
        return {name: t.detach() for name, t in found.items()}

    def save(self) -> None:
        """Replace the checkpoint in one rename."""
        if not self.accelerator.is_main_process:
            return
        state = {n: getattr(self, n) for n in ("step", "seconds", "last", "sums")}
        state["settings"] = dataclasses.asdict(self.settings)
        write_checkpoint(self.path, self._tensors(), state)

    def restore(self) -> None:
        """Read the checkpoint if there is one, and drop log rows that are newer than it."""
        state: dict[str, Any] = {"step": 0}
        if self.path.exists():
            state, tensors = read_checkpoint(self.path)
            mine = json.loads(json.dumps(dataclasses.asdict(self.settings)))
            for name, value in mine.items():
                if name not in _FREE and state["settings"].get(name) != value:
                    was = state["settings"].get(name)
                    raise UserError(f"{self.path} was trained with {name}={was}, not {value}; use another folder")
            for optimiser in self.optimisers:  # what its first step would make
                for parameter in (p for group in optimiser.param_groups for p in group["params"]):
                    held = {key: torch.zeros_like(parameter) for key in _STATE[_name(optimiser)]}
                    if _name(optimiser) == "adam":
                        held["step"] = torch.zeros((), dtype=torch.float32)
                    optimiser.state[parameter] = held
            own = self._tensors()
            if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in tensors.items()}:
                raise UserError(f"{self.path} holds other weights than this {type(self.recipe.module).__name__}")
            for name, tensor in own.items():
                tensor.copy_(tensors[name])
            for name in ("step", "seconds", "last", "sums"):
                setattr(self, name, state[name])
        if self.log.exists() and self.accelerator.is_main_process:
            trim_log(self.log, state["step"])


def _optimisers(module: nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """Make the optimisers; every trainable parameter belongs to one of them."""
    trained = [p for p in module.parameters() if p.requires_grad]
    blocks = [block for block in module.modules() if isinstance(block, nn.ModuleList)]
    linear = [m.weight for block in blocks for m in block.modules() if isinstance(m, nn.Linear)]
    turned = {p: None for p in linear if p.requires_grad and settings.optimiser == "muon"}
    rest = [p for p in trained if p not in turned]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    made: list[torch.optim.Optimizer] = []
    if groups := [g for g in groups if g["params"]]:
        made.append(torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas))
    if turned:
        if not hasattr(torch.optim, "Muon"):
            raise UserError(f"torch {torch.__version__} has no Muon; install torch 2.9 or later, or use adamw")
        # the scale makes its steps as large as AdamW's, so that one learning rate serves both (Liu et al. 2025)
        made.append(
            torch.optim.Muon(
                list(turned), lr=settings.lr, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return made


def _name(optimiser: torch.optim.Optimizer) -> str:
    return "adam" if isinstance(optimiser, torch.optim.AdamW) else "muon"


@contextmanager
def _bar(steps: int, done: int, shown: bool) -> Iterator[Callable[[], None]]:
    """Yield what advances the progress bar by a step."""
    if not shown:
        yield lambda: None
        return
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("training", total=steps, completed=done)
        yield lambda: bar.advance(task)
