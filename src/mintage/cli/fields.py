"""Commands from dataclasses: the fields of a study or a training become options, loaded when a command runs."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from mintage.errors import UserError, did_you_mean
from mintage.options import alternatives

__all__ = [
    "Lazy",
    "LazyGroup",
    "callback_of",
    "command_line",
    "command_of",
    "help_of",
    "made_from",
    "parameters_of",
]


def command_line() -> str:
    """Return the command as it was given: what repeats it."""
    return shlex.join(["mintage", *sys.argv[1:]])


def parameters_of(kind: type) -> list[inspect.Parameter]:
    """Make a keyword-only parameter of every field that text can fill: type, default and help as `typer` reads them."""
    hints = typing.get_type_hints(kind)
    fields = [field for field in dataclasses.fields(kind) if field.init and _can_be_read(hints[field.name])]
    return [_parameter(field, hints[field.name]) for field in fields]


def _can_be_read(kind: Any) -> bool:
    return any(
        part in (bool, int, float, str, Path) or typing.get_origin(part) in (Literal, tuple)
        for part in alternatives(kind)
    )


def _parameter(field: dataclasses.Field[Any], kind: Any) -> inspect.Parameter:
    required = field.default is dataclasses.MISSING
    default: Any = inspect.Parameter.empty if required else typing.cast(Any, field.default)
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
        default, annotation = default if required else list(default or ()), list[str]
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
    """Read what came as text: choices as they are, lists with commas, else the first member of a union that fits."""
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, str) or kind is str:
        return value
    parts = alternatives(kind)
    choices = [c for part in parts if typing.get_origin(part) is Literal for c in typing.get_args(part)]
    for choice in choices:
        if str(choice) == value:
            return choice
    for part in parts:
        if typing.get_origin(part) is tuple:
            return _read_several(name, value, typing.get_args(part))
        if part in (int, float):
            try:
                return part(value)
            except ValueError:
                continue
        if part in (str, Path):
            return part(value)
    if choices or len(parts) > 1:
        return value  # refused where the fields are checked, which knows what it may be
    raise UserError(f"--{_dashed(name)} {value!r} is not {'a whole number' if kind is int else 'a number'}")


def _read_several(name: str, value: str, kinds: Sequence[Any]) -> tuple[Any, ...]:
    items = [item.strip() for item in value.split(",") if item.strip()]
    wanted = [kinds[0]] * len(items) if tuple(kinds[1:]) == (Ellipsis,) else list(kinds)
    if len(wanted) != len(items):
        raise UserError(f"--{_dashed(name)} {value!r} holds {len(items)} values; pass {len(wanted)}")
    return tuple(_read(name, item, kind) for item, kind in zip(items, wanted, strict=True))


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
    objects: Callable[[dict[str, Any]], dict[str, Any]] = lambda values: {},
) -> Any:
    """Make a command by itself, as lazy groups need it: `callback_of` under a name, with its help."""
    app = typer.Typer(rich_markup_mode="rich", add_completion=False)
    made = callback_of(kind, run, extra=extra, arguments=arguments, objects=objects)
    app.command(name, help=help_of(kind, help))(made)
    return typer.main.get_command(app)


def callback_of(
    kind: type,
    run: Callable[..., None],
    *,
    extra: Sequence[inspect.Parameter] = (),
    arguments: Sequence[inspect.Parameter] = (),
    objects: Callable[[dict[str, Any]], dict[str, Any]] = lambda values: {},
) -> Callable[..., None]:
    """Make the function behind a command: the fields of `kind` and `extra` parameters as options.

    Parameters
    ----------
    kind
        The dataclass.
    run
        ``run(made, **values of the extra parameters)``.
    extra, arguments
        More parameters, annotated for `typer`; those of `arguments` come first.
    objects
        Takes values of more parameters out, and returns the fields that are made of them: what no option can hold.
    """
    own = parameters_of(kind)

    def call(**values: Any) -> None:
        fields = {parameter.name: values.pop(parameter.name) for parameter in own}
        run(made_from(kind, fields | objects(values)), **values)

    call.__signature__ = inspect.Signature([*arguments, *extra, *own])  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in [*arguments, *extra, *own]}
    return call


def help_of(kind: type, text: str = "") -> str:
    """Return a help, by default the docstring of `kind`, a line per paragraph, for a terminal of any width.

    What is indented stays as it is.
    """
    text = text or inspect.cleandoc(kind.__doc__ or "")
    parts = re.split(r"\n\s*\n", text.strip("\n"))
    return "\n\n".join(part if part.startswith(" ") else " ".join(part.split("\n")) for part in parts)


class Lazy(TyperCommand):
    """A command whose real form is loaded when it is run or asked for its help."""

    def __init__(self, name: str, summary: str, load: Callable[[], Any], panel: str | None = None) -> None:
        super().__init__(name, help=summary, callback=lambda: None, rich_help_panel=panel)
        self.load = load

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Load the command and let it read `args`."""
        return self.load().make_context(info_name, args, parent, **extra)


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

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command of a line; an unknown one is told with the nearest name."""
        asked = bool(args) and not args[0].startswith("-") and not ctx.resilient_parsing
        if asked and self.get_command(ctx, args[0]) is None:
            known = self.list_commands(ctx)
            raise UserError(f"{ctx.command_path} has no {args[0]!r}; {did_you_mean(args[0], known)}")
        return super().resolve_command(ctx, args)
