"""What exists: one record per method, found without importing torch.

The rows stand literally at the front doors of the jobs (``mintage/<job>/__init__.py``). Packages outside mintage add
theirs through the entry-point group ``mintage.methods``::

    [project.entry-points."mintage.methods"]
    my-drafter = "my_tokens:ROW"        # a mintage.catalog.Method

Not here: what a method does. A `Method` only says where its class is; `Method.load` imports it.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

from mintage.errors import Notice, UserError, did_you_mean

__all__ = [
    "JOBS",
    "Method",
    "Trains",
    "benches",
    "build",
    "find",
    "hyperparameters",
    "job_summary",
    "lazy_attributes",
    "load_training",
    "made",
    "methods",
    "parse_spec",
    "resolve",
    "trainings",
]

JOBS = ("draft", "keep", "reduce", "segment", "retrofit", "lm", "codec", "embed", "perceive", "audit")
"""The ten jobs, each a package of mintage and a contract."""

ENTRY_POINTS = "mintage.methods"

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

Role = Literal["paper", "baseline", "combinator"]


class Trains(NamedTuple):
    """Something that can be trained: a command of ``mintage train``.

    Parameters
    ----------
    name
        Of the command, e.g. ``"sit-slim"``.
    entry
        ``"module:Class"``, a `mintage.train.Training`.
    summary
        One line for the list of trainings.
    """

    name: str
    entry: str
    summary: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the catalogue.

    Parameters
    ----------
    name
        Slug, unique over all jobs, e.g. ``"token-recycling"``.
    job
        One of `JOBS`.
    title
        The paper's title, or what a baseline is called in the field.
    entry
        ``"module:Class"``; empty while the method is not built. Its row stays so that the scoreboard counts it.
    arxiv, year
        The paper; empty and 0 for baselines without one.
    trains
        Whether the method has a training stage.
    trainings
        What ``mintage train`` can train for it.
    study
        ``"module:Class"`` of the paper's claim check, a `mintage.measure.study.Study`; empty where there is none.
    summary
        One line for someone who has not read the paper.
    claim
        The paper's headline claim, as one line, with the paper's own numbers.
    role
        ``"paper"`` for the published methods, ``"baseline"`` for rivals under the same contract, ``"combinator"``
        for methods made of others.
    package
        The distribution that brought the row.
    problem
        Why a plug-in's row cannot be used; empty when all is well.
    needs
        A module of another package without which it cannot be made; empty for most.
    """

    name: str
    job: str
    title: str
    entry: str = ""
    arxiv: str = ""
    year: int = 0
    trains: bool = False
    trainings: tuple[Trains, ...] = ()
    study: str = ""
    summary: str = ""
    claim: str = ""
    role: Role = "paper"
    package: str = "mintage"
    problem: str = ""
    needs: str = ""

    @property
    def installed(self) -> bool:
        """Whether what it `needs` is there."""
        return not self.needs or importlib.util.find_spec(self.needs) is not None

    @property
    def status(self) -> Literal["ready", "planned", "broken"]:
        """``ready`` to use, ``planned`` (a row without a class yet), or ``broken`` (a plug-in that fails to import)."""
        if self.problem:
            return "broken"
        return "ready" if self.entry else "planned"

    def load(self) -> type:
        """Import the method's class.

        Raises
        ------
        UserError
            The method is not built yet, or its plug-in is broken.
        """
        if self.problem:
            raise UserError(self.problem)
        if not self.entry:
            raise UserError(f"{self.name} is not built yet; ready in its job: {_ready(self.job)}")
        return self._import(self.entry)

    def load_settings(self) -> type:
        """Import the dataclass whose fields a spec sets: the method's own, or of a model that is trained, its training.

        Raises
        ------
        UserError
            As `load`.
        """
        kind = self.load()
        if dataclasses.is_dataclass(kind) or not self.trainings:
            return kind
        return self.load_training(self.trainings[0].name)

    def load_study(self) -> type:
        """Import the class of the claim check.

        Raises
        ------
        UserError
            There is none, or the row's plug-in is broken.
        """
        if self.problem:
            raise UserError(self.problem)
        if not self.study:
            beside = f"; beside others: mintage bench {self.job} {self.name}" if self.status == "ready" else ""
            raise UserError(f"{self.name} has no claim check{beside or ' yet: it is not built'}")
        return self._import(self.study)

    def load_training(self, name: str) -> type:
        """Import the class of one of its trainings.

        Raises
        ------
        UserError
            The row's plug-in is broken.
        """
        return self._import(next(part.entry for part in self.trainings if part.name == name))

    def _import(self, target: str) -> Any:
        try:
            return resolve(target)
        except Exception as error:
            if self.package == "mintage" or isinstance(error, UserError):
                raise
            told = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(f"{self.name} (package {self.package}) cannot load {target}: {told}; mend it") from error


