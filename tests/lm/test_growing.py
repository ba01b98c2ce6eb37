"""Words of a text that grows, and the rows that hold its late bytes twice."""

import pytest

from mintage.lm.core.cuts import cut_rule
from mintage.lm.core.growing import Layout, ends_of_words, grow

TEXTS = [
    "The sea has tides, because the moon doesn't stand still (3.5 km away); camelCase.",
    "Die Haustür; вода и луна, ещё раз.\n\n  Ende!",
    "月亮引起潮汐。おはようございます 안녕하세요",
    "🇩🇪🇫🇷 👩‍👩‍👧 e\u0301 a\u00adb def f(x):\r\n\treturn x ** 2",
    "a" * 50 + "ü" * 30,
]


def over(cut="hat", most=12):
    return ends_of_words(cut_rule(cut, most))


@pytest.mark.parametrize("cut", ["hat", "spaces", "stride"])
@pytest.mark.parametrize("text", TEXTS)
def test_words_that_grow_are_those_of_the_whole_text(text, cut):
    data = text.encode()
    found = grow(over(cut), data)
    rest = len(data) - sum(found.lengths)
    assert [*found.lengths, rest] == cut_rule(cut, 12)(data)


@pytest.mark.parametrize(
    "data", [*(text.encode() for text in TEXTS), bytes(range(256)), "1\u20442 3\u20444".encode(), b"\xe6\x9c a\xe6"]
)
def test_words_follow_from_the_bytes_before_them(data):
    whole = grow(over(), data)
    for end in range(0, len(data), 1 + len(data) // 40):
        part = grow(over(), data[:end])
        assert part.known == whole.known[:end]
        assert part.lengths == whole.lengths[: len(part.lengths)]
        assert len(part.lengths) == (part.known or [0])[-1]
    assert len(whole.word) == len(data)
    assert all(whole.word >= whole.known)


def test_a_character_begins_a_word_when_it_is_whole():
    found = grow(over(), "a月".encode())
    assert found.known == [0, 0, 0, 1]
    assert found.word.tolist() == [0, 1, 1, 1]
    assert grow(over(), "aü".encode()).known == [0, 0, 0]


def test_late_places_stand_twice_and_are_predicted_from_as_they_were_read():
    layout = Layout.of([grow(over(), "a月".encode()), grow(over(), b"ab")], 5)
    assert layout.place.tolist() == [[0, 1, 2, 3, 2, 3, 4], [0, 1, 2, 0, 0, 0, 0]]
    assert layout.word.tolist()[0] == [0, 0, 0, 0, 1, 1, 1]
    assert layout.late.tolist() == [[-1, -1, 2, 2, -1, -1, -1], [-1] * 7]
    assert layout.last.tolist() == [[0, 1, 2, 3, 6], [0, 1, 2, 0, 0]]
