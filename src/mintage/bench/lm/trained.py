"""Models that studies compare: trained once per settings, seed and text, and kept in a folder.

A model in the folder is used as it is, whoever trained it and when: its notes say by which settings. Delete it to train
it again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mintage.lm.contract import ByteLanguageModel
from mintage.lm.core.folder import load_byte_lm
from mintage.lm.core.windows import Windows
from mintage.lm.training.byte_training import ByteTraining
from mintage.options import settings_of
from mintage.progress import Progress, silent
from mintage.train.training import Saved, Training, Work

__all__ = ["TrainedModel", "text_mark", "trained_folder", "trained_model"]


class TrainedModel(NamedTuple):
    """A trained model and how it was made."""

    model: ByteLanguageModel
    settings: dict[str, Any]


def text_mark(windows: Windows) -> str:
    """Return what changes with the text that is learnt from."""
    return hashlib.sha256(windows.train.tobytes() + windows.held_out.tobytes()).hexdigest()[:12]


def trained_model(
    training: ByteTraining, windows: Callable[[], Windows] | Windows, folder: Path, progress: Progress = silent
) -> TrainedModel:
    """Load a model, or train it; a killed training goes on.

    Parameters
    ----------
    training
        What to train.
    windows
        What it learns from.
    folder
        Where models are kept; each in a folder called by its training, seed, and a mark of settings and text.
    progress
        ``progress(stage, done, of)``.
    """
    text = windows() if callable(windows) else windows
    place, settings = trained_folder(training, text_mark(text), lambda work: training.fit(text, work), folder, progress)
    return TrainedModel(load_byte_lm(place, training.device), settings)


def trained_folder(
    training: Training, mark: str, fit: Callable[[Work], Saved], folder: Path, progress: Progress = silent
) -> tuple[Path, dict[str, Any]]:
    """Return where a trained model is, and how it was made; see `trained_model`.

    Parameters
    ----------
    mark
        Changes with what is learnt from.
    fit
        Trains.
    """
    settings = {name: value for name, value in settings_of(training).items() if name != "device"}
    said = json.dumps([training.name, settings, mark], sort_keys=True)
    place = folder / f"{training.name}-{training.seed}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
    if not place.exists():
        work = Work(
            place.with_name(f"{place.name}.run"),
            training.device,
            lambda stage, done, of: progress(f"{training.name}, seed {training.seed}: {stage}", done, of),
        )
        fit(work).save(place, {"settings": json.dumps(settings), "text": mark})
    return place, settings
