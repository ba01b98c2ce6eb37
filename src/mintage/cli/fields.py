"""Commands from dataclasses: the fields of a study or a training become options, loaded when a command runs."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from mintage.errors import UserError
from mintage.options import alternatives

__all__ = ["Lazy", "LazyGroup", "command_line", "command_of", "made_from", "parameters_of"]


def command_line() -> str:
    """Return the command as it was given: what repeats it."""
    return "mintage " + " ".join(f'"{word}"' if " " in word else word for word in sys.argv[1:])


def parameters_of(kind: type) -> list[inspect.Parameter]:
    """Make a keyword-only parameter of every field: its type, default and help as `typer` reads them."""
    hints = typing.get_type_hints(kind)
    return [_parameter(field, hints[field.name]) for field in dataclasses.fields(kind) if field.init]


def _parameter(field: dataclasses.Field[Any], kind: Any) -> inspect.Parameter:
    required = field.default is dataclasses.MISSING
    default: Any = inspect.Parameter.empty if required else field.default
    told: dict[str, Any] = {"help": f"{field.metadata.get('help', '')}{_limits(field)}"}
    parts = [part for part in alternatives(kind) if part is not type(None)]
    if all(typing.get_origin(part) is Literal for part in parts):
        annotation: Any = Literal[tuple(choice for part in parts for choice in typing.get_args(part))]
    elif len(parts) == 1 and parts[0] in (bool, int, float, str, Path):
        annotation = parts[0]
    else:  # several numbers, or a number or a word
        annotation = str
        if not required and default is not None:
            default = ",".join(map(str, default)) if _many(default) else str(default)
    if type(None) in alternatives(kind):
        annotation = annotation | None
    if field.metadata.get("argument") or field.metadata.get("repeat"):
        default, annotation = default if required else list(default), list[str]
    if field.metadata.get("argument"):
        info: Any = typer.Argument(**told)
    else:
        flags = (f"--{_dashed(field.name)}", field.metadata["short"]) if field.metadata.get("short") else ()
        info = typer.Option(*flags, **told)
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, info]
    )


def _limits(field: dataclasses.Field[Any]) -> str:
    limits = field.metadata.get("range")
    return "" if limits is None else f" {str(limits).capitalize()}."


def _many(value: Any) -> bool:
    return isinstance(value, list | tuple)


def made_from(kind: type, values: dict[str, Any]) -> Any:
    """Make a dataclass from the values of its command's options.

    Raises
    ------
    UserError
        A value cannot be read, or is out of range.
    """
    hints = typing.get_type_hints(kind)
    return kind(**{name: _read(name, value, hints[name]) for name, value in values.items()})


def _read(name: str, value: Any, kind: Any) -> Any:
    """Read what came as text: lists with commas, and unions as the first member that fits."""
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, str) or kind is str:
        return value
    parts = alternatives(kind)
    for part in parts:
        if typing.get_origin(part) is tuple:
            inner = typing.get_args(part)
            items = [item.strip() for item in value.split(",") if item.strip()]
            kinds = [inner[0]] * len(items) if len(inner) == 2 and inner[1] is Ellipsis else list(inner)
            if len(kinds) != len(items):
                raise UserError(f"--{_dashed(name)} {value!r} holds {len(items)} values; pass {len(kinds)}")
            return tuple(_read(name, item, one) for item, one in zip(items, kinds, strict=True))
        if typing.get_origin(part) is Literal:
            for choice in typing.get_args(part):
                if str(choice) == value:
                    return choice
        elif part in (int, float):
            try:
                return part(value)
            except ValueError:
                continue
        elif part in (str, Path):
            return part(value)
    return value if len(parts) > 1 else _refuse(name, value, kind)


def _refuse(name: str, value: str, kind: Any) -> Any:
    raise UserError(f"--{_dashed(name)} {value!r} is not {'a whole number' if kind is int else 'a number'}")


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def command_of(
    kind: type,
    run: Callable[..., None],
    *,
    name: str,
    extra: Sequence[inspect.Parameter] = (),
    arguments: Sequence[inspect.Parameter] = (),
    help: str = "",
) -> Any:
    """Make a command: the fields of `kind` and `extra` parameters as options.

    Parameters
    ----------
    kind
        The dataclass.
    run
        ``run(made, **values of the extra parameters)``.
    name
        Of the command.
    extra, arguments
        More parameters, annotated for `typer`; those of `arguments` come first.
    help
        Default: the docstring of `kind`.
    """
    own = parameters_of(kind)

    def call(**values: Any) -> None:
        fields = {parameter.name: values.pop(parameter.name) for parameter in own}
        run(made_from(kind, fields), **values)

    call.__signature__ = inspect.Signature([*arguments, *extra, *own])  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in [*arguments, *extra, *own]}
    app = typer.Typer(rich_markup_mode="rich", add_completion=False)
    app.command(name, help=_paragraphs(help or inspect.cleandoc(kind.__doc__ or "")))(call)
    return typer.main.get_command(app)


def _paragraphs(text: str) -> str:
    """Make a line of every paragraph, for a terminal of any width; what is indented stays as it is."""
    parts = re.split(r"\n\s*\n", text.strip("\n"))
    return "\n\n".join(part if part.startswith(" ") else " ".join(part.split("\n")) for part in parts)


class Lazy(TyperCommand):
    """A command whose real form is loaded when it is run or asked for its help."""

    def __init__(self, name: str, summary: str, load: Callable[[], Any], panel: str | None = None) -> None:
        super().__init__(name, help=summary, callback=lambda: None, rich_help_panel=panel)
        self._load = load

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Load the command and let it read `args`."""
        return self._load().make_context(info_name, args, parent, **extra)


class LazyGroup(TyperGroup):
    """A group whose commands are found by name, without importing what they run. Subclasses say which there are."""

    def names(self) -> Sequence[str]:
        """Return the names in order."""
        return ()

    def found(self, name: str) -> Any:
        """Return the command called `name`."""
        return None

    def list_commands(self, ctx: Any) -> list[str]:
        """Make it findable by the parser."""
        return [*super().list_commands(ctx), *self.names()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Make it findable by the parser."""
        return super().get_command(ctx, cmd_name) or self.found(cmd_name)
