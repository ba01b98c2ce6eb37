"""Less-is-Better: parity with the authors' numbers, the learner's laws, the greedy cut, resuming, errors."""

import copy
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.errors import UserError
from mintage.segment import LiB, LiBSegmenter
from mintage.segment.lexicon import Lexicon

VECTORS = Path(__file__).parents[1] / "vectors" / "lib"


def texts(array):
    return [item.decode() for item in array]


def from_vectors(held):
    initial = texts(held["initial_lexicon"])
    return Lexicon(
        initial,
        dict.fromkeys(initial, int(held["life"])),
        max_len=int(held["max_len"]),
        life=int(held["life"]),
        memorize=float(held["memorize_probability"]),
        forget=float(held["forget_share"]),
        update=float(held["update_rate"]),
        max_gap=int(held["max_gap"]),
    )


def check_agreement(lexicon):
    """List, ranks and trie are three views of one thing."""
    assert lexicon.ranks == {unit: rank for rank, unit in enumerate(lexicon.units)}
    assert len(set(lexicon.units)) == len(lexicon.units)
    ends = []

    def walk(node, prefix, shorter):
        longest, second = node[""]
        if prefix and longest == prefix:
            ends.append(prefix)
            assert second == shorter
            shorter = prefix
        assert longest == shorter
        assert prefix == "" or len(node) > 1 or longest == prefix  # nothing is left of what was forgotten
        for char, deeper in node.items():
            if char:
                walk(deeper, prefix + char, shorter)

    walk(lexicon._trie, "", "")
    assert sorted(ends) == sorted(lexicon.units)


# -- parity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["child_directed", "short_life"])
def test_training_is_the_authors(name):
    held = np.load(VECTORS / f"{name}.npz")
    lexicon = from_vectors(held)
    for number, article in enumerate(texts(held["articles"]), start=1):
        stats = lexicon.read(article.split("\n"), random.Random(number))
        np.testing.assert_allclose(stats, held["per_article_stats"][number - 1], rtol=0, atol=1e-9)
        if f"lexicon_after_{number}" in held:
            assert lexicon.units == texts(held[f"lexicon_after_{number}"])
            lives = held[f"probation_life_after_{number}"].tolist()
            assert lexicon.probation == dict(zip(texts(held[f"probation_after_{number}"]), lives, strict=True))
            check_agreement(lexicon)


@pytest.mark.parametrize("name", ["child_directed", "short_life"])
def test_reading_and_sub_units_are_the_authors(name):
    held = np.load(VECTORS / f"{name}.npz")
    lexicon = from_vectors(held)
    for article in texts(held["articles"]):
        lexicon.read(article.split("\n"), random.Random(0))
    segmenter = LiBSegmenter(lexicon.units, texts(held["initial_lexicon"]))
    tokens = segmenter.tokens()
    rows = zip(*(texts(held[key]) for key in ("test_sentences", "test_units", "test_subunits")), strict=True)
    for sentence, units, sub_units in rows:
        cut = [tokens[i].decode() for i in segmenter.encode(sentence)]
        assert cut == units.split("\x1f")
        assert [part for unit in cut for part in segmenter.decompose(unit)] == sub_units.split("\x1f")


# -- the learner --------------------------------------------------------------------------------------------------


