"""CompoundPiece: parity with the authors' code, alignment against brute force, the splitter, the tokenizer."""

import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mintage.errors import UserError
from mintage.segment.compoundpiece import CompoundPiece, lossless_pretokens, pretokens
from mintage.segment.hard_compounds import hard_compound_rate
from mintage.segment.hyphens import hyphen_pairs, remove_hyphens, split_by_constituents, web_words
from mintage.segment.training.decompounder import TaggerSettings, train_decompounder

VECTORS = Path(__file__).parents[1] / "vectors" / "compoundpiece"
FILES = sorted(VECTORS.glob("*.npz"))


def relaxed(examples):
    return settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def rows(name, *columns):
    for path in FILES:
        with np.load(path, allow_pickle=False) as held:
            arrays = [held[c].tolist() for c in columns]
        for row in zip(*arrays, strict=True):
            yield tuple(v.decode() if isinstance(v, bytes) else v for v in row)


# -- parity -------------------------------------------------------------------------------------------------------


def test_there_are_vectors():
    assert [p.name for p in FILES] == ["edge.npz", "germanic.npz"]


@pytest.mark.parametrize(
    ("word", "normalized", "segmented", "distance"), rows("", "word", "normalized", "segmented", "distance")
)
def test_segmented_as_the_authors_do(word, normalized, segmented, distance):
    found = split_by_constituents(word, normalized.split("-"))
    assert ("-".join(found[0]), found[1]) == (segmented, distance) if found else (segmented, distance) == ("", -1)


@pytest.mark.parametrize(("hyphenated", "dehyphenated"), rows("", "hyphenated", "dehyphenated"))
def test_hyphens_removed_as_the_authors_do(hyphenated, dehyphenated):
    assert remove_hyphens(hyphenated) == dehyphenated


@pytest.mark.parametrize(("text", "tokens"), rows("", "text", "pretokens"))
def test_pretokens_as_the_authors_do(text, tokens):
    assert "\x1f".join(pretokens(text)) == tokens


# -- alignment ----------------------------------------------------------------------------------------------------