def _ready(job: str) -> str:
    return ", ".join(m.name for m in methods(job) if m.status == "ready") or "none yet"


def resolve(target: str) -> Any:
    """Import ``"module:attribute"`` and return the attribute."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def lazy_attributes(
    module: str, rows: Iterable[Method] = (), **others: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make ``__getattr__`` and ``__dir__`` of a front door, so that looking at it imports nothing heavy.

    Parameters
    ----------
    module
        The front door's ``__name__``.
    rows
        The classes of these are attributes.
    **others
        Public name to ``"module:attribute"``.
    """
    targets = {row.entry.partition(":")[2]: row.entry for row in rows if row.entry} | others

    def getattribute(name: str) -> Any:
        if name not in targets:
            raise AttributeError(f"module {module!r} has no attribute {name!r}; {did_you_mean(name, targets)}")
        value = resolve(targets[name])
        setattr(sys.modules[module], name, value)
        return value

    return getattribute, lambda: sorted({*vars(sys.modules[module]), *targets})


@cache
def _discover() -> dict[str, Method]:
    rows: dict[str, Method] = {}
    for job in JOBS:
        for row in importlib.import_module(f"mintage.{job}").METHODS:
            rows[row.name] = row
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        row = _plugin_row(point)
        if row.name in rows:
            told = f"plug-in {row.name!r} ({row.package}) has the name of a known method; skipped"
            warnings.warn(told, Notice, stacklevel=2)
            continue
        rows[row.name] = row
    return rows


def _plugin_row(point: importlib.metadata.EntryPoint) -> Method:
    """Read a plug-in's row; whatever goes wrong becomes a row that names the package, never an exception."""
    package = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown package"
    try:
        row = point.load()
        if not isinstance(row, Method):
            raise TypeError(f"{point.value} is {type(row).__name__}, expected a mintage.catalog.Method")
        if row.job not in JOBS:
            raise ValueError(f"job {row.job!r} is not one of {', '.join(JOBS)}")
        return dataclasses.replace(row, package=package)
    except Exception as error:
        problem = f"plug-in {point.name!r} (package {package}) failed to import: {error}; skipped"
        return Method(name=point.name, job="", title=point.value, package=package, problem=problem)


def methods(job: str | None = None, *, role: Role | None = None) -> list[Method]:
    """Return the rows of one job or of all, in catalogue order.

    Raises
    ------
    UserError
        `job` is not one of `JOBS`.
    """
    if job is not None and job not in JOBS:
        raise UserError(f"unknown job {job!r}; {did_you_mean(job, JOBS)}")
    rows = [m for m in _discover().values() if job is None or m.job == job]
    return [m for m in rows if role is None or m.role == role]


def find(name: str, job: str | None = None) -> Method:
    """Return the row called `name`.

    Raises
    ------
    UserError
        There is none (the nearest name is suggested), it is a job, or it belongs to another one.
    """
    rows = _discover()
    if name in JOBS:
        raise UserError(f"{name} is a job, not a method; its methods: {_ready(name)}")
    if name not in rows:
        raise UserError(f"unknown method {name!r}; {did_you_mean(name, (m.name for m in methods(job)))}")
    method = rows[name]
    if job is not None and method.job and method.job != job:
        raise UserError(f"{name} belongs to the {method.job} job, not to {job}; {job} has: {_ready(job)}")
    return method


def trainings() -> dict[str, Trains]:
    """Return all that can be trained, by name: what front doors list as ``TRAININGS``, and what rows bring."""
    doors = [part for job in JOBS for part in _door(job, "TRAININGS", ())]
    found = {part.name: part for part in doors}
    for row in methods():
        for part in row.trainings:
            if found.setdefault(part.name, part) != part:
                told = f"plug-in {row.name!r} ({row.package}) has a training called {part.name!r}, as a known one is"
                warnings.warn(f"{told}; skipped", Notice, stacklevel=2)
    return found


def load_training(name: str) -> type:
    """Import a training.

    Raises
    ------
    UserError
        There is none of this name, or its plug-in is broken.
    """
    known = trainings()
    if name not in known:
        raise UserError(f"unknown training {name!r}; {did_you_mean(name, known)}")
    for row in methods():
        if known[name] in row.trainings:
            return row.load_training(name)
    return resolve(known[name].entry)


