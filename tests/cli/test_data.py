"""``mintage data``: what it lists, fetches and finds."""

import json
from pathlib import Path

import pytest

from mintage.data.sets import SETS

SAMPLES = Path(__file__).resolve().parents[2] / "data"


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine that has fetched nothing; the clone is there."""
    monkeypatch.delenv("MINTAGE_DATA", raising=False)
    monkeypatch.setenv("MINTAGE_CACHE", str(tmp_path / "cache"))


def test_list_names_every_set_with_licence_and_origin(bare, mintage):
    done = mintage("data", "list")
    assert done.status == 0
    for one in SETS.values():
        assert one.name in done.out
        assert one.licence in done.out
        assert one.origin in done.out
    rows = json.loads(mintage("data", "list", "--json").out)
    assert [row["name"] for row in rows] == list(SETS)
    assert {row["name"] for row in rows if row["here"]} == {one.name for one in SETS.values() if one.ships}


def test_where_prints_paths(bare, mintage):
    wanted = [str(SAMPLES / f"wikitext2_{part}.txt.gz") for part in ("valid", "test_head")]
    assert mintage("data", "where", "wikitext2").out.split() == wanted
    done = mintage("data", "where", "cifar10")
    assert done.status == 2
    assert "mintage data get cifar10" in done.err


def test_get_from_a_folder(monkeypatch, tmp_path, mintage):
    monkeypatch.setenv("MINTAGE_DATA", str(tmp_path))
    done = mintage("data", "get", "humaneval", "--from", SAMPLES)
    assert done.status == 0
    assert done.out.split() == [str(tmp_path / "humaneval.jsonl.gz")]
    assert (tmp_path / "humaneval.jsonl.gz").stat().st_size == SETS["humaneval"].size
    assert mintage("data", "where", "humaneval").out.split() == [str(tmp_path / "humaneval.jsonl.gz")]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["humanevil"], "unknown data set 'humanevil'; did you mean 'humaneval'?"),
        (["sts"], "sts has no public file of this form"),
        (["gsm8k", "--from", "nowhere"], "nowhere/gsm8k.jsonl.gz does not exist"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, tmp_path, mintage, words, line):
    monkeypatch.setenv("MINTAGE_DATA", str(tmp_path))
    done = mintage("data", "get", *words)
    assert done.status == 2
    assert line in done.err
    assert done.err.count("\n") == 1