def slow_read(lexicon, article, rng):
    """The reading loop as the paper's code states it: plain lists, searched and moved one by one."""
    units, probation, size = list(lexicon.units), dict(lexicon.probation), lexicon.max_len

    def longest(text):
        return next((text[:k] for k in range(min(size, len(text)), 0, -1) if text[:k] in units), "")

    events, proposed = [], set()
    for sentence in article:
        tests, last, i = {}, ("", False), 0
        while i < len(sentence):
            for unit in list(tests):
                end, own, rival = tests[unit]
                while end < i:
                    rival.append(longest(sentence[end:]))
                    end += len(rival[-1]) or 1
                tests[unit] = end, own, rival
                if end == i:
                    del tests[unit]
                    unknown, others = own.count(""), rival.count("")
                    steps = len(own) - unknown
                    sums = [sum(units.index(x) for x in path if x) for path in (own, rival)]
                    fewer = steps > len(rival) or (steps == len(rival) and sums[0] > sums[1])
                    if unknown > others or (unknown == others and fewer):
                        events += [(unit, 1), (longest(unit[:-1]), -1)]
                    else:
                        events.append((unit, -1))
                        probation.pop(unit, None)
            unit = longest(sentence[i:])
            second = longest(unit[:-1])
            for _, own, _ in tests.values():
                own.append(unit)
            if not unit:
                last = (sentence[i] if last[1] else last[0] + sentence[i], False)
                i += 1
                continue
            if 2 + len(unit) <= size and rng.random() < lexicon.memorize:
                new = last[0] + unit if last[1] else last[0]
                fits = len(new) <= (size if last[1] else lexicon.max_gap)
                if new and fits and new not in units:
                    if new in proposed:
                        proposed.remove(new)
                        units.append(new)
                    else:
                        proposed.add(new)
            if second:
                tests[unit] = i + len(second), [unit], [second]
            else:
                probation.pop(unit, None)
            i, last = i + len(unit), (unit, True)
    expired = {unit for unit, life in probation.items() if life <= 1}
    probation = {unit: life - 1 for unit, life in probation.items() if life > 1}
    units = [unit for unit in units if unit not in expired]
    for unit, direction in events:
        rank = units.index(unit) if unit in units else 0
        if rank:
            units.remove(unit)
            target = rank + direction * (int(rank * lexicon.update) + 1)
            if target <= len(units):
                units.insert(target, unit)
    for unit in units[int((1 - lexicon.forget) * len(units)) :]:
        probation.setdefault(unit, lexicon.life)
    return units, probation


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.text("abcü", max_size=25), max_size=6), min_size=1, max_size=8),
    st.sampled_from([0.3, 1.0]),
    st.integers(1, 4),
    st.integers(1, 7),
    st.sampled_from([0.0001, 0.2]),
    st.sampled_from([0.0, 0.2, 0.9]),
)
def test_reading_is_what_plain_lists_give(articles, memorize, life, max_len, forget, update):
    own = {"memorize": memorize, "life": life, "max_len": max_len, "forget": forget, "update": update}
    lexicon = Lexicon("abc", dict.fromkeys("abc", life), **own)
    for number, article in enumerate(articles):
        expected = slow_read(lexicon, article, random.Random(number))
        lexicon.read(article, random.Random(number))
        assert (lexicon.units, lexicon.probation) == expected
        check_agreement(lexicon)


def test_moves_over_many_blocks_are_those_of_a_list():
    from mintage.segment.lexicon import _moved

    rng = random.Random(3)
    units = [f"u{k}" for k in range(1500)]
    events = [(rng.choice(units), rng.choice([-1, -1, 1])) for _ in range(4000)]
    expected, dropped = list(units), []
    for unit, direction in events:
        if unit in expected and (rank := expected.index(unit)):
            expected.remove(unit)
            target = rank + direction * (int(rank * 0.2) + 1)
            if target <= len(expected):
                expected.insert(target, unit)
            else:
                dropped.append(unit)
    assert _moved(units, events, 0.2) == (expected, dropped)
    assert dropped


def test_promotion_lowers_the_rank_and_the_best_unit_stays():
    from mintage.segment.lexicon import _moved

    units = [f"u{k}" for k in range(300)]
    for rank in (1, 2, 150, 299):
        moved, _ = _moved(units, [(units[rank], -1)], 0.2)
        assert moved.index(units[rank]) == rank - int(rank * 0.2) - 1
    assert _moved(units, [("u0", -1), ("u0", 1)], 0.2) == (units, [])


def test_nothing_is_learned_without_memorising():
    lexicon = Lexicon("ab", {}, memorize=0.0)
    for number in range(20):
        assert lexicon.read(["abababab", "aabb"], random.Random(number)).added == 0
    assert sorted(lexicon.units) == ["a", "b"]


def test_a_unit_never_met_again_is_forgotten_after_its_life():
    lexicon = Lexicon(["a", "b", "xyz"], {"xyz": 3}, memorize=0.0, life=3)
    for number in range(3):
        assert "xyz" in lexicon.units
        lexicon.read(["abab"], random.Random(number))
    assert "xyz" not in lexicon.units
    check_agreement(lexicon)


