import json

import numpy as np
import pytest
import torch

from mintage import catalog
from mintage.bench.keep import inputs, joint, measures
from mintage.bench.keep.prefix import Prefix
from mintage.errors import UserError
from mintage.measure import Figure, Result
from mintage.measure.study import Run
from mintage.models import cache_of, load_causal_lm, with_cache

READY = [name for name in joint.ready_policies() if catalog.find(name).package == "mintage"]


@pytest.fixture(scope="module")
def lm(tiny_folder):
    return load_causal_lm(tiny_folder, dtype="float32")


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """Two speeches, a play, and a short one."""
    rows = [
        {"corpus": "state_union", "file": "1950.txt", "text": "We the people of the harbour meet again. " * 60},
        {"corpus": "inaugural", "file": "1951.txt", "text": "The tide comes in, and the tide goes out. " * 60},
        {"corpus": "shakespeare", "file": "hamlet.txt", "text": "To be, or not to be. " * 200},
        {"corpus": "inaugural", "file": "short.txt", "text": "Thank you."},
    ]
    folder = tmp_path / "data"
    folder.mkdir()
    import gzip

    with gzip.open(folder / "long_docs.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("MINTAGE_DATA", str(folder))
    monkeypatch.setattr(joint, "DECODED", 6)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("name", READY)
def test_what_is_replayed_equals_what_is_read(lm, name):
    """The cache made from a recorded read is the one that the policy makes itself, entry by entry."""
    policy = catalog.find(name, "keep").load().tiny()
    ids = torch.randint(0, 200, (1, 40), generator=torch.Generator().manual_seed(0))
    with policy(lm.model) as session, torch.inference_mode():
        out = lm.model(ids, use_cache=True)
        wanted = cache_of(out)
        following = lm.model(ids[:, :1], **with_cache(lm.model, wanted), use_cache=True).logits
    prefix = Prefix(lm, ids)
    with policy(lm.model) as session, torch.inference_mode():
        cache, logits, seconds = prefix.replay(session)
        got = lm.model(ids[:, :1], **with_cache(lm.model, cache), use_cache=True).logits
    assert seconds > 0
    assert torch.allclose(logits, out.logits[0, -1], atol=1e-5)
    assert torch.allclose(got, following, atol=1e-5)
    assert cache.nbytes() == wanted.nbytes()
    for mine, theirs in zip(cache.kept_layers, wanted.kept_layers, strict=True):
        assert torch.equal(mine.positions, theirs.positions)
        assert torch.equal(mine["value"], theirs["value"])


def test_speeches_are_cut_to_length_and_short_ones_left_out(lm, texts):
    found = inputs.long_texts(lm, 100, 2)
    assert [ids.shape for _, ids in found] == [(1, 100)] * 2
    assert {name for name, _ in found} == {"1950.txt", "1951.txt"}
    with pytest.raises(UserError, match=r"^only 2 of the texts have 100 tokens"):
        inputs.long_texts(lm, 100, 3)


def test_pass_keys_are_hidden_all_over_the_text(lm, texts):
    made = inputs.questions(lm, 400, 6, seed=0)
    again = inputs.questions(lm, 400, 6, seed=0)
    assert made == again != inputs.questions(lm, 400, 6, seed=1)
    depths = [q.context.index(q.answer) / len(q.context) for q in made]
    assert depths == sorted(depths)
    assert depths[0] < 0.4
    assert depths[-1] > 0.7
    assert all(q.context.count(q.answer) == 2 and q.answer not in q.question for q in made)


@pytest.mark.parametrize("needle", inputs.NEEDLES)
def test_a_context_shorter_than_its_needle_is_no_whole_speech(lm, texts, needle):
    whole = min(ids.shape[1] for _, ids in inputs.long_texts(lm, 600, 2))
    for question in inputs.questions(lm, 64, 2, 0, needle):
        assert question.context.count(question.answer) == 2
        assert len(question.context) < 200 < whole


def test_every_arm_has_a_row_for_every_metric(tiny_folder, texts, tmp_path):
    seen = []
    bench = joint.KeepBench(model=tiny_folder, contexts=(128,), room=(4, 8), texts=2, dtype="float32")
    rows = bench.run(["streaming-llm", "snapkv:window=4"], progress=lambda *step: seen.append(step))
    results = [r for r in rows if isinstance(r, Result)]
    stages = {stage for stage, _, _ in seen}
    assert {stage for stage, done, of in seen if done == of} == stages
    assert len(stages) == 5
    metrics = {(r.method, r.metric) for r in results}
    for part in (4, 8):
        for metric in ("perplexity", "pass-key retrieval, question after", "UUID retrieval, question inside"):
            for method in ("full-cache", "streaming-llm", "snapkv"):
                assert (method, f"{metric} at 1/{part} of 128 tokens") in metrics
        for metric in ("cache size", "elements read", "prefill time", "decode time"):
            assert ("snapkv", f"{metric} at 1/{part} of 128 tokens") in metrics
    sizes = {r.metric: r.value for r in results if r.method == "streaming-llm" and r.metric.startswith("cache size")}
    assert sizes["cache size at 1/8 of 128 tokens"] < sizes["cache size at 1/4 of 128 tokens"] < 0.35
    figures = {f.name for f in rows if isinstance(f, Figure)}
    assert {"perplexity-128", "pass-key-128", "uuid-128", "decode-time", "survivors-streaming-llm"} <= figures
    assert not (tmp_path / ".mintage" / "bench" / "keep").exists()


def test_a_killed_run_goes_on(tiny_folder, texts, monkeypatch):
    bench = joint.KeepBench(model=tiny_folder, contexts=(64,), room=(4,), texts=1, dtype="float32")

    def stop(stage, done, of):
        if "retrieval" in stage or "after" in stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run(["tova"], progress=stop)
    measured = []
    real = measures.score_continuation
    monkeypatch.setattr(measures, "score_continuation", lambda *a: measured.append(1) or real(*a))
    bench.run(["tova"])
    assert len(measured) == 0


def test_without_names_all_that_serve_the_model_are_measured(tiny_folder, texts, monkeypatch):
    """Those that do not are left out with the reason; those that need company are not asked."""
    columns = {"nll": 1.0, "prefill": 1.0, "step": 1.0, "bytes": 1, "reads": 1.0}
    monkeypatch.setattr(measures, "score_continuation", lambda *a: columns)
    monkeypatch.setattr(measures, "answer_to", lambda *a: "")
    bench = joint.KeepBench(model=tiny_folder, contexts=(64,), room=(4,), texts=1, dtype="float32")
    rows = [row for row in bench.run() if isinstance(row, Result)]
    left_out = rows[0].settings["left out"]
    assert list(left_out) == ["double-sparsity"]  # its shipped calibration is of another model
    assert "token-ring" not in left_out
    assert {row.method for row in rows} == {*READY} - {"double-sparsity"}
    with pytest.raises(UserError, match="calibrat"):
        bench.run(["double-sparsity"])


class _Measured(Run):
    """A run whose columns are given."""

    def __init__(self, **columns):
        self.columns = columns

    def column(self, arm, of):
        return np.array(self.columns[arm.partition(" ")[0]].get(of, 1.0)) * np.ones(4)


def test_the_claim_of_speed_needs_long_contexts_and_found_needles():
    found = dict.fromkeys(joint.RETRIEVAL, 1.0)
    lost = dict.fromkeys(joint.RETRIEVAL, 0.5)
    arms = {"full-cache": {"step": 2.0, **found}, "tova": {"step": 1.5, **found}, "knorm": {"step": 1.0, **lost}}
    specs, long = [*arms], [joint.Place(4096, 8)]

    def verdict(**changed):
        run = _Measured(**{**arms, **changed})
        (row,) = joint.fastest(run, specs, long)
        return row, row.holds.passes(row.value)

    row, holds = verdict()
    assert row.method == "tova"  # knorm is faster and lost the needle
    assert row.value.value == 0.75
    assert holds
    assert not verdict(tova={"step": 2.5, **found})[1]
    assert not [*joint.fastest(_Measured(**arms), specs, [joint.Place(1024, 8)])]


@pytest.mark.parametrize(
    ("settings", "specs", "said"),
    [
        ({"contexts": (32,)}, ["snapkv"], "contexts=.* at least 64"),
        ({"room": (1,)}, ["snapkv"], "room=.* at least 2"),
        ({}, ["snapkvv"], "did you mean 'snapkv'"),
        ({}, ["snapkv:widow=3"], "did you mean 'window'"),
    ],
    ids=["context", "room", "method", "setting"],
)
def test_mistakes_are_told_before_a_model_loads(settings, specs, said, monkeypatch):
    monkeypatch.setattr(joint, "load_causal_lm", lambda *a, **k: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match=said):
        joint.KeepBench(**settings).run(specs)
