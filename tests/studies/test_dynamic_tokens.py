"""The claim check of dynamic-tokens at a size that takes seconds: rows as they were, every claim once, kills, parts."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from toys_retrofit import save_small_composer, save_word_model, small_encoder, write_dynamic_tokens

from mintage import weights
from mintage.bench.retrofit import merged, sentences
from mintage.errors import UserError
from mintage.measure import Figure, Result
from mintage.measure.study import run_study
from mintage.models import load_causal_lm
from mintage.retrofit.core.composer import Composer, ComposerShape
from mintage.retrofit.core.embeddings import Parts
from mintage.retrofit.core.token_bytes import TokenBytes
from mintage.studies import dynamic_tokens
from mintage.studies.dynamic_tokens import DynamicTokensStudy

pytestmark = pytest.mark.skipif(find_spec("faiss") is None, reason="faiss is not installed")

SMALL = {
    "kinds": ("de", "prose"),
    "texts": 2,
    "size": 96,
    "lengths": (24, 2048),
    "rounds": 2,
    "rows_searched": 900,
    "rows_linked": 400,
    "queries": 20,
    "searches": 3,
    "pairs": 12,
}
TIMED = {"seconds": ("note",), "dynamic-tokens-prefill": ("data",)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_word_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def small(tmp_path, monkeypatch, folder):
    write_dynamic_tokens(tmp_path)
    encoder = small_encoder(folder)
    monkeypatch.setenv("MINTAGE_DATA", str(tmp_path))
    monkeypatch.setattr(sentences, "minilm", lambda: encoder)
    monkeypatch.setattr(dynamic_tokens, "NEEDED", {})
    monkeypatch.setattr(weights, "_ASSETS", tmp_path)
    return tmp_path


@pytest.fixture
def trained(small, folder):
    """A composer of the tiny model, in the place of the one that ships."""
    lm = load_causal_lm(folder, dtype="float32")
    source = Parts(lm.model, TokenBytes(lm.tokenizer))
    with torch.random.fork_rng():
        net = save_small_composer(ComposerShape, Composer)
    net.bind(source, {"model": folder}).save(small / "composer-smollm2.safetensors")
    return small


def study(folder, **settings):
    return DynamicTokensStudy(model=folder, **SMALL | settings)


def test_the_rows_are_those_of_before(trained, folder, equal_to_golden):
    told = []
    rows = run_study(study(folder), work=trained / "work", progress=lambda *step: told.append(step))
    equal_to_golden("dynamic-tokens", rows, rel=1e-4, without=TIMED)
    stages = ["words", "reading 24", "reading 2048", "search: ivf", "search: hnsw", "sentences"]
    assert list(dict.fromkeys(stage for stage, *_ in told)) == stages
    tested = [row for row in rows if isinstance(row, Result) and row.claim]
    assert len({row.claim for row in tested}) == len(tested) == 7
    assert all(row.verdict in ("holds", "does not hold") for row in tested)
    assert len({row.identity for row in rows}) == len(rows)
    assert {row.model for row in rows if isinstance(row, Result)} == {folder, "all-MiniLM-L6-v2"}
    assert not list((trained / "work").glob("*"))


def test_without_a_composer_the_mean_is_the_best(small, folder, equal_to_golden):
    rows = run_study(study(folder), work=small / "work")
    equal_to_golden("dynamic-tokens-plain", rows, rel=1e-4, without=TIMED)
    assert len([row for row in rows if isinstance(row, Result) and row.claim]) == 5  # the composer's two need one


def test_what_is_timed_is_compared_and_drawn(small, folder):
    rows = run_study(study(folder), work=small / "work")
    timed = [row for row in rows if isinstance(row, Result) and row.metric.startswith("seconds to read")]
    assert [row.settings["length"] for row in timed] == [24, 2048]
    assert timed[1].claim.startswith("reading 2,048 tokens of German merged takes less time")
    assert timed[1].rule == "interval below 1"
    assert all(row.peers["without merging and embeddings"] < row.value * 1.01 for row in timed)
    searches = [row for row in rows if isinstance(row, Result) and row.metric.startswith("seconds of a search")]
    assert [bool(row.claim) for row in searches] == [True, True, False]
    (figure,) = [row for row in rows if isinstance(row, Figure) and row.name == "dynamic-tokens-prefill"]
    assert [series["name"] for series in figure.data["series"]] == ["as they are", "merged", "merged, the model alone"]
    assert all(series["x"] == [24, 2048] for series in figure.data["series"])


def test_a_killed_check_goes_on(small, folder):
    """What was measured before the kill is not measured again."""

    def kill(stage, done, of):
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study(folder), work=small / "work", progress=kill)
    (kept,) = (small / "work").glob("*.jsonl")
    assert len(kept.read_text().splitlines()) == 9


def test_random_merges_make_a_text_as_short_within_the_boundary(small, folder):
    readers = merged.Readers(load_causal_lm(folder, dtype="float32"))
    ids = readers.merger.ids(["some words and some other words"])[0]
    goal = readers.merger.merge_ids([ids], reduction=0.5)
    drawn = merged.random_merges(readers.merger, ids, goal.length, seed=1)
    assert goal.length - 2 <= drawn.length <= goal.length
    assert drawn.merges != goal.merges
    assert b"".join(drawn.surfaces(0)) == b"".join(goal.surfaces(0))
    assert all(b" " not in surface[1:] for surface in drawn.surfaces(0))


def test_rank_correlation_is_spearmans():
    draw = np.random.default_rng(0)
    one, other = draw.integers(0, 5, (3, 40)), draw.random((3, 40))
    wanted = [spearmanr(a, b).statistic for a, b in zip(one, other, strict=True)]
    assert np.allclose(sentences.spearman(one, other), wanted)


def test_a_missing_package_is_told_before_anything_is_measured(small, folder, monkeypatch):
    monkeypatch.setattr(dynamic_tokens, "NEEDED", {"no_such_module": "no-such-package"})
    with pytest.raises(UserError, match="no_such_module is not installed; run: pip install no-such-package"):
        run_study(study(folder), work=small / "work")
