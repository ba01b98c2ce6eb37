"""Commands made from fields: what must be given, what may be given again."""

import inspect
import shlex
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
import typer

from mintage.cli.fields import Lazy, LazyGroup, command_line, command_of
from mintage.errors import UserError
from mintage.options import Options, option

Done = namedtuple("Done", "status said")


@pytest.fixture
def call(capsys, monkeypatch):
    """Run a command as a terminal would; its exit status, and what it said."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(made, *words):
        command = typer.main.get_command(made) if isinstance(made, typer.Typer) else made
        capsys.readouterr()
        try:
            command.main(list(words), prog_name="mintage")
            status = 0
        except SystemExit as end:
            status = end.code or 0
        return Done(status, "".join(capsys.readouterr()))

    return run


@dataclass(frozen=True, kw_only=True)
class Copy(Options):
    """Copy texts."""

    text: tuple[str, ...] = option(help="A text; give it again for more.", repeat=True)
    out: Path = option(help="File to write.", short="-o")
    tags: tuple[str, ...] = option((), "Words of its title.", repeat=True)
    times: int | None = option(None, "How often.", least=1)


def run(*words):
    made = []
    command_of(Copy, made.append, name="copy").main(list(words), standalone_mode=False)
    return made[0]


def test_an_option_is_given_again_for_more():
    made = run("--text", "a", "--text", "b,c", "-o", "x")
    assert made == Copy(text=("a", "b,c"), out=Path("x"))


def test_a_field_without_a_default_must_be_given():
    for words in (("--text", "a"), ("-o", "x")):
        with pytest.raises(Exception, match=r"Missing parameter|Missing option"):
            run(*words)


def test_none_stays_none():
    assert run("--text", "a", "-o", "x", "--times", "3").times == 3
    assert run("--text", "a", "-o", "x").times is None


def test_a_number_that_is_none_is_refused():
    @dataclass(frozen=True, kw_only=True)
    class Heat(Options):
        temperature: float = option(1.0, "Of sampling.")
        several: tuple[float, ...] = option((1.0,), "Some.")

    for wrong in ({"temperature": float("nan")}, {"several": (0.5, float("nan"))}):
        with pytest.raises(UserError, match=r"nan.* is not a number, e.g. "):
            Heat(**wrong)


def test_seeds_of_twenty_digits_are_refused():
    from mintage.bench.contract import Bench
    from mintage.measure.study import Study
    from mintage.train.training import Training

    class Compared(Bench):
        job = "draft"

        def _measure(self, specs, asked):
            return []

    class Learnt(Training):
        name = "x"

        def learn(self, work):
            raise NotImplementedError

    for kind in (Compared, Learnt):
        assert kind(seed=2**63 - 1).seed == 2**63 - 1
        for wrong in (10**20, 2**63, -1):
            with pytest.raises(UserError, match=f"seed={wrong} is out of range"):
                kind(seed=wrong)
    seed = next(f for f in fields(Study) if f.name == "seed")
    assert not seed.metadata["range"].holds(2**63)


# -- every kind of field -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Kinds(Options):
    """Do something with
    many settings.

    More of it
    here.

    [dim]Example[/dim]

      mintage kinds --count 3

    Next: [bold]mintage report[/bold]
    """

    count: int = option(2, "A count.", least=1)
    rate: float = option(0.5, "A rate.", above=0, most=1)
    seed: int = option(0, "Of everything.", least=0, below=2**63)
    word: str = option("", "A text.")
    wide: bool = option(False, "Wide or not.")
    kind: Literal["sum", "max"] = option("sum", "A choice.")
    maybe: Literal["sum", "max"] | None = option(None, "A choice, or none.")
    sizes: tuple[int, ...] = option((4, 8), "Sizes.", least=1)
    kinds: tuple[Literal["sum", "max"], ...] = option(("sum",), "Choices.")
    pair: tuple[int, float] = option((1, 0.5), "A count and a rate.")
    either: int | Literal["auto"] = option("auto", "A count, or auto.", least=2)
    several: tuple[int, ...] | Literal["all"] = option("all", "Counts, or all.")
    number: float | str = option(1.0, "A number or a name.")
    room: Path | None = option(None, "A folder.")
    words: tuple[str, ...] = option((), "Texts.", argument=True)
    policy: Callable[[int], int] | None = None


def kinds(*words):
    made = []
    command_of(Kinds, made.append, name="kinds").main(list(words), standalone_mode=False)
    return made[0]


def test_defaults_are_those_of_the_fields():
    assert kinds() == Kinds()


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--count", "3"], "count", 3),
        (["--rate", "1"], "rate", 1.0),
        (["--word", " a,b "], "word", " a,b "),
        (["--wide"], "wide", True),
        (["--no-wide"], "wide", False),
        (["--kind", "max"], "kind", "max"),
        (["--maybe", "max"], "maybe", "max"),
        (["--sizes", "1, 2,3"], "sizes", (1, 2, 3)),
        (["--sizes", "5"], "sizes", (5,)),
        (["--kinds", "max,sum"], "kinds", ("max", "sum")),
        (["--pair", "3,0.25"], "pair", (3, 0.25)),
        (["--either", "5"], "either", 5),
        (["--either", "auto"], "either", "auto"),
        (["--several", "all"], "several", "all"),
        (["--several", "1,2"], "several", (1, 2)),
        (["--number", "2.5"], "number", 2.5),
        (["--number", "pi"], "number", "pi"),
        (["--room", "a/b"], "room", Path("a/b")),
        (["a", "b c"], "words", ("a", "b c")),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_every_kind_of_field_is_an_option(words, name, value):
    made = kinds(*words)
    assert getattr(made, name) == value
    assert type(getattr(made, name)) is type(value)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--count", "0"], "count=0 is out of range; pass a number at least 1, e.g. 2"),
        (["--rate", "2"], "rate=2.0 is out of range; pass a number in (0, 1], e.g. 0.5"),
        (["--rate", "nan"], "rate=nan is not a number, e.g. 0.5"),
        (["--sizes", "4,x"], "--sizes 'x' is not a whole number"),
        (["--sizes", "4,0"], "sizes=0 is out of range; pass a number at least 1, e.g. (4, 8)"),
        (["--kinds", "sum,mxa"], "kinds='mxa' is not one of sum, max; did you mean 'max'?"),
        (["--pair", "3"], "--pair '3' holds 1 values; pass 2"),
        (["--either", "1"], "either=1 is out of range; pass a number at least 2, e.g. 'auto'"),
        (["--either", "atuo"], "either='atuo' is not auto or a whole number"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_a_field_excludes_is_one_line(words, line, as_users_call):
    with pytest.raises(UserError) as told:
        kinds(*words)
    assert str(told.value) == line


@pytest.mark.parametrize("words", [["--count", "x"], ["--kind", "min"], ["--polcy", "x"], ["--policy", "x"]])
def test_what_no_option_can_be_ends_with_status_two(call, words):
    done = call(command_of(Kinds, lambda made: None, name="kinds"), *words)
    assert done.status == 2
    assert words[0] in done.said


def test_help_has_purpose_ranges_and_choices(call):
    text = call(command_of(Kinds, lambda made: None, name="kinds"), "--help").said
    for part in (
        "Do something with many settings.",
        "More of it here.",
        "  mintage kinds --count 3",
        "A count. At least 1.",
        "A rate. In (0, 1].",
        "In [0, 9223372036854775808).",
        "<sum|max>",
        "[default: 4,8]",
        "--no-wide",
    ):
        assert part in text, part
    assert "--policy" not in text  # no option can hold a function
    assert "[dim]" not in text


def test_objects_are_made_of_options_of_their_own():
    extra = inspect.Parameter(
        "double", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, typer.Option(help="Twice.")]
    )
    made = []

    def objects(values):
        return {"policy": (lambda n: 2 * n) if values.pop("double") else None}

    command = command_of(Kinds, made.append, name="kinds", extra=[extra], objects=objects)
    command.main(["--double"], standalone_mode=False)
    assert made[0].policy(3) == 6


def test_the_command_that_repeats_a_run_can_be_copied(monkeypatch):
    words = ["bench", "x", "--prefix", "", "--text", "it's $5", "a b"]
    monkeypatch.setattr(sys, "argv", ["/bin/mintage", *words])
    assert shlex.split(command_line()) == ["mintage", *words]


# -- groups ------------------------------------------------------------------------------------------------------------


class Found(LazyGroup):
    loaded: ClassVar[list] = []

    def names(self):
        return ["kinds", "other"]

    def found(self, name):
        def load():
            self.loaded.append(name)
            return command_of(Kinds, lambda made: print(made.count), name=name)

        return Lazy(name, f"About {name}.", load) if name in self.names() else None


@pytest.fixture
def group():
    Found.loaded.clear()
    app = typer.Typer(cls=Found, no_args_is_help=True)

    @app.callback()
    def root():
        """A group."""

    @app.command("plain")
    def plain():
        """A command of its own."""

    return app


def test_a_list_of_commands_loads_none(call, group):
    text = call(group, "--help").said
    assert all(part in text for part in ("plain", "About kinds.", "About other."))
    assert Found.loaded == []


def test_a_command_is_loaded_when_it_runs_or_shows_its_help(call, group):
    assert call(group, "kinds", "--count", "7") == (0, "7\n")
    assert "--count" in call(group, "other", "--help").said
    assert Found.loaded == ["kinds", "other"]


def test_an_unknown_command_is_told_with_the_nearest(call, group):
    with pytest.raises(UserError, match=r"mintage has no 'knids'; did you mean 'kinds'\?"):
        call(group, "knids")
    assert call(group, "--knids").status == 2


@pytest.mark.parametrize("words", ["--help", "bench --help", "train --help", "audit --help", "bench"])
def test_lists_of_commands_import_no_torch(words):
    code = f"""
import sys
from mintage.cli import main
sys.argv = ["mintage", *{words.split()!r}]
try:
    main()
except SystemExit:
    pass
assert not {{"torch", "transformers", "tokenizers"}} & sys.modules.keys(), "loaded"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