def test_two_meetings_in_one_article_make_a_unit():
    lexicon = Lexicon("abc", {}, memorize=1.0)
    lexicon.read(["ab"], random.Random(0))
    lexicon.read(["ab"], random.Random(0))
    assert "ab" not in lexicon.units
    lexicon.read(["ab", "ab"], random.Random(0))
    assert "ab" in lexicon.units


def test_an_unknown_stretch_becomes_a_unit_up_to_the_gap():
    lexicon = Lexicon("a", {}, memorize=1.0, max_gap=2)
    lexicon.read(["xya", "xya", "uvwa", "uvwa"], random.Random(0))
    assert "xy" in lexicon.units
    assert not any("u" in unit for unit in lexicon.units)


def test_the_authors_guard_skips_the_draw_for_units_almost_as_long_as_may_be():
    long, short = (
        Lexicon(["a", "bcde"], {}, memorize=1.0, max_len=5),
        Lexicon(["a", "bcd"], {}, memorize=1.0, max_len=5),
    )
    for lexicon, unit in ((long, "bcde"), (short, "bcd")):
        lexicon.read(["a" + unit] * 2, random.Random(0))
    assert "abcde" not in long.units  # five characters would fit
    assert "abcd" in short.units


# -- training -----------------------------------------------------------------------------------------------------

PROSE = [
    "the sea has tides because the moon pulls the water\nand the sea follows the moon\n",
    "of the sea and of the moon, the tides come in and the tides go out\n",
    "月亮引起潮汐，海水跟着月亮走。\n",  # noqa: RUF001
] * 3


def test_units_span_words_and_vocab_size_is_met_exactly():
    segmenter = LiB(epochs=60, memorize=1.0, vocab_size=310).train(PROSE)
    assert segmenter.vocab_size == 310
    assert len(set(segmenter.tokens())) == 310
    assert any(" " in unit.strip() for unit in segmenter.units)
    assert not any("\n" in unit for unit in segmenter.units)
    assert all(len(unit) <= 12 for unit in segmenter.units)
    larger = LiB(epochs=60, memorize=1.0, vocab_size=330).train(PROSE)
    assert [u for u in larger.units if u in set(segmenter.units)] == segmenter.units  # the best ranks are kept
    for char in set("".join(PROSE)) - {"\n"}:
        assert len(segmenter.encode(char)) == 1


def test_rare_characters_become_bytes_when_asked():
    all_of_them, common = (LiB(epochs=2, character_coverage=share).train(["a" * 99 + "月"]) for share in (1.0, 0.98))
    assert len(all_of_them.encode("月")) == 1
    assert len(common.encode("月")) == 3


def test_text_without_spaces_is_learned_too():
    segmenter = LiB(epochs=80, memorize=1.0).train(["月亮引起潮汐", "月亮走", "看月亮", "潮汐来了", "引起潮汐"])
    assert {"月亮", "潮汐"} & set(segmenter.units)


def test_seeds_differ_and_repeat():
    one, again, two = (LiB(epochs=20, seed=seed, article_size=4).train(PROSE) for seed in (1, 1, 2))
    assert one.units == again.units
    assert one.units != two.units


def test_a_small_pool_is_an_even_sample_of_a_stream():
    lines = [f"{k:04d}" for k in range(2000)]
    counts = [0] * 4
    for seed in range(40):
        for line in LiB(pool=50, seed=seed)._sample(iter(lines), lambda *_: None):
            counts[int(line) // 500] += 1
    assert all(abs(count - 500) < 100 for count in counts)  # five standard deviations


def test_long_lines_are_read_in_pieces():
    assert list(map(len, LiB()._sample(["a" * 5000 + "\nb"], lambda *_: None))) == [2000, 2000, 1000, 1]


def test_the_default_budget_follows_the_length_of_lines():
    assert LiB()._epochs(["x" * 14] * 10) == 5000  # the authors' setting
    assert LiB()._epochs(["x" * 500]) == 140
    assert LiB(epochs=7)._epochs(["x"]) == 7


# -- resuming -----------------------------------------------------------------------------------------------------

RUN = """
import sys
from mintage.segment import LiB
lines = [" ".join(f"w{(7 * k * j) % 23}" for j in range(12)) for k in range(400)]
LiB(epochs=4000, memorize=1.0).train(lines, work=sys.argv[1])
"""


def test_a_killed_run_goes_on_to_the_same_lexicon(tmp_path):
    lines = [" ".join(f"w{(7 * k * j) % 23}" for j in range(12)) for k in range(400)]
    state = tmp_path / "lib.json"
    run = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)])
    try:
        deadline = time.monotonic() + 60
        while not state.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    done = json.loads(state.read_text())["articles"]
    assert done >= 10
    trainer = LiB(epochs=done + 15, memorize=1.0)
    told = []
    resumed = trainer.train(lines, work=tmp_path, progress=lambda *told_now: told.append(told_now))
    assert resumed.units == trainer.train(lines).units
    assert [n for stage, n, _ in told if stage == "reading articles"] == list(range(done + 1, done + 16))


