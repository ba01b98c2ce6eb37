"""Data mixture inference: the replay, the linear program, and the audit on tokenizers trained here."""

import itertools
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from mintage.audit.core.merge_replay import replay
from mintage.audit.data_mixture import DataMixture, infer_mixture, merge_pair_counts
from mintage.data import Corpus
from mintage.errors import UserError

VECTORS = sorted((Path(__file__).parents[1] / "vectors" / "data-mixture").glob("*.npz"))


def opened(path):
    data = np.load(path)
    samples = {
        str(i): dict(zip(data["words"].tolist(), map(int, counts), strict=True))
        for i, counts in enumerate(data["word_counts"])
    }
    return data, samples, list(zip(data["merges_left"].tolist(), data["merges_right"].tolist(), strict=True))


# -- parity ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", VECTORS, ids=lambda p: p.stem)
def test_counts_are_those_of_the_vectors(path):
    data, samples, merges = opened(path)
    transcript = merge_pair_counts(samples, merges)
    place = {p: i for i, p in enumerate(zip(data["pair_left"].tolist(), data["pair_right"].tolist(), strict=True))}
    np.testing.assert_array_equal(transcript.denominators, data["denom"])
    for step, expected in enumerate(data["counts"]):
        found = np.zeros_like(expected)
        for pair, counts in transcript.at(step).items():
            found[:, place[pair]] = counts
        np.testing.assert_array_equal(found, expected)
    assert [transcript.pairs[p] for p in transcript.merge_pair] == merges
    np.testing.assert_array_equal(
        transcript.merge_counts, [c[:, p] for c, p in zip(data["counts"], data["merge_pair"], strict=True)]
    )


@pytest.mark.parametrize("path", VECTORS, ids=lambda p: p.stem)
def test_shares_are_those_of_the_vectors(path):
    data, samples, merges = opened(path)
    estimate = infer_mixture(merge_pair_counts(samples, merges))
    assert estimate.objective == pytest.approx(float(data["objective"]), abs=1e-8)
    np.testing.assert_allclose(list(estimate.shares.values()), data["alpha"], atol=1e-6)


# -- the replay --------------------------------------------------------------------------------------------------------


def recount(samples, merges, step):
    """Merge from scratch, word by word, left to right, and count."""
    out = Counter()
    for number, words in enumerate(samples.values()):
        for word, count in words.items():
            tokens = [word[i : i + 1] for i in range(len(word))]
            for left, right in merges[:step]:
                i, merged = 0, []
                while i < len(tokens):
                    if tokens[i : i + 2] == [left, right]:
                        merged.append(left + right)
                        i += 2
                    else:
                        merged.append(tokens[i])
                        i += 1
                tokens = merged
            for pair in itertools.pairwise(tokens):
                out[pair, number] += count
    return {key: count for key, count in out.items() if count}


@st.composite
def problems(draw):
    words = st.text("abc", min_size=1, max_size=9)
    samples = {name: draw(st.dictionaries(words, st.integers(0, 5), min_size=1, max_size=6)) for name in "xy"}
    samples["x"]["ab"] = samples["y"]["ba"] = 1
    tokens, merges = ["a", "b", "c"], []
    for _ in range(draw(st.integers(1, 8))):
        pair = draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))
        if pair not in merges:
            merges.append(pair)
            tokens.append("".join(pair))
    return samples, merges


@given(problems())
@settings(max_examples=150, deadline=None)
def test_every_step_equals_a_recount_from_scratch(problem):
    samples, merges = problem
    transcript = merge_pair_counts(samples, merges)
    for step in range(len(merges)):
        found = {
            (pair, number): count
            for pair, counts in transcript.at(step).items()
            for number, count in enumerate(counts)
            if count
        }
        assert found == recount(samples, merges, step)


def test_a_run_is_merged_from_the_left():
    transcript = merge_pair_counts({"x": {"aaaaa": 2}}, [("a", "a"), ("aa", "a")])
    assert transcript.at(0) == {("a", "a"): (8,)}
    assert transcript.at(1) == {("aa", "aa"): (2,), ("aa", "a"): (2,)}


def test_a_merge_whose_turn_has_passed_is_not_applied():
    merges = [("ab", "c"), ("a", "b"), ("c", "d")]
    assert merge_pair_counts({"x": {"abcd": 1}}, merges).at(2) == {("ab", "c"): (1,), ("c", "d"): (1,)}


def test_characters_that_are_no_tokens_break_a_word():
    transcript = merge_pair_counts({"x": {"ab?ab": 1}}, [("a", "b")], alphabet={"a", "b"})
    assert transcript.at(0) == {("a", "b"): (2,)}


