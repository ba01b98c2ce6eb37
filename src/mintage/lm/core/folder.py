"""Folders of trained byte language models."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from mintage import catalog
from mintage.errors import UserError
from mintage.files import parse_json
from mintage.lm.contract import ByteLanguageModel
from mintage.models import fetched
from mintage.weights import shipped

__all__ = ["SHIPPED", "is_byte_lm", "load_byte_lm"]

SHIPPED = "mintage/bytes-en"
"""The model that comes with the package; English."""

_OURS = "mintage-"  # how the model types of this job begin


def is_byte_lm(folder: str | Path) -> bool:
    """Whether a folder holds a model of this job; its weights are not looked at."""
    path = _place(folder) / "config.json"
    if not path.is_file():
        return False
    held = parse_json(path.read_text(encoding="utf-8"), str(path), "get it again")
    return isinstance(held, dict) and str(held.get("model_type", "")).startswith(_OURS)


def _place(folder: str | Path) -> Path:
    return shipped("lm", SHIPPED.partition("/")[2], "") if str(folder) == SHIPPED else Path(folder)


def load_byte_lm(folder: str | Path, device: str = "cpu") -> ByteLanguageModel:
    """Load what a training of this job, or `ByteLanguageModel.save`, wrote, or `SHIPPED`; in `eval` mode, float32.

    Raises
    ------
    UserError
        There is none, it is damaged, or of a model that is not known here.
    """
    if not is_byte_lm(folder):
        raise UserError(f"{folder} holds no byte language model; make one, e.g. with mintage train hat -o {folder}")
    for row in catalog.methods("lm"):
        if row.status == "ready":
            row.load()  # makes the Auto classes know it
    model = fetched(AutoModelForCausalLM, _place(folder), "models of mintage lm are folders")
    if not isinstance(model, ByteLanguageModel):
        raise UserError(f"{folder} is a {type(model).__name__}, which does not write text byte by byte")
    placed: ByteLanguageModel = model.to(torch.device(device))  # pyright: ignore[reportArgumentType] # of a decorated method
    return placed.eval()
