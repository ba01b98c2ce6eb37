"""The claim check at a size that takes seconds: every claim is asked once, and a killed run goes on."""

import gzip
import json
from importlib.util import find_spec

import numpy as np
import pytest
from scipy.stats import spearmanr
from transformers import BertConfig, BertModel

from mintage.errors import UserError
from mintage.measure import Figure, Result
from mintage.studies import dynamic_tokens as claim

pytestmark = pytest.mark.skipif(find_spec("faiss") is None, reason="faiss is not installed")

SMALL = {
    "DOMAINS": ("de", "code"),
    "TEXTS": 2,
    "SIZE": 96,
    "LENGTHS": (24, 2048),
    "ROUNDS": 2,
    "ROWS": 900,
    "GRAPH_ROWS": 400,
    "QUERIES": 20,
    "SEARCHES": 3,
    "PAIRS": 12,
}


@pytest.fixture
def small(tmp_path, monkeypatch, tiny_folder):
    def write(name, rows):
        with gzip.open(tmp_path / name, "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    text = "Die Verordnung regelt die Verteilung der Verantwortung in den Verwaltungen. " * 40
    write("xquad.jsonl.gz", [{"lang": "de", "par": n, "context": f"{n} {text}"} for n in range(3)])
    write("tatoeba_parallel.jsonl.gz", [{"lang": "deu", "text": f"Wort{n} und Satz{n} stehen hier"} for n in range(30)])
    pairs = [(f"a plane number {n} flies", f"a number {n % 5} of planes", n % 6) for n in range(40)]
    write("sts.jsonl.gz", [{"set": "stsb", "split": "dev", "s1": a, "s2": b, "score": s} for a, b, s in pairs])
    with gzip.open(tmp_path / "wikitext2_test_head.txt.gz", "wt") as file:
        file.writelines(
            f" The river {n} runs through the town and out to the sea , they say . " * 12 + "\n" for n in range(9)
        )
    monkeypatch.setenv("MINTAGE_DATA", str(tmp_path))
    for name, value in SMALL.items():
        monkeypatch.setattr(claim, name, value)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = BertModel(config).eval()
    monkeypatch.setattr(claim, "minilm", lambda: (model, tokenizer))
    monkeypatch.setattr(claim, "_NEEDED", {})
    return tmp_path


def test_every_claim_is_asked_once(small, tiny_folder):
    told = []
    rows = claim.run(model=tiny_folder, work=small / "work", progress=lambda *step: told.append(step[:2]))
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert told[-1][0] == told[-1][1]
    tested = [row for row in rows if isinstance(row, Result) and row.claim]
    assert len({row.claim for row in tested}) == len(tested) == 5  # the composer's two need a composer
    assert all(row.verdict in ("holds", "does not hold") for row in tested)
    assert len({row.identity for row in rows}) == len(rows)
    assert {row.name for row in rows if isinstance(row, Figure)} == {
        "dynamic-tokens-quality",
        "dynamic-tokens-prefill",
    }
    assert not (small / "work").exists()


def test_a_killed_check_goes_on(small, tiny_folder):
    """What was measured before the kill is not measured again."""

    def kill(done, of, label):
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        claim.run(model=tiny_folder, work=small / "work", progress=kill)
    kept = next((small / "work").glob("*.jsonl")).read_text()
    assert len(kept.splitlines()) == 9


def test_random_merges_make_a_text_as_short_within_the_boundary(small, tiny_folder):
    from mintage.models import load_causal_lm

    readers = claim._Readers(load_causal_lm(tiny_folder, dtype="float32"))
    ids = readers.merger.ids(["some words and some other words"])[0]
    goal = readers.merger.merge_ids([ids], reduction=0.5)
    drawn = claim._random_merges(readers.merger, ids, goal.length, seed=1)
    assert goal.length - 2 <= drawn.length <= goal.length
    assert drawn.merges != goal.merges
    assert b"".join(drawn.surfaces(0)) == b"".join(goal.surfaces(0))
    assert all(b" " not in surface[1:] for surface in drawn.surfaces(0))


def test_rank_correlation_is_spearmans():
    draw = np.random.default_rng(0)
    one, other = draw.integers(0, 5, (3, 40)), draw.random((3, 40))
    wanted = [spearmanr(a, b).statistic for a, b in zip(one, other, strict=True)]
    assert np.allclose(claim._spearman(one, other), wanted)


def test_a_missing_package_is_told_before_anything_is_measured(small, tiny_folder, monkeypatch):
    monkeypatch.setattr(claim, "_NEEDED", {"no_such_module": "no-such-package"})
    with pytest.raises(UserError, match="no_such_module is not installed; run: pip install no-such-package"):
        claim.run(model=tiny_folder, work=small / "work")