def test_suffix_and_prefix_mark_symbols():
    held = replay(["aba", "a"], [("b", "a</w>")], suffix="</w>").counts({"x": np.array([3, 9])})
    assert held.at(0) == {("a", "b"): (3,), ("b", "a</w>"): (3,)}
    held = replay(["aba"], [("a", "##b"), ("ab", "##a")], prefix="##").counts({"x": np.array([3])})
    assert held.at(1) == {("ab", "##a"): (3,)}


def test_chunks_and_long_words_change_little(monkeypatch):
    samples = {"x": {"abcab" * n: n for n in range(1, 9)}}
    merges = [("a", "b"), ("ab", "c"), ("abc", "ab")]
    whole = merge_pair_counts(samples, merges)
    monkeypatch.setattr("mintage.audit.core.merge_replay._CHUNK", 7)
    parts = merge_pair_counts(samples, merges)
    assert [parts.at(t) for t in range(3)] == [whole.at(t) for t in range(3)]


def test_only_changes_are_kept():
    transcript = merge_pair_counts({"x": {"ab": 1, "cd": 1, "ef": 1}}, [("a", "b"), ("c", "d"), ("e", "f")])
    assert len(transcript.pair) == 5  # three pairs at first, two that go before the last step


def test_counts_beyond_32_bits():
    transcript = merge_pair_counts({"x": {"ab": 2**33}}, [("a", "b")])
    assert transcript.at(0) == {("a", "b"): (2**33,)}


@pytest.mark.parametrize(
    ("samples", "merges", "message"),
    [
        ({}, [("a", "b")], "no category"),
        ({"x": {"ab": 1}}, [], "merge list is empty"),
        ({"x": {"ab": 1}}, [("a", "b"), ("a", "b")], "comes twice"),
        ({"x": {"a": 1}}, [("a", "b")], "side by side"),
        ({"x": {"ab": 1}, "y": {"a": 4}}, [("a", "b")], "'y'"),
    ],
)
def test_replay_refuses(samples, merges, message):
    with pytest.raises(UserError, match=message) as told:
        merge_pair_counts(samples, merges)
    assert "\n" not in str(told.value)


# -- the linear program ------------------------------------------------------------------------------------------------


def toy(seed, categories=3, merges=25):
    """Draw words of made-up languages and train on a mixture of them, ties to the first pair as in the replay."""
    draw = random.Random(seed)
    samples = {}
    for number in range(categories):
        letters = draw.sample("abcdefghij", 6)
        words = ["".join(draw.choices(letters, weights=range(1, 7), k=draw.randint(2, 7))) for _ in range(30)]
        samples[f"language {number}"] = {w: draw.randint(1, 60) for w in words}
    weights = [draw.random() for _ in samples]
    chosen = []
    for _ in range(merges):
        step = len(chosen)
        pooled = Counter()
        for (pair, number), count in recount(samples, chosen, step).items():
            pooled[pair] += weights[number] * count
        chosen.append(max(pooled, key=lambda p: (pooled[p], p)))
    pairs = [sum(c * (len(w) - 1) for w, c in words.items()) for words in samples.values()]
    share = np.array(weights) * pairs
    return samples, chosen, share / share.sum()


