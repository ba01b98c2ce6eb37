"""What CompoundPiece's study is made of: texts of Debian packages, gold words, rivals, scores."""

import gzip
import io
import json
import subprocess
import tarfile
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from tokenizers import models

from mintage.bench.segment import compounds
from mintage.bench.segment.compounds import Language
from mintage.data import debian
from mintage.errors import UserError
from mintage.segment.compoundpiece import CompoundPieceTokenizer
from mintage.segment.core.hf import byte_level, to_byte_chars
from mintage.tokenizer_files.letters import BYTE_CHARS

# -- texts --------------------------------------------------------------------------------------------------------


def test_a_manual_page_is_its_words():
    page = b'.TH LS 1 "2020"\n.SH \\(Uebersicht\n.B ls\n.\\" a comment\n\\fBKurz\\-form\\fP einer \\f[I]Datei\\f[]\n'
    assert debian._manual(page) == "\\(Uebersicht\nls\nKurz-form einer Datei\n"


def test_a_help_page_is_its_text():
    page = b"<html><style>p {x}</style><p>F&uuml;r<br>dich</p><b>fett</b><script>no()</script></html>"
    assert debian._page(page).split() == ["Für", "dichfett"]


def test_a_thesaurus_keeps_its_encoding_and_loses_its_remarks():
    text = "ISO8859-1\nHaus|1\n(Nomen)|Gebäude|Bau (ugs.)\n"
    assert debian._thesaurus(text.encode("latin-1")).split() == ["ISO8859-1", "Haus", "1", "Gebäude", "Bau"]


def test_one_side_of_a_dictionary():
    data = "# Ding\nHaus {n} | Häuser {pl} :: house | houses [coll.]\nkaputt\n".encode()
    assert debian._dictionary(data, 0).split() == ["Haus", "Häuser"]
    assert debian._dictionary(data, 1).split() == ["house", "houses"]


