"""The claim checks of the papers, at a size that takes seconds: every claim is asked once and killed runs go on."""

import gzip
import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from mintage.bench.keep import prefix as bench
from mintage.bench.keep.trial import Trial, perplexity, perplexity_ratio
from mintage.keep import double_sparsity
from mintage.keep.double_sparsity import ChannelOrder
from mintage.measure import Result
from mintage.models import tiny_causal_lm

SMALL = {"LENGTH": 128, "DECODED": 4, "TEXTS": 2, "QUESTIONS": 2}


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    """The tiny model with heads of 16, which the checks' 16 channels need."""
    made = tmp_path_factory.mktemp("wide") / "tiny"
    shutil.copytree(tiny_folder, made)
    (made / "model.safetensors").unlink()
    vocabulary = json.loads((Path(tiny_folder) / "config.json").read_text())["vocab_size"]
    tiny_causal_lm(vocab_size=vocabulary, hidden_size=64, head_dim=16, max_position_embeddings=2048).save_pretrained(
        made
    )
    return str(made)


@pytest.fixture
def small(tmp_path, monkeypatch):
    with gzip.open(tmp_path / "long_docs.jsonl.gz", "wt") as file:
        for corpus, name in (("inaugural", "1.txt"), ("state_union", "2.txt"), ("genesis", "english.txt")):
            for number in range(2):
                text = f"We the people of harbour {number} meet again, and count the boats. " * 80
                file.write(json.dumps({"corpus": corpus, "file": name, "text": text}) + "\n")
    monkeypatch.setenv("MINTAGE_DATA", str(tmp_path))
    shipped = tmp_path / "channels.safetensors"
    ChannelOrder(torch.rand(2, 4, 16)).save(shipped)
    monkeypatch.setattr(double_sparsity, "_SHIPPED", shipped)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "settings", "claims"),
    [
        ("double_sparsity", {}, 4),
        ("token_select", {"SHORT": 192, "LONG": 256}, 10),
        ("full_cache", {"LENGTHS": (64, 128), "PART": 4, "TURNS": 2}, 1),
    ],
)
def test_every_claim_is_asked_once(name, settings, claims, folder, small, monkeypatch):
    module = importlib.import_module(f"mintage.studies.{name}")
    for key, value in {**SMALL, **settings}.items():
        if hasattr(module, key):
            monkeypatch.setattr(module, key, value)
    told = []
    rows = module.check(model=folder, work=small / "work", progress=lambda *step: told.append(step[:2]))
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert told[-1][0] == told[-1][1]
    tested = [row for row in rows if isinstance(row, Result) and row.claim]
    assert len({row.claim for row in tested}) == len(tested) == claims
    assert all(row.verdict in ("holds", "does not hold") for row in tested)
    assert len({row.identity for row in rows}) == len(rows)
    assert not (small / "work").exists()


def test_a_killed_check_goes_on(folder, small, monkeypatch):
    """What was measured before is not measured again."""
    from mintage.keep import FullCache, StreamingLLM

    arms = {"full": FullCache(), "window": StreamingLLM(budget=16)}
    measured = []
    decode = bench.score_continuation

    def counted(prefix, policy, rest):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(policy)
        return decode(prefix, policy, rest)

    def trial():
        settings = {"seed": 0, "command": "", "definition": {}, "total": 4, "model": folder}
        return Trial("ems", **settings, work=small / "work")

    with pytest.raises(KeyboardInterrupt):
        trial().decoded(arms, 64, 2, 4, measure=counted)
    del measured[:1]
    found = trial().decoded(arms, 64, 2, 4, measure=counted)
    assert len(measured) == 3
    assert found["full"]["nll"].shape == (2,)
    assert perplexity(found["full"]["nll"]) > 1
    assert perplexity_ratio(found["full"]["nll"], found["full"]["nll"]).value == 1


def test_the_length_is_the_one_from_which_it_stays_faster():
    from mintage.measure import Interval
    from mintage.studies.full_cache import breakeven

    def ratios(*highs):
        return {512 * 2**i: Interval(high - 0.1, high - 0.05, high) for i, high in enumerate(highs)}

    assert breakeven(ratios(1.3, 0.9, 0.8)) == 1024
    assert breakeven(ratios(0.9, 1.01, 0.8)) == 2048  # faster at 512, but not from there on
    assert breakeven(ratios(0.9, 0.8, 1.0)) is None


def test_the_ring_is_exact_and_its_claims_hold():
    module = importlib.import_module("mintage.studies.token_ring")
    rows = [row for row in module.check() if isinstance(row, Result)]
    assert [row.verdict for row in rows if row.claim] == ["holds"] * 4