def _door(job: str, name: str, default: Any) -> Any:
    return getattr(importlib.import_module(f"mintage.{job}"), name, default)


def benches() -> dict[str, str]:
    """Return the jobs that have a joint comparison, in order: job to ``"module:Class"``, a `mintage.bench.Bench`."""
    doors = {job: _door(job, "BENCH", "") for job in JOBS}
    return {job: entry for job, entry in doors.items() if entry}


def job_summary(job: str) -> str:
    """Return the first line of a job's front door: what the job is."""
    document = importlib.import_module(f"mintage.{job}").__doc__ or ""
    return document.strip().splitlines()[0]


# -- hyper-parameters ---------------------------------------------------------------------------------------------


def hyperparameters(method_class: type) -> dict[str, tuple[Any, Any]]:
    """Return ``{field: (type, default)}`` of a method's dataclass; `dataclasses.MISSING` is no default."""
    hints = typing.get_type_hints(method_class)
    return {f.name: (hints[f.name], _default(f)) for f in dataclasses.fields(method_class) if f.init}


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def parse_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Split ``"name:key=value,key=value"`` into the name and its settings.

    Raises
    ------
    UserError
        A setting has no ``=``.
    """
    name, _, rest = spec.partition(":")
    settings = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"{spec!r}: {part!r} is not key=value; write e.g. {name}:{part}=8")
        settings[key.strip().replace("-", "_")] = value.strip()
    return name.strip(), settings


def build(spec: str, job: str, **given: Any) -> Any:
    """Make the method that `spec` describes, e.g. ``build("token-recycling:budget=24", "draft")``.

    Parameters
    ----------
    spec
        ``"name"`` or ``"name:key=value,..."``; values are read as the field's type.
    job
        The job the method must belong to.
    **given
        Fields that are objects and cannot be written in a spec, e.g. ``draft_model``; ignored by methods without them.

    Raises
    ------
    UserError
        Unknown method or setting, a value of the wrong type, or a required field that is neither given nor written.
    """
    name, settings = parse_spec(spec)
    return made(find(name, job).load(), name, settings, **given)


def made(kind: type, name: str, settings: Mapping[str, str], **given: Any) -> Any:
    """Make a dataclass from settings as texts, read as its fields' types; see `build`."""
    known = hyperparameters(kind)
    for key in settings:
        if key not in known:
            raise UserError(f"{name} has no setting {key!r}; {did_you_mean(key, known)}")
    values = {key: _read(name, key, text, known[key][0]) for key, text in settings.items()}
    values |= {key: value for key, value in given.items() if key in known and key not in values}
    absent = [k for k, (_, default) in known.items() if default is dataclasses.MISSING and k not in values]
    if absent:
        raise UserError(f"{name} needs {', '.join(absent)}")
    return kind(**values)


def _read(name: str, key: str, text: str, kind: Any) -> Any:
    try:
        return _convert(text, kind)
    except (ValueError, TypeError):
        raise UserError(f"{name}: {key}={text!r} is not {_kind_name(kind)}") from None


def _alternatives(kind: Any) -> Iterable[Any]:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        options = typing.get_args(kind)
        return sorted(options, key=lambda o: o is str)  # text fits everything, so it is tried last
    return (kind,)


def _convert(text: str, kind: Any) -> Any:
    """``text`` as the first alternative of ``kind`` that it can be read as; ``ValueError`` or ``TypeError`` if none."""
    *options, last = _alternatives(kind)
    for option in options:
        try:
            return _convert_one(text, option)
        except (ValueError, TypeError):
            continue
    return _convert_one(text, last)


def _convert_one(text: str, kind: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin is Literal:
        for choice in typing.get_args(kind):
            if text == str(choice):
                return choice
        raise ValueError(text)
    if origin in (tuple, Sequence):
        return tuple(_convert(part, typing.get_args(kind)[0]) for part in text.split("x"))
    if kind is type(None):
        if text.lower() != "none":
            raise ValueError(text)
        return None
    if kind is bool:
        try:
            return _BOOLEANS[text.lower()]
        except KeyError:
            raise ValueError(text) from None
    if kind in (int, float, str):
        return kind(text)
    raise TypeError(kind)


def _kind_name(kind: Any) -> str:
    return " or ".join(map(_option_name, _alternatives(kind)))


def _option_name(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        choices = list(map(str, typing.get_args(option)))
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    return getattr(option, "__name__", str(option))
