"""The list of data sets, where files are found, and the samples of a clone."""

import hashlib
import json
from pathlib import Path

import pytest

from mintage.data import data_file, texts
from mintage.data.corpora import CORPORA
from mintage.data.sets import SETS, data_home, find_set
from mintage.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "data"
NEVER = {"cifar10", "imagenet-sample", "iiit5k", "sts", "meshes"}


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine that has fetched nothing; the clone is there."""
    monkeypatch.delenv("MINTAGE_DATA", raising=False)
    monkeypatch.setenv("MINTAGE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_every_set_says_what_it_is():
    for one in SETS.values():
        assert one.kind in {"text", "images", "audio", "meshes", "dna", "weights"}
        assert all((one.about, one.licence, one.origin, one.files))
        assert all(file.size > 0 and len(file.checksum) == len("sha256:") + 64 for file in one.files)
        assert all(file.url.startswith("https://") and file.checksum.startswith("git:") for file in one.whole)
    assert {corpus.data for corpus in CORPORA.values()} - {""} <= set(SETS)


def test_a_clone_has_the_samples_and_nothing_else():
    shipped = {file.name: file for one in SETS.values() if one.ships for file in one.files}
    assert {path.name for path in SAMPLES.iterdir()} - {"README.md"} == set(shipped)
    for name, file in shipped.items():
        content = (SAMPLES / name).read_bytes()
        assert len(content) == file.size <= 20_000_000
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == file.checksum
    assert sum(file.size for file in shipped.values()) < 40_000_000
    assert not any(SETS[name].ships for name in NEVER)
    attributed = (SAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(name in attributed for name in shipped)


def test_the_users_folder_comes_first_then_what_was_fetched_then_the_clone(bare, monkeypatch):
    name = "xquad.jsonl.gz"
    assert data_file(name) == SAMPLES / name
    fetched = bare / "cache" / "data"
    fetched.mkdir(parents=True)
    (fetched / name).write_text("")
    assert data_file(name) == fetched / name
    assert data_home() == fetched
    own = bare / "own"
    own.mkdir()
    monkeypatch.setenv("MINTAGE_DATA", str(own))
    assert data_home() == own
    assert data_file(name) == fetched / name
    (own / name).write_text("")
    assert data_file(name) == own / name


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("words.txt", "words.txt is not on this machine; set MINTAGE_DATA to a folder that holds words.txt"),
        (
            "cifar10_jpeg.npz",
            r"is not shipped; run: mintage data get cifar10 \(from the hub\), or .* --from .* --images",
        ),
        ("sts.jsonl.gz", "is not shipped .*; run: mintage data get sts --from FOLDER-OR-URL"),
    ],
)
def test_what_is_absent_says_how_to_get_it(bare, monkeypatch, name, line):
    with pytest.raises(UserError, match=line):
        data_file(name)
    monkeypatch.setenv("MINTAGE_DATA", str(bare))
    with pytest.raises(UserError, match=r"is not on this machine \(MINTAGE_DATA=.* lacks it\); "):
        data_file(name)


def test_what_a_clone_has_is_told_where_there_is_none(bare, monkeypatch):
    import mintage.data.sets as sets

    monkeypatch.setattr(sets, "__file__", str(bare / "site-packages" / "mintage" / "data" / "sets.py"))
    with pytest.raises(UserError, match=r"^xquad.jsonl.gz is not on this machine; it lies in the folder data of"):
        data_file("xquad.jsonl.gz")


def test_an_unknown_set_is_told():
    with pytest.raises(UserError, match=r"^unknown data set 'xqad'; did you mean 'xquad'\?"):
        find_set("xqad")


DIGESTS = json.loads((Path(__file__).parent / "digests.json").read_text())


@pytest.mark.parametrize("key", DIGESTS)
def test_the_texts_of_a_clone_are_those_that_were_measured(bare, key):
    name, split = key.split(", ")
    found = hashlib.sha256()
    for document in texts(name, split).documents():
        found.update(json.dumps([document.name, document.domain, document.text]).encode())
    assert found.hexdigest()[:16] == DIGESTS[key]


def test_every_corpus_of_a_clone_has_its_digest():
    wanted = {f"{c.name}, {split}" for c in CORPORA.values() if c.data and SETS[c.data].ships for split in c.splits}
    assert set(DIGESTS) == {key for key in wanted if not key.endswith("all")}
