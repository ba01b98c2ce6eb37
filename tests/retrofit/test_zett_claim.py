"""The claim check at a size that takes seconds: with a hypernetwork and without one, and after a kill."""

import gzip
import json

import pytest
import torch
from transformers import AutoTokenizer

from mintage.bench.retrofit.measures import bits_of
from mintage.errors import UserError
from mintage.measure import Figure, Result
from mintage.models import load_causal_lm
from mintage.retrofit import zett
from mintage.retrofit.core.composer import Parts
from mintage.retrofit.core.token_bytes import TokenBytes
from mintage.retrofit.zett import Hypernetwork, HypernetworkShape, save_hypernetwork
from mintage.studies import zett as claim

SMALL = {
    "TARGETS": {"english": ("prose", 400), "german": ("de", 400)},
    "TUNED": "english",
    "METHODS": ("zett", "fvt", "focus", "lexical"),
    "TEXTS": 2,
    "SIZE": 96,
    "STEPS": 2,
    "MARKS": (0, 2),
    "ROWS": 2,
    "WINDOW": 16,
}


@pytest.fixture(scope="module")
def tiny_folder(save_tiny_model, tmp_path_factory):
    """A tiny model whose tokenizer has a token that starts texts."""
    folder = save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", tie_word_embeddings=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "<pad>"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def small(tmp_path, monkeypatch, tiny_folder):
    text = "Die Verordnung regelt die Verteilung der Verantwortung in den Verwaltungen. " * 4
    with gzip.open(tmp_path / "xquad.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"lang": "de", "par": n, "context": f"{n} {text}"}) + "\n" for n in range(8))
    for name in ("wikitext2_test_head", "wikitext2_valid"):
        with gzip.open(tmp_path / f"{name}.txt.gz", "wt") as file:
            file.writelines(f" {name} {n} the river runs through the town to the sea . " * 4 + "\n" for n in range(8))
    monkeypatch.setenv("MINTAGE_DATA", str(tmp_path))
    for name, value in SMALL.items():
        monkeypatch.setattr(claim, name, value)
    monkeypatch.setattr(zett, "shipped_hypernetwork", lambda: tmp_path / "net.safetensors")
    return tmp_path


@pytest.fixture
def trained(small, tiny_folder):
    """A hypernetwork of the tiny model, in the place of the one that ships."""
    lm = load_causal_lm(tiny_folder, dtype="float32")
    source = Parts(lm.model, TokenBytes(lm.tokenizer))
    shape = HypernetworkShape(width=source.input.shape[1], tied=source.tied, hidden=16, inner=16, layers=1, heads=2)
    with torch.random.fork_rng():
        save_hypernetwork(
            Hypernetwork(shape, len(source.input)), source, small / "net.safetensors", notes={"model": tiny_folder}
        )
    return small


def test_every_claim_is_asked_once(trained, tiny_folder):
    told = []
    rows = claim.run(model=tiny_folder, work=trained / "work", progress=lambda *step: told.append(step[:2]))
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert told[-1][0] == told[-1][1]
    tested = [row for row in rows if isinstance(row, Result) and row.claim]
    assert len({row.claim for row in tested}) == len(tested) == 3
    saved = next(row for row in tested if "fvt" in row.metric)
    assert saved.value == pytest.approx(0, abs=0.05)  # untrained, it is FVT, but for the eighth part of a token
    assert saved.verdict == "does not hold"
    own = next(row for row in tested if "own tokenizer" in row.metric)
    assert own.verdict == "holds"
    assert {row.name for row in rows if isinstance(row, Figure)} == {"zett-tokenizers", "zett-tuning"}
    assert len({row.identity for row in rows}) == len(rows)
    assert not (trained / "work").exists()


def test_without_a_hypernetwork_the_rivals_are_measured(small, tiny_folder):
    rows = claim.run(model=tiny_folder, work=small / "work")
    assert not [row for row in rows if isinstance(row, Result) and row.claim]
    assert {row.settings["embeddings"] for row in rows if isinstance(row, Result)} == {"fvt", "focus", "lexical"}


def test_a_killed_check_goes_on(trained, tiny_folder):
    def killed(done, of, label):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        claim.run(model=tiny_folder, work=trained / "work", progress=killed)
    assert (trained / "work").exists()
    whole = claim.run(model=tiny_folder, work=trained / "work")
    fresh = claim.run(model=tiny_folder, work=trained / "other")
    assert [row.value for row in whole if isinstance(row, Result)] == pytest.approx(
        [row.value for row in fresh if isinstance(row, Result)], abs=1e-4
    )


def test_tuning_leaves_the_embeddings_as_they_were(trained, tiny_folder):
    trial = claim.Trial("zett", definition={}, model=tiny_folder, work=trained / "work")
    held = claim._Held(trial, 2)
    before = {n: w.clone() for n, w in held.given("english", "fvt").model.state_dict().items()}
    curve = claim._tune(held, "fvt", held.texts["prose"], 0)
    assert len(curve) == 2
    assert curve[1] != curve[0]
    assert all(torch.equal(before[n], w) for n, w in held.given("english", "fvt").model.state_dict().items())


def test_measured_texts_are_not_learnt_from(trained, tiny_folder):
    trial = claim.Trial("zett", definition={}, model=tiny_folder, work=trained / "work")
    held = claim._Held(trial, 2)
    measured = {document.text[:40] for document in held.texts["de"]}
    assert len(held.learnt("de")) == 6
    assert not [text for text in held.learnt("de") if text[:40] in measured]


def test_missing_data_are_named(small, tiny_folder, monkeypatch):
    (small / "xquad.jsonl.gz").unlink()
    with pytest.raises(UserError, match="xquad"):
        claim.run(model=tiny_folder, work=small / "work")


def test_the_joint_run_moves_the_model_to_one_tokenizer(trained, tiny_folder, monkeypatch):
    texts = [f"{n} the river runs; der Fluss läuft; def river(n): return n" for n in range(40)]
    monkeypatch.setattr(claim, "training_texts", lambda seed: texts)
    monkeypatch.setattr(claim, "JOINT_SIZE", 400)
    lm = load_causal_lm(tiny_folder, dtype="float32")
    arms = claim.arms(lm, 0)
    assert list(arms) == ["zett", "fvt", "focus"]
    found = {name: arm("der Fluss läuft") for name, arm in arms.items()}
    assert {bits.tokens for bits in found.values()} == {found["fvt"].tokens}
    assert found["fvt"].tokens < bits_of(lm, "der Fluss läuft").tokens
    assert all(0 < bits.bits < 1000 and bits.bytes == 16 for bits in found.values())
    (trained / "net.safetensors").unlink()
    assert list(claim.arms(lm, 0)) == ["fvt", "focus"]  # none was trained for this model
