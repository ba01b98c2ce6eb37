"""HAT's splitter: the authors' cuts, lossless on anything, stable as a text grows."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.errors import UserError
from mintage.lm.core.cuts import cut_rule
from mintage.lm.core.splitter import HatSplitter
from mintage.testing.settings import without_shape_checks

VECTORS = np.load(Path(__file__).parents[1] / "vectors" / "hat" / "splitter.npz")
TEXTS = json.loads(bytes(VECTORS["texts_json"]))
SPLITTER = HatSplitter()
LIKELY = st.text(alphabet="aB. '\t\n\u0301-\u200d\U0001f3fdé潮9_\"", max_size=24)


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_pieces_are_the_authors(number):
    assert SPLITTER.split(TEXTS[number]) == json.loads(bytes(VECTORS["split_json"]))[number]
    for most in VECTORS["limits"].tolist():
        wanted = json.loads(bytes(VECTORS[f"limit_{most}_json"]))[number]
        assert [piece.hex() for piece in SPLITTER.split_bytes(TEXTS[number].encode(), most)] == wanted


@settings(max_examples=150, deadline=None, database=None)
@given(st.one_of(LIKELY, st.text(max_size=24)))
def test_pieces_join_to_the_text_and_words_alone_are_one_piece(text):
    pieces = SPLITTER.split(text)
    assert "".join(pieces) == text
    assert all(pieces)


@settings(max_examples=100, deadline=None, database=None)
@given(st.binary(max_size=40), st.integers(1, 9), st.sampled_from(["hat", "spaces", "stride"]))
def test_every_rule_is_lossless_on_any_bytes_and_keeps_to_the_longest(data, most, name):
    lengths = cut_rule(name, most)(data)
    assert sum(lengths) == len(data)
    assert all(1 <= length <= most for length in lengths)


@settings(max_examples=150, deadline=None, database=None)
@given(st.text(alphabet="aB. '\t\né潮9_", max_size=16), st.integers(0, 16))
def test_a_growing_text_changes_its_last_piece_only(text, place):
    whole, begun = SPLITTER.split(text), SPLITTER.split(text[:place])
    assert begun[:-1] == whole[: max(len(begun) - 1, 0)]
    if begun:
        assert "".join(whole[len(begun) - 1 :]).startswith(begun[-1])


def test_spaces_and_strides_cut_where_their_papers_do():
    assert cut_rule("spaces", 16)(b"two words, 3\n\nx") == [4, 6, 3, 2]
    assert cut_rule("stride", 4)(b"123456789") == [4, 4, 1]
    assert cut_rule("spaces", 3)(b"abcde f") == [3, 3, 1]


def test_a_long_word_is_cut_between_characters():
    assert SPLITTER.split_bytes("潮汐潮".encode(), 4) == ["潮".encode(), "汐".encode(), "潮".encode()]
    assert SPLITTER.split_bytes("潮".encode(), 2) == [b"\xe6\xbd", b"\xae"]
    assert len(SPLITTER.split_bytes(b"a" * 100_000, 16)) == 6250
    assert SPLITTER.split_bytes("a b") == [b"a", b" b"]


def test_what_cannot_be_cut_by_is_told():
    with without_shape_checks():
        for most in (True, 2.5):
            with pytest.raises(UserError, match="most="):
                SPLITTER.split_bytes(b"a", most)
    with pytest.raises(UserError, match="D800"):
        SPLITTER.split_bytes("\ud800")
    for call in (lambda: SPLITTER.split_bytes(b"a", 0), lambda: cut_rule("hat", 0), lambda: cut_rule("hatt", 4)):
        with pytest.raises(UserError) as told:
            call()
        assert "\n" not in str(told.value)