def levenshtein(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        new = [i]
        for j, y in enumerate(b, 1):
            new.append(min(row[j] + 1, new[-1] + 1, row[j - 1] + (x != y)))
        row = new
    return row[-1]


def brute_force(word, constituents, prefer):
    """All offsets with |o| <= len(c), as the card of the method states it."""
    found = []
    for offsets in itertools.product(*[range(-len(c), len(c) + 1) for c in constituents]):
        if sum(offsets) != len(word) - sum(map(len, constituents)):
            continue
        ends = list(itertools.accumulate(len(c) + o for c, o in zip(constituents, offsets, strict=True)))
        pieces = [word[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        distance = sum(levenshtein(p.lower(), c.lower()) for p, c in zip(pieces, constituents, strict=True))
        found.append((distance, sum(map(abs, offsets)), offsets, pieces))
    if not found:
        return None
    least = min(f[0] for f in found)
    minimisers = sorted(f for f in found if f[0] == least)
    distance, _, _, pieces = minimisers[-1 if prefer == "last" else 0]
    return (pieces, distance) if all(pieces) else None


@relaxed(250)
@given(
    st.text(alphabet="abAsn", max_size=12),
    st.lists(st.text(alphabet="abAsn", max_size=5), min_size=1, max_size=3),
    st.sampled_from(["last", "first"]),
)
@example("bridesmaid", ["bride", "maid"], "first")
@example("Weihnachtsbaumkugel", ["Weihnachten", "Baum"], "last")
@example("abc", ["ab", ""], "last")
def test_alignment_is_the_brute_force(word, constituents, prefer):
    found = split_by_constituents(word, constituents, prefer=prefer)
    assert found == brute_force(word, constituents, prefer)
    if found:
        pieces, distance = found
        assert "".join(pieces) == word
        assert len(pieces) == len(constituents)
        assert (distance == 0) == ([p.lower() for p in pieces] == [c.lower() for c in constituents])


def test_alignment_is_fast_where_the_search_is_exponential():
    constituents = ["Donau", "Dampf", "Schiff", "Fahrt", "Gesellschaft", "Kapitän", "Mütze", "Knopf"]
    pieces, distance = split_by_constituents("Donaudampfschifffahrtsgesellschaftskapitänsmützenknopf", constituents)
    assert "|".join(pieces) == "Donau|dampf|schiff|fahrts|gesellschafts|kapitäns|mützen|knopf"
    assert distance == 4


def test_a_linking_element_goes_left_or_right():
    assert split_by_constituents("bridesmaid", ["bride", "maid"], prefer="last")[0] == ["brides", "maid"]
    assert split_by_constituents("bridesmaid", ["bride", "maid"], prefer="first")[0] == ["bride", "smaid"]


# -- hyphens as supervision ---------------------------------------------------------------------------------------


@relaxed(150)
@given(st.lists(st.text(alphabet="abcdé", min_size=1, max_size=6), min_size=1, max_size=4))
def test_splits_joined_with_hyphens_give_the_word_back(pieces):
    assert remove_hyphens("-".join(pieces)) == "".join(pieces)


def test_words_that_can_teach():
    text = (
        "Die Haus-Tür, (TCP-Port) e-Mail a--b www.x.de Zu\u2010Gang iPhone-Hülle B2-Kurs ab-2c -bau 'sea-water' "
        + "x" * 70
    )
    assert list(web_words(text)) == ["Die", "Haus-Tür", "e-Mail", "Zu-Gang", "bau", "sea-water"]


def test_pairs_are_positives_and_as_many_negatives():
    counts = {"Haus-Tür": 3, "Haustür": 5, "Haus-tür": 9, "das": 90, "Wasser": 50, "e-Mail": 9, "Kanne": 1}
    assert hyphen_pairs(counts) == [("Haustür", "Haus-tür"), ("das", "das")]
    assert hyphen_pairs({"see\u2010Weg": 1, "seeweg": 1000}) == []  # too rare a hyphenation
    assert hyphen_pairs({"see\u2010Weg": 1, "seeweg": 400}) == [("seeweg", "see-Weg")]
    assert hyphen_pairs({}) == []


def test_one_hyphen_in_a_thousand_keeps_its_case():
    words = {f"x{chr(97 + i % 26)}{i}-Yz": 1 for i in range(8_000)}
    kept = sum(word.endswith("Yz") for word, _ in hyphen_pairs(words, seed=1))
    assert 1 <= kept <= 25
    assert hyphen_pairs(words, seed=1) == hyphen_pairs(words, seed=1) != hyphen_pairs(words, seed=2)


# -- pre-tokens ---------------------------------------------------------------------------------------------------


@relaxed(200)
@given(st.one_of(st.text(max_size=40), st.text(alphabet="ab -.\n\t\u3000½ﬁ", max_size=40)))
@example(" \n  a  b ")
def test_pretokens_lose_nothing_or_only_what_they_declare(text):
    kept = lossless_pretokens(text)
    assert "".join(kept) == text
    assert all(kept)
    spaced = "".join(pretokens(text))
    folded = unicodedata.normalize("NFKC", text)
    separator = {c for c in folded if c in "\n\t\r" or unicodedata.category(c)[0] == "Z"}
    assert [c for c in spaced if c != " "] == [c for c in folded if c not in separator]
    assert "  " not in spaced


# -- the splitter -------------------------------------------------------------------------------------------------

HEADS = ("haus", "garten", "wasser", "stein", "schul", "sonnen", "mond", "feuer", "berg", "wald", "vogel", "silber")
TAILS = ("bau", "tür", "uhr", "weg", "turm", "platz", "kanne", "tasche", "kasten", "wagen", "hütte", "boot", "ring")


def toy(held_out=4):
    """Pairs from all compounds but every fourth, and those."""
    combined = [(a, b) for a in HEADS for b in TAILS]
    taught = [c for i, c in enumerate(combined) if i % held_out]
    counts = Counter({f"{a}-{b}": 2 for a, b in taught})
    counts.update(dict.fromkeys([*HEADS, *TAILS] + [f"{b}{e}" for b in TAILS for e in ("en", "s", "chen")], 5))
    return counts, [c for i, c in enumerate(combined) if i % held_out == 0]


SMALL = TaggerSettings(steps=100, batch=32, width=16, layers=2, lr=1e-2)


@pytest.fixture(scope="module")
def splitter():
    counts, _ = toy()
    return train_decompounder(hyphen_pairs(counts), SMALL, words=counts)


def test_the_splitter_learns_from_hyphens(splitter):
    unseen = toy()[1]
    right = sum(splitter.split(a + b) == [a, b] for a, b in unseen)
    assert right >= 0.9 * len(unseen)
    assert splitter.split("wassers") == ["wassers"]
    weights = splitter.tagger.state_dict()["letters.weight"]  # as before trainings were data
    assert weights.double().abs().sum().item() == pytest.approx(294.6518940227106, rel=1e-5)


@relaxed(60)
@given(st.lists(st.text(max_size=30), max_size=5))
@example(["", "a", "İİstanbul", "Haus-Tür", "ß" * 64, "x" * 65])
def test_pieces_joined_are_the_word(splitter, words):
    split = splitter.split_all(words)
    assert ["".join(pieces) for pieces in split] == words
    assert all(all(pieces) or not word for word, pieces in zip(words, split, strict=True))
    assert all(len(p) == 1 for w, p in zip(words, split, strict=True) if "-" in w or len(w) > 64)


def test_a_batch_gives_what_its_words_give_alone(splitter):
    words = [a + b for a, b in toy()[1]] + ["Sonnenwagen", "x", "bergwaldvogelring"]
    assert splitter.split_all(words, batch=7) == [splitter.split(word) for word in words]


def test_a_saved_splitter_is_the_same(splitter, tmp_path):
    from mintage.segment.decompounder import Decompounder, decompound

    path = splitter.save(tmp_path / "mine")
    assert path.stat().st_size < 200_000
    loaded = Decompounder.load(tmp_path / "mine")
    words = [a + b for a, b in toy()[1]]
    assert loaded.split_all(words) == splitter.split_all(words)
    assert loaded.lexicon == splitter.lexicon
    assert decompound("steinwagen", model=path) == splitter.split("steinwagen")


def test_gold_teaches_on(splitter):
    """Stage 2: normalised constituents of words that no hyphen showed."""
    counts, _ = toy()
    gold = [(f"{a}s{b}", [a, b]) for a in HEADS for b in TAILS[:7]] + [("kanne", ["kanne"])] * 20
    taught = train_decompounder(hyphen_pairs(counts), replace(SMALL, gold_steps=60), words=counts, gold=gold)
    unseen = [(f"{a}s", b) for a in HEADS for b in TAILS[7:]]
    before = sum(splitter.split(a + b) == [a, b] for a, b in unseen)
    after = sum(taught.split(a + b) == [a, b] for a, b in unseen)
    assert after > before
    assert after >= 0.8 * len(unseen)


def test_nothing_to_learn_is_told():
    with pytest.raises(UserError, match="no pair has a hyphen"):
        train_decompounder([("haus", "haus")])
    with pytest.raises(UserError, match="no gold word"):
        train_decompounder([("haustür", "haus-tür")], TaggerSettings(steps=1), gold=[("a", ["x", "yz"])])
    with pytest.raises(UserError, match="kernel=4 has no letter in the middle"):
        TaggerSettings(kernel=4)


def test_hostile_and_damaged_splitters_are_refused(splitter, tmp_path):
    from safetensors.numpy import load_file, save_file

    from mintage.segment.decompounder import Decompounder

    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    path = tmp_path / "decompounder.safetensors"
    with pytest.raises(UserError, match="does not exist"):
        Decompounder.load(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="damaged"):
        Decompounder.load(path)
    assert not (tmp_path / "ran").exists()
    splitter.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        Decompounder.load(path)
    path.write_bytes(whole)
    tensors = load_file(path)
    sizes = {"width": 16, "layers": 2, "kernel": 5}
    good = {"format": "mintage decompounder 1", "letters": splitter.letters, "sizes": json.dumps(sizes)}
    huge = json.dumps({**sizes, "layers": 10**9})
    for metadata in ({"format": "x"}, {**good, "letters": "abc"}, {**good, "sizes": huge}, {**good, "sizes": "[]"}):
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(UserError) as told:
            Decompounder.load(path)
        assert "\n" not in str(told.value)


RESUME = """
import sys
from collections import Counter
sys.path.insert(0, sys.argv[2])
from test_compoundpiece import SMALL, hyphen_pairs, toy, train_decompounder

counts, _ = toy()
def killed(stage, done, of):
    if sys.argv[3] == "kill" and done == 45:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
made = train_decompounder(hyphen_pairs(counts), SMALL, words=counts, folder=sys.argv[1], progress=killed)
made.save(sys.argv[1] + "/made")
"""


def test_a_killed_training_goes_on_and_ends_the_same(splitter, tmp_path):
    from mintage.segment.decompounder import Decompounder

    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", RESUME, str(tmp_path), here]
    assert subprocess.run([*command, "kill"], timeout=120).returncode == -signal.SIGKILL
    logs = list(tmp_path.glob("*/log.jsonl"))
    assert len(logs) == 1
    assert 0 < json.loads(logs[0].read_text().splitlines()[-1])["step"] <= 45
    subprocess.run([*command, "finish"], timeout=120, check=True)
    finished = Decompounder.load(tmp_path / "made")
    for name, tensor in splitter.tagger.state_dict().items():
        assert np.allclose(finished.tagger.state_dict()[name].numpy(), tensor.numpy(), atol=1e-5), name


def test_the_command_trains_from_text_and_gold(tmp_path):
    from typer.testing import CliRunner

    from mintage.cli import app
    from mintage.segment.decompounder import decompound

    counts, _ = toy()
    text, gold = tmp_path / "text.txt", tmp_path / "gold.jsonl"
    text.write_text("\n".join(f"{word} " * count for word, count in counts.items()), encoding="utf-8")
    gold.write_text('{"word": "steinuhr", "segments": ["stein", "uhr"]}\n')
    out = tmp_path / "made.safetensors"
    sizes = ["--steps", "60", "--width", "16", "--layers", "2", "--lexicon", "500"]
    call = [
        "train",
        "decompounder",
        str(text),
        "--out",
        str(out),
        "--work",
        str(tmp_path / "work"),
        "--gold",
        str(gold),
        *sizes,
    ]
    told = CliRunner().invoke(app, call, catch_exceptions=False)
    assert told.exit_code == 0
    split = CliRunner().invoke(app, ["segment", "decompound", "mondwagen", "steinuhr", "--model", str(out)])
    assert split.stdout.splitlines() == ["|".join(decompound(w, model=out)) for w in ("mondwagen", "steinuhr")]
    gold.write_text('{"word": "steinuhr"}\n')
    with pytest.raises(UserError, match=r"gold\.jsonl, row 1"):
        CliRunner().invoke(app, call, catch_exceptions=False)


# -- the tokenizer ------------------------------------------------------------------------------------------------


class At:
    """Splits given words, at given places."""

    def __init__(self, pieces):
        self.pieces = {"".join(p): list(p) for p in pieces}

    def split_all(self, words):
        return [self.pieces.get(word, [word]) for word in words]


class Never:
    def split_all(self, words):
        return [[word] for word in words]


def corpus():
    """Few compounds, again and again and inflected, so that a plain vocabulary swallows them whole; and their parts."""
    common = list(zip(HEADS, TAILS, strict=False))
    lines = [f"die {a}{b} und das {a}, der {b}: des {a}{b}s, mit {a}{b}en.\n" * 5 for a, b in common]
    return lines, common


def test_pieces_stop_at_constituents():
    texts, common = corpus()
    splitter = At([(a, b + ending) for a, b in common for ending in ("", "s", "en")])
    plain = CompoundPiece(vocab_size=400, decompounder="none", min_count=1).train(texts)
    split = CompoundPiece(vocab_size=400, decompounder=splitter, min_count=1).train(texts)
    gold = {"".join(c): list(c) for c in common}
    assert hard_compound_rate(plain, gold) >= 0.5
    assert hard_compound_rate(split, gold) == 0


def test_never_splitting_is_the_baseline():
    texts, _ = corpus()
    baseline = CompoundPiece(vocab_size=320, decompounder="none", min_count=1).train(texts)
    same = CompoundPiece(vocab_size=320, decompounder=Never(), min_count=1).train(texts)
    assert same.state() == baseline.state()


def test_training_by_name_of_a_saved_splitter(splitter, tmp_path):
    texts, _ = corpus()
    splitter.save(tmp_path)
    by_path = CompoundPiece(vocab_size=320, decompounder=str(tmp_path), min_count=1).train(texts)
    by_object = CompoundPiece(vocab_size=320, decompounder=splitter, min_count=1).train(texts)
    assert by_path.state() == by_object.state()


def test_counts_are_weighted_by_sixteens_and_long_tokens_left_out():
    kept = CompoundPiece(vocab_size=300, decompounder="none").train(["zug " * 40 + "x" * 31 + " "] * 20 + ["rar "] * 15)
    same = CompoundPiece(vocab_size=300, decompounder="none", min_count=1).train(["zug" + " zug" * 49 + " ", "zug"])
    assert b" zug" in kept.tokens()
    assert b" zug" in same.tokens()
    assert not any(b"xx" in token or b"rar" in token for token in kept.tokens())
    with pytest.raises(UserError, match="min_count=1"):
        CompoundPiece(vocab_size=300, decompounder="none").train(["ein Wort"])


def test_the_normalising_variant_declares_itself():
    texts = ["Das ﬁne Wasser  im\tGlas ½ voll.\n"] * 4
    trained = CompoundPiece(vocab_size=320, decompounder="none", min_count=1, normalize=True).train(texts)
    assert not trained.lossless
    assert trained.decode(trained.encode("ﬁne \n\t ½")) == "fine 1\u20442"
    text = "Wasser\u3000 und Ⅷ\r\nGlas"
    assert trained.decode(trained.encode(text)) == "Wasser und VIII Glas"
    assert trained.to_hf()(text, add_special_tokens=False)["input_ids"] == trained.encode(text)
    assert CompoundPiece(vocab_size=320, decompounder="none", min_count=1).train(texts).lossless


def test_a_killed_tokenizer_training_reads_its_counts(tmp_path):
    texts = ["die Haus-Tür und die Wasser-Uhr\n"] * 4
    made = CompoundPiece.tiny().train(texts, work=tmp_path)
    again = CompoundPiece.tiny().train(texts, work=tmp_path)  # counts are there, the splitter is trained
    assert again.state() == made.state()
    (counts,) = tmp_path.glob("web_words-*.json")
    counts.write_text("{")
    with pytest.raises(UserError, match=r"web_words-[0-9a-f]+\.json is damaged"):
        CompoundPiece.tiny().train(texts, work=tmp_path)


def test_mistakes_are_told():
    for wrong in ({"vocab_size": 256}, {"min_count": 0}, {"max_bytes": 1}, {"decompounder": 3}):
        with pytest.raises(UserError):
            CompoundPiece(**wrong)
    with pytest.raises(UserError, match="decompounder='none'"):
        CompoundPiece(min_count=1, vocab_size=300).train(["kein Strich hier"])
    liar = At([])
    liar.pieces = {"kein": ["ein"]}
    with pytest.raises(UserError, match="joined these are not the word"):
        CompoundPiece(min_count=1, vocab_size=300, decompounder=liar).train(["kein Strich hier"])
    with pytest.raises(UserError, match="does not exist"):
        CompoundPiece(min_count=1, vocab_size=300, decompounder="nowhere").train(["kein Strich"])


def test_hard_compounds_are_those_cut_elsewhere():
    from tokenizers import models

    from mintage.segment.compoundpiece import CompoundPieceTokenizer
    from mintage.segment.core.hf import byte_level, to_byte_chars
    from mintage.tokenizer_files.letters import BYTE_CHARS

    whole = [*((c, -9.0) for c in BYTE_CHARS), *((to_byte_chars(w), -1.0) for w in (" haustür", "ßwa", "wasser"))]
    made = CompoundPieceTokenizer(byte_level(models.Unigram(whole, None, False)))
    assert hard_compound_rate(made, {"haustür": ["haus", "tür"]}) == 1
    assert hard_compound_rate(made, {"haustür": ["haus", "tür"]}, prefix="") == 0  # single bytes
    assert hard_compound_rate(made, {"süßwasser": ["süß", "wasser"]}) == 0  # the longer piece is the likelier
    assert hard_compound_rate(made, {"süßware": ["süß", "ware"]}) == 1
    assert hard_compound_rate(made, {"haustür": ["haus", "tür"], "qx": ["q", "x"]}) == 0.5
    for gold in ({}, {"haustür": ["haus", "uhr"]}, {"haus": ["haus"]}):
        with pytest.raises(UserError):
            hard_compound_rate(made, gold)
