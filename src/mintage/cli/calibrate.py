"""``mintage calibrate``: find out, once per model, which channels of its keys decide its attention."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from mintage.cli.fields import Lazy, command_line, command_of, help_of
from mintage.cli.progress import shown_progress, told
from mintage.files import check_writable

__all__ = ["calibrate"]

_OUT = inspect.Parameter(
    "out",
    inspect.Parameter.KEYWORD_ONLY,
    default=Path("channels.safetensors"),
    annotation=Annotated[Path, typer.Option("--out", "-o", help="Safetensors file to write.")],
)


def _command() -> Any:
    from mintage.keep.training.channels import ChannelCalibration

    def run(made: ChannelCalibration, out: Path) -> None:
        check_writable(out)
        with shown_progress() as progress:
            order = made.run(progress=progress, note=told)
        order.save(out, {"command": command_line()})
        layers, rows, dim = order.score.shape
        typer.echo(f"{out}: {dim} channels of {rows} heads in {layers} layers, scored on {order.tokens} tokens")

    return command_of(ChannelCalibration, run, name="calibrate", extra=[_OUT], help=help_of(ChannelCalibration))


calibrate = Lazy("calibrate", "Calibrate double-sparsity for a model: score the channels of its keys.", _command, "Use")
