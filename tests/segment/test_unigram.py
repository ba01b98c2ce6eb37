"""Unigram models from weighted strings."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mintage.segment.core.unigram import learn_unigram, seed_pieces

WORDS = st.dictionaries(st.text("abcĠ漢", min_size=0, max_size=7), st.integers(1, 3), max_size=6)


def counted(weights, longest):
    """Count every substring, and drop what one character always follows."""
    counts, follows = Counter(), Counter()
    for word, weight in weights.items():
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + longest) + 1):
                counts[word[start:end]] += weight
    for piece, count in counts.items():
        follows[piece[:-1]] = max(follows[piece[:-1]], count)
    return {
        piece: count
        for piece, count in counts.items()
        if len(piece) > 1 and count > 1 and (len(piece) == longest or follows[piece] < count)
    }


@given(WORDS, st.integers(2, 5))
def test_seeds_are_what_counting_every_substring_gives(weights, longest):
    assert seed_pieces(weights, longest) == counted(weights, longest)


def test_the_best_seeds_are_those_that_cover_most():
    weights = {"of": 8, "the": 7, "winter": 3}
    assert seed_pieces(weights, 8, most=2) == {"the": 7, "winter": 3}
    assert list(seed_pieces(weights, 8))[:3] == ["the", "winter", "of"]


def test_a_frequent_word_is_a_piece_although_its_parts_are_frequent_too():
    weights = {"Ġand": 5000, "and": 40, "Ġ": 2500, "Ġband": 3, "Ġhand": 4, "Ġan": 900, "Ġthe": 9000, "they": 2}
    weights |= {f"Ġ{a}{b}{c}": 1 for a in "xyz" for b in "aeiou" for c in "klmn"}
    pieces = learn_unigram(weights, 30, 8)
    assert {"Ġand", "Ġthe"} <= set(pieces)


def test_the_usual_name_of_the_unknown_piece_is_text_like_any_other():
    pieces = learn_unigram({"<unk>": 50, "a<unk>b": 20, "ab": 9}, 12, 8)
    assert "<unk>" in pieces
    assert len(pieces) <= 12
    assert set("<unk>ab") <= set(pieces)
