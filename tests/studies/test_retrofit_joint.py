"""The joint comparison: all methods on the same texts, rows as they were, plug-ins of any role, kills."""

import json

import pytest
from toys_retrofit import MANY, save_word_model, write_hypernetwork, write_zett

from mintage import catalog, weights
from mintage.bench.retrofit import joint
from mintage.bench.retrofit.joint import RetrofitBench
from mintage.bench.run import bench_of
from mintage.errors import UserError
from mintage.retrofit.contract import ByteSampler
from mintage.retrofit.core.embeddings import EmbeddingTransfer
from mintage.retrofit.exact_bytes import ByteLM
from mintage.retrofit.heuristics import FVT

SMALL = {"kinds": ("prose", "de"), "texts": 3, "size": 96, "vocabulary": 400}
ARMS = ["zett", "fvt", "focus", "exact-bytes"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_word_model(tmp_path_factory.mktemp("models") / "tiny", tied=True)


@pytest.fixture
def small(tmp_path, monkeypatch):
    write_zett(tmp_path)
    monkeypatch.setenv("MINTAGE_DATA", str(tmp_path))
    monkeypatch.setattr(joint, "texts_cut_small", lambda seed: MANY)
    monkeypatch.setattr(weights, "_ASSETS", tmp_path)
    joint._target.cache_clear()
    yield tmp_path
    joint._target.cache_clear()


@pytest.fixture
def trained(small, folder):
    write_hypernetwork(small, folder)
    return small


@pytest.fixture
def plugins(monkeypatch):
    """Let packages bring methods."""

    def bring(**classes):
        rows = list(catalog.methods("retrofit"))
        for name, (_, role) in classes.items():
            rows.append(catalog.Method(name=name, job="retrofit", title=name, entry=f"{__name__}:{name}", role=role))
        monkeypatch.setattr(catalog.Method, "load", _load_with({name: kind for name, (kind, _) in classes.items()}))
        everything = {row.name: row for row in [*catalog.methods(), *rows]}
        monkeypatch.setattr(catalog, "_discover", lambda: everything)

    return bring


def _load_with(classes, load=catalog.Method.load):
    return lambda row: classes[row.name] if row.name in classes else load(row)


def bench(folder, **settings):
    return RetrofitBench(model=folder, **SMALL | settings)


def test_the_job_finds_its_bench():
    assert bench_of("retrofit") is RetrofitBench


def test_the_rows_are_those_of_before(trained, folder, equal_to_golden):
    told = []
    rows = bench(folder).run(ARMS, work=trained / "work", progress=lambda *step: told.append(step))
    equal_to_golden("retrofit-joint", rows, rel=1e-4, without=("seconds",))
    assert told[-1] == ("texts, de", 15, 15)
    assert {row.unit for row in rows if row.metric.startswith("seconds per kilobyte")} == {"s"}
    assert {row.model for row in rows} == {folder}
    assert len({row.identity for row in rows}) == len(rows)
    assert not list((trained / "work").glob("*"))


def test_without_names_papers_and_all_that_embeds_are_measured(small, folder):
    notes = []
    rows = bench(folder, kinds=("de",), texts=1).run(work=small / "work", note=notes.append)
    measured = {row.method for row in rows}
    assert measured == {"exact-bytes", "fvt", "focus", "wechsel", "omp", "lexical", "mean"}
    (note,) = notes
    assert note.startswith("zett is left out: ")
    assert "\n" not in note


def test_settings_make_rows_of_their_own(small, folder):
    specs = ["exact-bytes:tolerance=0", "omp:sparsity=2", "omp", "token-healing"]
    rows = bench(folder, kinds=("de",), texts=1, size=32).run(specs, work=small / "work")
    bits = {(row.method, row.settings.get("sparsity", "")): row.value for row in rows if row.unit == "bits"}
    assert len(bits) == 4
    assert bits["omp", "2"] != bits["omp", ""]
    assert {row.settings["run"] for row in rows} == {"joint"}
    assert len({row.identity for row in rows}) == len(rows)


def test_plugins_of_any_role_are_measured_or_refused_in_a_line(small, folder, plugins):
    class Mine(FVT):
        pass

    class Sampler(ByteLM):
        pass

    class Alone(ByteSampler):
        def start(self, prefix=b""):
            raise NotImplementedError

        @classmethod
        def tiny(cls):
            return cls()

    class Nothing:
        pass

    plugins(
        mine=(Mine, "baseline"), sampler=(Sampler, "paper"), alone=(Alone, "paper"), nothing=(Nothing, "combinator")
    )
    one = bench(folder, kinds=("de",), texts=1)
    notes = []
    rows = one.run(work=small / "work", note=notes.append)
    assert {"mine", "sampler"} < {row.method for row in rows}
    assert not {"alone", "nothing"} & {row.method for row in rows}
    assert any(note.startswith("alone is left out: Alone is not made of one model") for note in notes)
    for name, told in (("alone", "is not made of one model"), ("nothing", "no probability of a text")):
        with pytest.raises(UserError, match=told) as error:
            one.run([name], work=small / "work")
        assert "\n" not in str(error.value)
    assert issubclass(Mine, EmbeddingTransfer)


@pytest.mark.parametrize(
    ("specs", "told"),
    [
        (["exact-byte"], "did you mean 'exact-bytes'"),
        (["pitome"], "belongs to the reduce job"),
        (["dynamic-tokens"], "its own check is: mintage bench dynamic-tokens"),
        (["omp:sparseness=2"], "has no setting"),
        (["zett"], "zett"),
    ],
)
def test_what_cannot_be_measured_is_told(small, folder, specs, told):
    with pytest.raises(UserError, match=told) as error:
        bench(folder).run(specs, work=small / "work")
    assert "\n" not in str(error.value)


def test_a_killed_run_goes_on(small, folder):
    def stop(stage, done, of):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench(folder).run(["fvt"], work=small / "work", progress=stop)
    (kept,) = (small / "work").glob("*.jsonl")
    first = [json.loads(line) for line in kept.read_text().splitlines()]
    assert len(first) == 2
    assert len(bench(folder).run(["fvt"], work=small / "work")) == 6
    assert not list((small / "work").glob("*"))
