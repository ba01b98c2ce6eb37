"""Text as a stream: files, folders, JSON lines; counting words over processes and kills."""

import gzip
import json
from collections import Counter

import pytest

from mintage.data import Corpus, as_corpus, count_words
from mintage.errors import UserError


def test_lines_join_to_the_file(tmp_path):
    text = "one\r\ntwo\n\nthree \u2028 x\x0b"
    (tmp_path / "a.txt").write_bytes(text.encode())
    corpus = Corpus(tmp_path / "a.txt")
    assert "".join(corpus) == text == "".join(corpus)
    assert len(list(corpus)) == 4


def test_a_folder_gives_its_files_in_order_and_gz_is_opened(tmp_path):
    (tmp_path / "b.txt").write_text("b\n")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a\n"))
    (tmp_path / "c.jsonl").write_text('{"text": "c"}\n\n{"text": "d", "lang": "x"}\n')
    assert list(Corpus(tmp_path)) == ["a\n", "b\n", "c", "d"]
    assert list(Corpus(tmp_path / "c.jsonl", where={"lang": "x"})) == ["d"]


def test_limit_counts_characters(tmp_path):
    (tmp_path / "a.txt").write_text("12345\n" * 100)
    assert len("".join(Corpus(tmp_path / "a.txt", limit=60))) == 60


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"\xff\xfe\x00x", "not UTF-8"),
        ("a.txt", b"a\x00b", "NUL"),
        ("a.txt.gz", b"no gzip", "cannot read"),
        ("a.jsonl", b'{"text": 1}', "no text in 'text'"),
        ("a.jsonl", b"{", "line 1: not JSON"),
        ("a.jsonl", b"[]", "no text"),
    ],
)
def test_bad_files_are_told_in_one_line(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        list(Corpus(tmp_path / name))
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_bad_sources(tmp_path):
    for sources in ((), (tmp_path / "none.txt",), (tmp_path,)):
        with pytest.raises(UserError):
            Corpus(*sources)


def test_a_string_is_no_corpus():
    with pytest.raises(UserError, match="not one text"):
        as_corpus("abc")
    again = as_corpus(x for x in ("a", "b"))
    assert list(again) == ["a", "b"] == list(again)


def words(text):
    return text.split()


def _texts():
    return [f"w{i % 7} w{i % 11} same " * 300 + "\n" for i in range(600)]


def test_counts_do_not_depend_on_processes():
    texts = _texts()
    one, two = count_words(texts, words), count_words(texts, words, processes=2)
    assert one == two == Counter(w for t in texts for w in t.split())
    assert list(one) == list(two)


def test_few_words_are_kept_if_asked():
    texts = [f"rare{i} often often\n" * 2 for i in range(1000)]
    counts = count_words(texts, words, max_words=10)
    assert counts["often"] == 4000
    assert len(counts) == 10


def test_a_killed_count_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("mintage.data.counting._BATCH", 1000)
    monkeypatch.setattr("mintage.data.counting._SAVE_EVERY", 2)
    (tmp_path / "a.txt").write_text("".join(_texts()[:50]))
    corpus, state, read = Corpus(tmp_path / "a.txt"), tmp_path / "state.json", []

    class KilledError(Exception):
        pass

    def dies(characters):
        if len(read) == 5:
            raise KilledError
        read.append(characters)

    with pytest.raises(KilledError):
        count_words(corpus, words, state=state, progress=dies)
    assert json.loads(state.read_text())["batches"] == 4
    cut = []
    counts = count_words(corpus, lambda t: cut.append(1) or t.split(), state=state)
    assert counts == count_words(corpus, words)
    assert len(cut) == 46
    assert not state.exists()


def test_a_state_of_another_corpus_is_refused(tmp_path):
    for text in ('{"mark": "other", "batches": 1, "characters": 2, "counts": {}}', "[]"):
        (tmp_path / "state.json").write_text(text)
        with pytest.raises(UserError, match="delete it"):
            count_words(["a"], words, state=tmp_path / "state.json")
    for bad in ({"processes": 0}, {"max_words": 0}):
        with pytest.raises(UserError, match="at least 1"):
            count_words(["a"], words, **bad)