def test_more_epochs_go_on_and_fewer_are_refused(tmp_path):
    LiB(epochs=25, memorize=1.0).train(PROSE, work=tmp_path)
    longer = LiB(epochs=40, memorize=1.0).train(PROSE, work=tmp_path)
    assert longer.units == LiB(epochs=40, memorize=1.0).train(PROSE).units
    with pytest.raises(UserError, match="holds 40 articles, epochs=20"):
        LiB(epochs=20, memorize=1.0).train(PROSE, work=tmp_path)
    with pytest.raises(UserError, match="other text or with other settings"):
        LiB(epochs=50, life=4, memorize=1.0).train(PROSE, work=tmp_path)
    with pytest.raises(UserError, match="other text"):
        LiB(epochs=50, memorize=1.0).train(PROSE[:1], work=tmp_path)
    (tmp_path / "lib.json").write_text('{"mark"')
    with pytest.raises(UserError, match="damaged"):
        LiB(epochs=50, memorize=1.0).train(PROSE, work=tmp_path)


# -- cutting ------------------------------------------------------------------------------------------------------


def brute_force(segmenter, data):
    ids = {token: place for place, token in enumerate(segmenter.tokens())}
    cut, start = [], 0
    while start < len(data):
        end = next(e for e in range(min(len(data), start + 48), start, -1) if data[start:e] in ids)
        cut.append(ids[data[start:end]])
        start = end
    return cut


LEXICONS = st.lists(st.text("ab é月👩", min_size=1, max_size=6), max_size=12, unique=True)


@settings(max_examples=150, deadline=None)
@given(LEXICONS, st.text("ab é月👩x潮\n", max_size=60), st.binary(max_size=12))
def test_the_cut_is_the_longest_match_at_every_place(units, text, noise):
    segmenter = LiBSegmenter(units, ["é", "x"])
    for data in (text.encode(), noise, text.encode() + noise + text.encode()):
        assert segmenter.encode(data) == brute_force(segmenter, data)
    characters = {0, *(len(text[:k].encode()) for k in range(len(text) + 1))}
    ends = [0]
    for token in (segmenter.tokens()[i] for i in segmenter.encode(text)):
        ends.append(ends[-1] + len(token))
    for start, end in pairwise(ends):  # more than one byte: whole characters
        assert end - start == 1 or {start, end} <= characters


@settings(max_examples=40, deadline=None)
@given(LEXICONS, st.lists(st.text("ab é月👩x潮\n\0", max_size=40), max_size=4))
def test_hugging_face_gives_the_same_ids(units, samples):
    from mintage.segment.core.hf import HFSegmenter

    segmenter = LiBSegmenter(units, ["é", "x"])
    theirs = HFSegmenter(segmenter.to_hf().backend_tokenizer)
    assert [theirs.encode(text) for text in samples] == [segmenter.encode(text) for text in samples]
    assert theirs.tokens() == segmenter.tokens()


@pytest.mark.parametrize("unit", ["\0", ".*", "[a-z]", "\\", "(?:", "^$", "\u2028", "\ufeff", " ", "e\u0301", "|-&&"])
def test_units_are_no_pattern_language(unit):
    segmenter = LiBSegmenter([unit + "b", unit, "b" + unit, "Ab"])
    exported = segmenter.to_hf()
    for text in (f"a{unit}b{unit}bb{unit}Ab", "abc AB ab", unit * 5):
        assert exported(text, add_special_tokens=False)["input_ids"] == segmenter.encode(text)


