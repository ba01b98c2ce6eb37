"""The claim check at a size that takes seconds: every claim is asked once, killed runs go on."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mintage.measure import Result
from mintage.models import load_causal_lm, tiny_causal_lm
from mintage.retrofit.contract import END
from mintage.retrofit.exact_bytes import ByteLM
from mintage.studies import exact_bytes as check

MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("s", "e"), ("se", "a"), ("Ġ", "sea"), ("Ġ", "Ġ"), ("a", "n")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model that has words and a token before every text."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    names = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for pair in MERGES:
        names["".join(pair)] = len(names)
    inner = Tokenizer(models.BPE(names, MERGES))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", pad_token="<pad>")
    tokenizer.save_pretrained(path)
    tiny_causal_lm(vocab_size=len(tokenizer), max_position_embeddings=1024).save_pretrained(path)
    return str(path)


@pytest.fixture
def small(tmp_path, monkeypatch):
    text = "the sea and then the other sea, and another: the end of the sea " * 5
    with gzip.open(tmp_path / "wikitext2_test_head.txt.gz", "wt") as file:
        file.writelines(f" {number} {text} \n" for number in range(3))
    with gzip.open(tmp_path / "humaneval.jsonl.gz", "wt") as file:
        for number in range(2):
            row = {
                "task_id": f"HumanEval/{number}",
                "prompt": 'def one(x):\n    """Return x."""\n',
                "canonical_solution": "    y = x\n    return y\n",
                "test": "def check(f):\n    assert f(3) == 3\n",
                "entry_point": "one",
            }
            file.write(json.dumps(row) + "\n")
    monkeypatch.setenv("MINTAGE_DATA", str(tmp_path))
    for name, value in {
        "KINDS": {"prose": 6},
        "LINES": 2,
        "LIBRARY": 2,
        "VOTES": {"prose": 2},
        "SCORED": 3,
        "WRITTEN": 3,
        "LINE": 4,
    }.items():
        monkeypatch.setattr(check, name, value)
    return tmp_path


def test_every_claim_is_asked_once(folder, small):
    told = []
    rows = check.run(
        model=folder, second=folder, work=small / "work", progress=lambda *step: told.append(step[:2]), limit=6
    )
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert told[-1][0] == told[-1][1]
    tested = [row for row in rows if isinstance(row, Result) and row.claim]
    assert len({row.claim for row in tested}) == len(tested)
    assert all(row.verdict in ("holds", "does not hold") for row in tested)
    assert len({row.identity for row in rows}) == len(rows)
    by = {row.metric: row for row in rows}
    assert by["forwards per byte after the first"].value <= 2
    votes = [row for row in rows if row.metric.startswith("bits per byte, prose")]
    assert all(abs(row.value) < 1e-6 for row in votes)  # a model and itself
    assert not (small / "work").exists()


def test_a_killed_check_goes_on(folder, small):
    def stop(done, of, label):
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check.run(model=folder, second=folder, work=small / "work", progress=stop)
    (held,) = (small / "work").glob("*.jsonl")
    assert len(held.read_text().splitlines()) == 9


def test_cuts_end_at_characters_and_know_token_ends(folder, small):
    lm = ByteLM.of(load_causal_lm(folder, dtype="float32"))
    found = check.cuts(lm, "prose", 12, 0)
    assert found == check.cuts(lm, "prose", 12, 0)
    assert {cut.boundary for cut in found} == {True, False}
    for cut in found:
        cut.prompt.decode()
        tokens = lm.vocabulary.encode(cut.prompt + cut.rest)
        ends = np.cumsum([len(lm.vocabulary.tokens[t]) for t in tokens])
        assert cut.boundary == (len(cut.prompt) in ends)


def test_votes_are_those_of_the_ensemble():
    """Bits of the mean and the product, against the laws themselves."""
    from mintage.retrofit.exact_bytes import ByteEnsemble

    pair = list(ByteEnsemble.tiny().models)
    got = check.ensemble(pair, b"abba", first=1)
    for rule in ("mean", "product"):
        wanted = -ByteEnsemble(pair, rule=rule).continuation_logprob(b"a", b"bba") / np.log(2)
        assert got[rule] == pytest.approx(wanted)
    assert got["0"] == pytest.approx(-pair[0].continuation_logprob(b"a", b"bba") / np.log(2))
    assert got["bytes"] == 3
    assert END == 256


def test_programs_are_run_with_limits(tmp_path):
    assert check.passes("assert 1 + 1 == 2")
    assert not check.passes("assert 1 + 1 == 3")
    assert not check.passes("while True: pass", seconds=1.0)
    assert not check.passes("x = bytearray(1 << 31)")
    target = tmp_path / "written"
    assert not check.passes(f"with open({str(target)!r}, 'w') as file:\n    file.write('x' * 9)\n")
    assert not target.exists() or not Path(target).read_text()


def test_the_joint_run_has_its_arm(folder):
    lm = load_causal_lm(folder, dtype="float32")
    (name, arm), *rest = check.arms(lm, 0).items()
    assert (name, rest) == ("exact-bytes", [])
    made = arm("the sea")
    assert made.bytes == 7
    assert made.tokens == 2
    assert 0 < made.bits < 100
