"""A training as data: its fields are the options of ``mintage train NAME`` and the notes of the file it makes.

A subclass has `option` fields and one function, `Training.learn`, which reads what it learns from, trains stage by
stage (`Work.stage`: a `Recipe` and `Settings` through the one loop) and returns the artefact.

Not here: the loop (`mintage.train.loop`), what a stage learns (each method's recipes).
"""

from __future__ import annotations

import json
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from filelock import FileLock, Timeout

from mintage.errors import Notice, UserError
from mintage.files import check_writable, replace_file
from mintage.models import CausalLM, load_causal_lm
from mintage.options import DTYPES, Options, option, settings_of
from mintage.progress import Progress, silent
from mintage.train.loop import Trained, train
from mintage.train.recipe import Recipe, Settings

__all__ = ["LanguageModelTraining", "Saved", "Training", "Work", "is_first", "processes"]


@runtime_checkable
class Saved(Protocol):
    """What a training makes: something that writes itself to a file, with notes on how it was made."""

    def save(self, path: Path, notes: Mapping[str, str], /) -> None:
        """Write the file, whole or not at all; `notes` join its metadata."""
        ...


def processes() -> int:
    """Return how many processes were started together (``torchrun``) for one training."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """Whether this is the first of them: it alone writes and tells."""
    return os.environ.get("RANK", "0") == "0"


@dataclass
class Work:
    """Where a training lives while it runs, and how it says where it is.

    Parameters
    ----------
    folder
        Keeps checkpoints, logs, and what is prepared (answers, counts); a killed run goes on from it.
    device
        What the loop trains on.
    progress
        ``progress(stage, done, of)``.
    """

    folder: Path
    device: str = "cpu"
    progress: Progress = silent
    begun: bool = field(default=False, init=False)
    """Whether anything was trained."""

    def stage(self, name: str, recipe: Recipe, settings: Settings, *, unit: int = 1, of: str = "") -> Trained:
        """Train `recipe` in a folder of its own, from its checkpoint if there is one; a step is told as `unit` `of`."""
        step, self.begun = self.told(f"{name}, {of}" if of else name), True
        return train(
            recipe,
            self.folder / name,
            settings,
            device=self.device,
            on_step=lambda done, steps: step(unit * done, unit * steps),
        )

    def told(self, stage: str) -> Callable[[int, int], None]:
        """Return ``f(done, of)``, which reports a stage."""
        return lambda done, of: self.progress(stage, done, of)


@dataclass(frozen=True, kw_only=True)
class Training(Options, ABC):
    """What a method trains. The first line of a subclass's docstring is the first line of its command's help."""

    name: ClassVar[str]
    """Of the command, and of the default file."""

    suffix: ClassVar[str] = ".safetensors"
    """Of the default file."""

    examples: ClassVar[tuple[str, ...]] = ()
    """Commands for the help."""

    after: ClassVar[str] = ""
    """The command that comes next, for the help."""

    device: str = option("cpu", "cpu, cuda, ...")
    seed: int = option(0, "Of everything random.", least=0, below=2**63)

    @abstractmethod
    def learn(self, work: Work) -> Saved:
        """Read, train, and return what was made."""

    def summary(self, made: Any) -> str:
        """Say in one line how good it is, for whoever waited."""
        return ""

    def check_out(self, path: Path) -> None:
        """Refuse, before anything is learnt, a place that cannot be written to."""
        check_writable(path)

    def run(
        self,
        out: str | Path | None = None,
        work: str | Path | None = None,
        *,
        command: str = "",
        progress: Progress = silent,
    ) -> Any:
        """Train and write a file.

        Parameters
        ----------
        out
            File (or folder) to write; default NAME.safetensors (or what the training says) in the current folder.
        work
            Folder of the run, default ``.mintage/NAME``. A killed run goes on from there under the same settings.
        command
            What repeats it; a note of the file.
        progress
            ``progress(stage, done, of)``.

        Returns
        -------
        What was made.

        Raises
        ------
        UserError
            The file cannot be written, the folder holds a run with other settings, or another process trains in it.
        """
        path = Path(f"{self.name}{self.suffix}") if out is None else Path(out)
        folder = Path(".mintage") / self.name if work is None else Path(work)
        if not is_first():  # torchrun started several: the first one holds the folder, writes and tells
            return self.learn(Work(folder, self.device))
        self.check_out(path)
        settings = settings_of(self)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / "run.lock", timeout=0):
                is_new = _claim(folder / "settings.json", {"training": self.name, **settings})
                running = Work(folder, self.device, progress)
                try:
                    made = self.learn(running)
                except UserError:
                    if is_new and not running.begun:  # what cannot be learnt from does not hold the folder
                        (folder / "settings.json").unlink()
                    raise
                made.save(path, {"command": command, "settings": json.dumps(settings)})
        except Timeout:
            raise UserError(f"{folder} is in use by another training; wait for it, or pass another --work") from None
        return made


def _claim(path: Path, settings: dict[str, Any]) -> bool:
    """Bind the folder to this training and its settings, and return whether that is new; the device may change."""
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            before = None
        if not isinstance(before, dict):
            raise UserError(f"{path} is damaged; delete its folder to start the run again")
        for name in settings:
            if name != "device" and before.get(name) != settings[name]:
                raise UserError(
                    f"{path.parent} holds a run with {name}={before.get(name)!r}, not {settings[name]!r}; "
                    "pass another --work, or delete that folder"
                )
        return False
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return True


@dataclass(frozen=True, kw_only=True)
class LanguageModelTraining(Training, ABC):
    """A training for one causal language model."""

    model: str = option("smollm2", "smollm2 (embedded), a folder, or a hub id.")
    dtype: str = option("float32", DTYPES)

    def load(self) -> CausalLM:
        """Load the model."""
        return load_causal_lm(
            self.model,
            dtype=self.dtype,
            device=self.device,
            note=lambda line: warnings.warn(line, Notice, stacklevel=2),
        )
