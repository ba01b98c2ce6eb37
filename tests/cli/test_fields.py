"""Commands made from fields: what must be given, what may be given again."""

from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from mintage.cli.fields import command_of
from mintage.errors import UserError
from mintage.options import Options, option


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

        def run(self, specs=(), **told):
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