def full_program(transcript):
    """Solve with all constraints at once, by scipy."""
    from scipy.optimize import linprog

    n, pairs, steps = len(transcript.categories), transcript.pairs, transcript.steps
    rows = []
    place = {pair: i for i, pair in enumerate(pairs)}
    for step in range(steps):
        here = transcript.at(step)
        merge = pairs[transcript.merge_pair[step]] if transcript.merge_pair[step] >= 0 else None
        if merge not in here:
            continue
        for pair in here:
            if pair != merge:
                row = np.zeros(n + steps + len(pairs))
                row[:n] = (np.array(here[merge]) - np.array(here[pair])) / transcript.denominators
                row[n + step] = row[n + steps + place[pair]] = 1
                rows.append(row)
    size = n + steps + len(pairs)
    cost = np.r_[np.zeros(n), np.ones(size - n)]
    total = np.r_[np.ones(n), np.zeros(size - n)][None]
    found = linprog(cost, A_ub=-np.array(rows), b_ub=np.zeros(len(rows)), A_eq=total, b_eq=[1], method="highs")
    return found.fun


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("batch", "rows_per_round"), [(10, 500), (1, 7)])
def test_lazy_constraints_reach_the_optimum_of_the_full_program(seed, batch, rows_per_round):
    samples, merges, _ = toy(seed)
    noisy = {
        name: {w: max(0, c + random.Random(w).randint(-9, 9)) for w, c in s.items()} for name, s in samples.items()
    }
    transcript = merge_pair_counts(noisy, merges)
    estimate = infer_mixture(transcript, batch=batch, rows_per_round=rows_per_round)
    assert estimate.objective == pytest.approx(full_program(transcript), abs=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_true_shares_are_feasible_without_slack(seed):
    samples, merges, truth = toy(seed, merges=40)
    transcript = merge_pair_counts(samples, merges)
    estimate = infer_mixture(transcript)
    assert estimate.objective == pytest.approx(0, abs=1e-9)
    assert abs(np.array(list(estimate.shares.values())) - truth).max() < 0.1
    for step in range(transcript.steps):
        mixed = {p: np.dot(truth, np.array(c) / transcript.denominators) for p, c in transcript.at(step).items()}
        assert mixed[merges[step]] == pytest.approx(max(mixed.values()), abs=1e-12)


def test_one_category_has_all():
    samples, merges, _ = toy(0)
    name, words = next(iter(samples.items()))
    estimate = infer_mixture(merge_pair_counts({name: words}, merges))
    assert estimate.shares == {name: 1.0}


def test_a_larger_sample_of_the_same_words_changes_nothing():
    samples, merges, _ = toy(1)
    larger = {name: {w: c * (7 if name.endswith("1") else 1) for w, c in s.items()} for name, s in samples.items()}
    one, other = (infer_mixture(merge_pair_counts(s, merges)) for s in (samples, larger))
    assert other.shares == pytest.approx(one.shares, abs=1e-9)


def test_shares_follow_the_names():
    _, samples, merges = opened(VECTORS[0])
    turned = dict(reversed(samples.items()))
    one, other = (infer_mixture(merge_pair_counts(s, merges)).shares for s in (samples, turned))
    assert list(other) == list(reversed(one))
    assert other == pytest.approx(one, abs=1e-9)


def test_halves_of_a_category_add_up():
    _, samples, merges = opened(VECTORS[-1])
    whole = infer_mixture(merge_pair_counts(samples, merges)).shares
    draw = np.random.default_rng(0)
    first = {w: int(draw.binomial(c, 0.5)) for w, c in samples["0"].items()}
    second = {w: c - first[w] for w, c in samples["0"].items()}
    split = infer_mixture(merge_pair_counts({**samples, "0": first, "half": second}, merges)).shares
    assert split["0"] + split["half"] == pytest.approx(whole["0"], abs=0.02)


def test_a_warm_start_finds_the_same():
    samples, merges, _ = toy(2)
    transcript = merge_pair_counts(samples, merges)
    cold = infer_mixture(transcript)
    warm = infer_mixture(transcript, active=cold.active)
    assert warm.objective == pytest.approx(cold.objective, abs=1e-10)
    assert warm.rounds < cold.rounds


def test_absent_merges_say_nothing():
    samples, merges, _ = toy(3)
    between = [*merges[:5], ("!", "?"), *merges[5:]]
    one, other = (infer_mixture(merge_pair_counts(samples, m)) for m in (merges, between))
    assert other.shares == pytest.approx(one.shares, abs=1e-9)
    assert other.objective == pytest.approx(one.objective, abs=1e-9)


def test_a_share_of_bytes_uses_the_sizes():
    samples, merges, _ = toy(0)
    transcript = merge_pair_counts(samples, merges)
    pairs = infer_mixture(transcript).shares
    sizes = {name: 10 * (i + 1) for i, name in enumerate(samples)}
    in_bytes = infer_mixture(transcript, unit="bytes", sample_bytes=sizes).shares
    raw = {n: pairs[n] * sizes[n] / d for n, d in zip(samples, transcript.denominators, strict=True)}
    assert in_bytes == pytest.approx({n: v / sum(raw.values()) for n, v in raw.items()})


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"rows_per_round": 0}, {"tol": 0.0}, {"unit": "bytes"}])
def test_infer_refuses(wrong):
    with pytest.raises(UserError):
        infer_mixture(merge_pair_counts({"x": {"ab": 1}}, [("a", "b")]), **wrong)


def test_infer_refuses_merges_of_other_text():
    with pytest.raises(UserError, match="none of the merges"):
        infer_mixture(merge_pair_counts({"x": {"ab": 1}}, [("c", "d")]))


def test_the_solver_prints_nothing(capfd):
    infer_mixture(merge_pair_counts({"x": {"abab": 1}}, [("a", "b"), ("ab", "ab")]))
    assert capfd.readouterr() == ("", "")


# -- the audit ---------------------------------------------------------------------------------------------------------

CONSONANTS = {"north": "bdgkmn", "south": "lprstv", "east": "cfhjwz"}