def package(folder, name, files):
    """Write a .deb that holds these files."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as tar:
        for path, data in files.items():
            info = tarfile.TarInfo("./" + path)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    parts = {"debian-binary": b"2.0\n", "control.tar.gz": b"", "data.tar.gz": held.getvalue()}
    with tarfile.open(fileobj=(control := io.BytesIO()), mode="w:gz"):
        pass
    parts["control.tar.gz"] = control.getvalue()
    with open(folder / f"{name}_1_all.deb", "wb") as file:
        file.write(b"!<arch>\n")
        for part, data in parts.items():
            file.write(f"{part:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode())
            file.write(data + b"\n" * (len(data) % 2))


@pytest.fixture
def packages(tmp_path, monkeypatch):
    try:
        subprocess.run(["dpkg-deb", "--version"], capture_output=True, check=True)
    except OSError:
        pytest.skip("dpkg-deb is not here")
    monkeypatch.setenv("MINTAGE_DEBIAN", str(tmp_path))
    return tmp_path


def test_files_of_a_package_come_in_order_and_unpacked(packages):
    files = {"b/two.gz": gzip.compress(b"zwei"), "b/one": b"eins", "a/other": b"drei"}
    package(packages, "words", files)
    assert list(debian.members("words", "^./b/")) == [b"eins", b"zwei"]


def test_an_absent_package_is_told(packages):
    with pytest.raises(UserError, match=r"holds no words_\*.deb; get it with: apt-get download words"):
        list(debian.members("words", "."))


# -- gold ---------------------------------------------------------------------------------------------------------


def test_german_gold_has_one_cut_into_nouns_or_none_into_words(monkeypatch):
    words = (
        "Haus Häuser Türe Haustüre Sonntag Zeitung Sonntagszeitung Freund Freundschaft gehen Haustürehaus laufen auf"
    )
    words += " Hund Hundehütte Hütte aufgehen"
    monkeypatch.setattr(debian, "members", lambda *_: iter([words.replace(" ", "\n").encode()]))
    gold = compounds.german_gold()
    assert gold["Haustüre"] == ["Haus", "türe"]
    assert gold["Sonntagszeitung"] == ["Sonntags", "zeitung"]
    assert gold["Hundehütte"] == ["Hunde", "hütte"]
    assert gold["gehen"] == ["gehen"]
    assert "aufgehen" not in gold, "two words, but no two nouns: neither a compound nor surely none"
    assert "Freundschaft" not in gold
    assert "Haus" not in gold, "a noun that is no compound proves nothing"


def test_annotated_gold_takes_compounds_of_two(monkeypatch, tmp_path):
    rows = [
        {"lang": "hun", "word": "házajtó", "cat": "001", "segments": ["ház", "ajtó"]},
        {"lang": "hun", "word": "házakat", "cat": "100", "segments": ["ház", "akat"]},
        {"lang": "hun", "word": "házajtóakat", "cat": "101", "segments": ["ház", "ajtó", "akat"]},
        {"lang": "eng", "word": "bridesmaid", "cat": "001", "segments": ["bride", "maid"]},
        {"lang": "eng", "word": "on-off", "cat": "001", "segments": ["on", "off"]},
        {"lang": "eng", "word": "tide", "cat": "000", "segments": ["tide"]},
    ]
    with gzip.open(tmp_path / "morph_segmentation.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("MINTAGE_DATA", str(tmp_path))
    assert compounds.annotated_gold("en") == {"bridesmaid": ["brides", "maid"], "tide": ["tide"]}
    found = compounds.annotated_gold("hu")
    assert found == {"házajtó": ["ház", "ajtó"], "házakat": ["házakat"], "házajtóakat": ["ház", "ajtóakat"]}


def test_halves_share_no_word_and_case_does_not_choose():
    gold = {f"Wort{n}": [f"Wort{n}"] for n in range(60)} | {f"Haus{n}tor": ["Haus", f"{n}tor"] for n in range(60)}
    development, test = compounds.gold_halves(gold, 10, seed=0)
    assert not development.keys() & test.keys()
    for half in (development, test):
        assert sorted(len(pieces) for pieces in half.values()) == [1] * 10 + [2] * 10
    assert compounds.gold_halves(gold, 10, seed=0) == (development, test)
    assert compounds.gold_halves({word.upper(): p for word, p in gold.items()}, 99, 0)[0].keys() == {
        word.upper() for word in compounds.gold_halves(gold, 99, 0)[0]
    }


# -- rivals -------------------------------------------------------------------------------------------------------


def test_the_threshold_is_the_best_for_the_development_words():
    scores = {"ab": (0.9, ["a", "b"]), "cd": (0.8, ["c", "d"]), "ef": (0.2, ["e", "f"])}
    split = compounds._best_threshold(scores.__getitem__, {"ab": ["a", "b"], "cd": ["c", "d"], "ef": ["ef"]})
    assert split(["ef", "cd"]) == [["ef"], ["c", "d"]]
    never = compounds._best_threshold(scores.__getitem__, {"ab": ["ab"], "cd": ["cd"]})
    assert never(["ab"]) == [["ab"]]


def test_rivals_find_a_compound_of_frequent_words():
    lexicon = {"regen": 90, "wetter": 80, "schirm": 70, "bild": 60, "bildschirm": 9, "regenwetter": 5, "wetterbild": 4}
    development = {"regenschirm": ["regen", "schirm"], "wetter": ["wetter"], "xylophon": ["xylophon"]}
    german = Language("de", development, {}, Counter(), [], Counter(lexicon))
    frequency = compounds.frequency_split(german)
    assert frequency(["Wetterschirm", "Xyz"]) == [["Wetter", "schirm"], ["Xyz"]]
    assert frequency(["Regenswetter"]) == [["Regens", "wetter"]], "a linking s"
    charsplit = compounds.charsplit(german)
    assert charsplit(["Wetterschirm"]) == [["Wetter", "schirm"]]
    assert charsplit(["ab"]) == [["ab"]]


def test_pieces_get_the_case_of_the_word():
    assert compounds._in_case("HausTür", ["haus", "tür"]) == ["Haus", "Tür"]


# -- scores -------------------------------------------------------------------------------------------------------


def test_the_mean_of_languages_weighs_each_alike():
    gain = compounds.macro_mean([np.full(10, 100.0), np.zeros(1000)])
    assert gain.value == gain.low == gain.high == 50


def test_boundaries_are_scored_inside_words_only():
    pieces = [" ", "Haus", " Haus", "tür", "Ha", "ustür"]
    entries = [(c, -50.0) for c in BYTE_CHARS] + [(to_byte_chars(p), -1.0) for p in pieces if len(p) > 1]
    made = CompoundPieceTokenizer(byte_level(models.Unigram(entries, None, False)))
    assert compounds.boundary_f1_of(made, {"Haustür": ["Haus", "tür"]}) == 1
    assert compounds.boundary_f1_of(made, {"Haustür": ["Haust", "ür"]}) == 0


def test_a_long_list_becomes_many_pieces_and_a_text_stays_whole(monkeypatch):
    monkeypatch.setattr(compounds, "_LIST", 20)
    monkeypatch.setattr(compounds, "_ENTRIES", 2)
    assert list(compounds._pieces(["a text\nof two lines", "a list\nof entries\nand more\nand more"])) == [
        "a text\nof two lines",
        "a list\nof entries",
        "and more\nand more",
    ]


def test_texts_stop_after_some_characters(monkeypatch):
    monkeypatch.setattr(debian, "members", lambda package, wanted: iter([b"a" * 15_000, b"b" * 15_000, b"c"]))
    assert list(debian.debian_texts("hu", 20_000)) == ["a" * 15_000, "b" * 15_000]
    assert [len(text) for text in islice(debian.debian_texts("hu"), 3)] == [15_000, 15_000, 1]