def test_windows_leave_no_mark():
    rng = random.Random(0)
    units = ["".join(rng.choices("ab月", k=k)) for k in (2, 3, 4, 5, 8, 12) for _ in range(6)]
    segmenter = LiBSegmenter(list(dict.fromkeys(units)))
    data = "".join(rng.choices("ab月", k=20_000)).encode()
    assert segmenter.encode(data) == brute_force(segmenter, data)
    for size in range(8180, 8240):
        assert segmenter.encode(data[:size]) == brute_force(segmenter, data[:size])


def test_long_lines_export_in_linear_time():
    segmenter = LiBSegmenter(["aa", "aaaa", "the ", "moon"])
    text = "a" * 100_000 + "the moon" * 5000 + "潮" * 20_000
    start = time.perf_counter()
    assert segmenter.to_hf()(text, add_special_tokens=False)["input_ids"] == segmenter.encode(text)
    assert time.perf_counter() - start < 5


def test_sub_units_are_better_ranked_parts():
    segmenter = LiBSegmenter(["of ", "the ", "sea", "of the ", "of the sea", "moons", "moo", "ns"])
    assert segmenter.decompose("of the sea") == ("of ", "the ", "sea")
    assert segmenter.decompose("moons") == ("moons",)  # its parts rank below it
    with pytest.raises(UserError, match="'tide' is no unit"):
        segmenter.decompose("tide")


def test_a_segmenter_travels_to_other_processes():
    segmenter = LiBSegmenter(["ab", "b"])
    segmenter.encode("abb")
    assert pickle.loads(pickle.dumps(segmenter)).encode("abb") == copy.copy(segmenter).encode("abb") == [256, 98]


# -- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"max_len": 0}, "max_len=0 is out of range; pass a number at least 1"),
        ({"memorize": 1.5}, r"memorize=1.5 is out of range; pass a number in \[0, 1\]"),
        ({"update": -0.1}, "update=-0.1"),
        ({"character_coverage": 2.0}, "character_coverage=2"),
        ({"max_gap": -1}, "max_gap=-1"),
        ({"epochs": 0}, "epochs=0 is out of range; pass a number at least 1"),
        ({"vocab_size": 100}, r"vocab_size=100 is out of range; pass a number in \[257, 10000000\]"),
    ],
)
def test_settings_out_of_range_are_told(wrong, said):
    with pytest.raises(UserError, match=said):
        LiB(**wrong)


def test_a_vocabulary_too_small_for_the_alphabet_is_told():
    with pytest.raises(
        UserError, match=r"vocab_size=260 is smaller than 256 bytes and 6 characters; pass more than 262"
    ):
        LiB(vocab_size=260, epochs=1).train(["月亮引起潮汐"])


def test_surrogates_and_blank_text_are_told():
    with pytest.raises(UserError, match="D800"):
        LiB(epochs=1).train(["a\ud800"])
    with pytest.raises(UserError, match="empty"):
        LiB(epochs=1).train(["\n\n", ""])


@pytest.mark.parametrize("units", [["a", "a"], ["", "a"]])
def test_lexicons_that_are_none_are_refused(units):
    with pytest.raises(ValueError, match="distinct"):
        LiBSegmenter(units)


# -- the claim check ----------------------------------------------------------------------------------------------


def test_the_claims_measures_are_what_they_say():
    from mintage.bench.segment.lines import CutLines, TrainedUnits, _agreement, boundary_f1, word_ends

    segmenter = LiBSegmenter(["of the", "of ", "the"])
    tokens = segmenter.tokens()
    units = TrainedUnits(tokens, segmenter.encode_batch, segmenter)
    cut = CutLines(units, segmenter.encode_batch(["of the", "of  the"]))
    assert [[tokens[i] for i in line] for line in cut.ids] == [[b"of the"], [b"of ", b" ", b"the"]]
    assert cut.per_line == [1, 3]
    assert cut.used == 4 / 259
    assert cut.many_words == 1 / 4
    vocabulary = 256 * 2 + sum(len(unit) + 1 for unit in ("of the", "of ", "the"))
    assert cut.description == pytest.approx(vocabulary * np.log2(257) + 4 * 2)  # four tokens once each: two bits
    assert word_ends([b"ab", b"c", b"de"]) == {2, 3}
    columns = {k: np.array(v) for k, v in _agreement("", [{2, 3}, {5}], [{2}, {4, 5}]).items()}
    assert boundary_f1(columns, "").value == pytest.approx(2 * 2 / (3 + 3))