def language(name, documents, seed):
    """Make documents of words that follow a frequency law of their own."""
    made = random.Random(name)
    syllables = [c + v for c in CONSONANTS[name] for v in "aeiou"]
    words = ["".join(made.choices(syllables, k=made.randint(1, 4))) for _ in range(400)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    draw = random.Random(seed)
    return [" ".join(draw.choices(words, weights, k=40)) for _ in range(documents)]


def trained(texts, merges=300):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + merges, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def mixture():
    parts = {"north": language("north", 400, 1), "south": language("south", 150, 2), "east": language("east", 50, 3)}
    texts = [text for part in parts.values() for text in part]
    sizes = np.array([sum(map(len, part)) for part in parts.values()])
    samples = {name: language(name, 200, 10 + i) for i, name in enumerate(parts)}
    return trained(texts), samples, dict(zip(parts, (sizes / sizes.sum()).tolist(), strict=True))


def shares(report):
    return {row["category"]: row["share of bytes"] for row in report.table}


def test_the_mixture_is_found(mixture):
    tokenizer, samples, truth = mixture
    report = DataMixture(samples=samples).run(tokenizer, name="three")
    found = shares(report)
    assert found == pytest.approx(truth, abs=0.02)
    assert sum((found[n] - truth[n]) ** 2 for n in truth) * 100 < sum((1 / 3 - v) ** 2 for v in truth.values())
    assert all(row["low"] <= row["share of bytes"] <= row["high"] for row in report.table)
    assert report.figures[0].data["categories"] == list(truth)
    assert report.findings["largest share"] == "north"


def test_a_missing_category_is_noted(mixture):
    tokenizer, samples, _ = mixture
    without = {name: texts for name, texts in samples.items() if name != "south"}
    whole, part = (DataMixture(samples=s, bootstrap=0).run(tokenizer) for s in (samples, without))
    assert not any("occur in no sample" in note for note in whole.notes)
    assert any("occur in no sample" in note for note in part.notes)  # its letters are no other's
    assert all(row["low"] is None for row in part.table)


def test_a_file_in_two_processes_counts_as_the_list(mixture, tmp_path):
    tokenizer, samples, _ = mixture
    corpora = {}
    for name, texts in samples.items():
        (tmp_path / f"{name}.txt").write_text("".join(text + "\n" for text in texts), encoding="utf-8")
        corpora[name] = Corpus(tmp_path / f"{name}.txt")
    with_newline = {name: [text + "\n" for text in texts] for name, texts in samples.items()}
    one = DataMixture(samples=with_newline, bootstrap=2).run(tokenizer, name="it")
    two = DataMixture(samples=corpora, bootstrap=2, processes=2, work=tmp_path / "work").run(tokenizer, name="it")
    assert one == two


def test_too_few_documents_are_said(mixture):
    tokenizer, samples, _ = mixture
    few = {**samples, "east": [" ".join(samples["east"])]}
    notes = DataMixture(samples=few, bootstrap=2).run(tokenizer).notes
    assert any("Too few documents to resample: east; the intervals leave" in note for note in notes)
    report = DataMixture(samples={name: [" ".join(texts)] for name, texts in samples.items()}).run(tokenizer)
    assert any("there are no intervals" in note for note in report.notes)
    assert {row["low"] for row in report.table} == {None}


def test_rare_merges_are_left_out(mixture):
    tokenizer, samples, _ = mixture
    small = {name: texts[:8] for name, texts in samples.items()}
    report = DataMixture(samples=small, bootstrap=0, min_count=30).run(tokenizer)
    assert report.findings["merges used"] < 300
    assert any("the first 100 were used" in note or "the first 200 were used" in note for note in report.notes)


def test_transformers_tokenizers_are_taken(mixture):
    from transformers import PreTrainedTokenizerFast

    tokenizer, samples, _ = mixture
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    audit = DataMixture(samples=samples, bootstrap=0)
    assert shares(audit.run(wrapped)) == shares(audit.run(tokenizer))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": {}}, "no category"),
        ({"samples": {"a": ["x"]}, "max_merges": 0}, "max_merges=0"),
        ({"samples": {"a": ["x"]}, "bootstrap": -1}, "bootstrap=-1"),
        ({"samples": {"a": ["x"]}, "min_count": -1}, "min_count=-1"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        DataMixture(**settings)


def test_an_empty_sample_is_named(mixture):
    with pytest.raises(UserError, match="'none' is empty"):
        DataMixture(samples={"none": []}).run(mixture[0])


def test_other_models_are_refused(mixture):
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(UserError, match="WordLevel"):
        DataMixture(samples=mixture[1]).run(words)
