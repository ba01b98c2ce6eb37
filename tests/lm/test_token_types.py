"""Python's lexer for any text, the authors' streams, types of pieces, and CodeXGLUE's metrics."""

import io
import json
import keyword
import sys
import time
import tokenize
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mintage.errors import UserError
from mintage.lm.core.code_metrics import (
    LEADERBOARD,
    NO_INDENT,
    edit_similarity,
    line_metrics,
    plain_code,
    token_accuracy,
)
from mintage.lm.core.python_lexer import KEYWORDS, TYPES, lex_python
from mintage.lm.core.token_types import (
    LABELS,
    frequent_literals,
    lexical_cover,
    piece_types,
    python_token_types,
    repeat_types,
    syntax_cover,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "pycoder" / "token_types.json").read_text())
HERE = Path(__file__).read_text(encoding="utf-8")
CODE = st.text(st.sampled_from("'\"\\\n \t#()[]{}abrfuRB0189._eEjJxo=!<>-+:;,$?`~^|&@%/*\x0c²٣é\r\0"), max_size=60)


def _official(source):
    """The tokens of Python's own tokenizer up to where it raises, and whether it does."""
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    found = []
    try:
        for token in tokenize.tokenize(io.BytesIO(source.encode()).readline):
            if token.type in (tokenize.ENCODING, tokenize.ENDMARKER):
                continue
            kind = tokenize.tok_name[token.exact_type]
            kind = "EOL" if kind in ("NL", "NEWLINE") else kind
            kind = "KEYWORD" if kind == "NAME" and keyword.iskeyword(token.string) else kind
            if kind != "ERRORTOKEN" or token.string.strip():
                found.append((kind, token.string))
    except (tokenize.TokenError, SyntaxError):
        return found, True
    return found, False


def _ours(source):
    lexed = lex_python(source)
    count = len(lexed.types) if lexed.stop is None else lexed.stop
    texts = [
        source[a:b].replace("\r\n", "\n").replace("\r", "\n") for a, b in zip(lexed.starts, lexed.ends, strict=True)
    ]
    found = [(kind, text) for kind, text in zip(lexed.types[:count], texts, strict=False)]
    return [one for one in found if one[0] != "ERRORTOKEN" or one[1].strip()], lexed.stop is not None


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_streams_are_the_recorded_ones(case):
    tokens, types = python_token_types(case["source"], VECTORS["literals"])
    assert tokens == case["code_tokens"].split(" ")
    assert types == case["type_tokens"].split(" ")
    assert (len(tokens), len(types)) == (case["n_code"], case["n_type"])


@pytest.mark.parametrize("case", VECTORS["token_accuracy"])
def test_token_accuracy_is_the_recorded_one(case):
    for exclude, name in ((LEADERBOARD, "leaderboard"), (NO_INDENT, "no_indent")):
        wanted = case["accuracy"][name]
        assert token_accuracy(case["gt"], case["pred"], exclude) == (wanted["correct"], wanted["total"])


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="later tokenizers cut f-strings and raise at errors")
@given(CODE, st.integers(0, len(HERE) - 400), st.integers(0, 400), st.integers(0, 400))
def test_tokens_are_those_of_python_3_11(drawn, start, size, place):
    window = HERE[start : start + size]
    for source in (drawn, window, window[:place] + drawn[:3] + window[place:]):
        is_torn = any(
            kind == "ERRORTOKEN" and end > start + 1 for kind, start, end in zip(*lex_python(source)[:3], strict=True)
        )  # behind such a string Python 3.11 takes the next one of several lines for an error, too
        if not is_torn and "coding" not in source and not source.startswith("\ufeff"):
            assert _ours(source) == _official(source), source


SURPRISES = {
    "f-string": ("f'{x!r:>{w}} {{'\n", "STRING EOL"),
    "template": ("t'{x}'\n", "NAME STRING EOL"),
    "nested quotes": ("f'{a['k']}'\n", "STRING NAME STRING EOL"),
    "open quote": ("x = 'abc\ny", "NAME EQUAL ERRORTOKEN NAME EOL NAME EOL"),
    "open triple quote": ("x = '''abc\ny", "NAME EQUAL STRING"),
    "python 2": ("print `x`, 0777L\n", "NAME ERRORTOKEN NAME ERRORTOKEN COMMA NUMBER NUMBER NAME EOL"),
    "dedent between": ("if x:\n    y\n  z\n", "KEYWORD NAME COLON EOL INDENT NAME EOL NAME EOL"),
    "tab": ("if x:\n\ty\n        z\n", "KEYWORD NAME COLON EOL INDENT NAME EOL NAME EOL DEDENT"),
    "null": ("a\0b", "NAME ERRORTOKEN NAME EOL"),
    "walrus": ("(x:=1)", "LPAR NAME COLONEQUAL NUMBER RPAR EOL"),
    "soft keyword": ("match x:\n", "NAME NAME COLON EOL"),
}


@pytest.mark.parametrize("name", SURPRISES)
def test_every_python_has_these_types(name):
    source, wanted = SURPRISES[name]
    assert lex_python(source).types == wanted.split()


def test_keywords_and_types_are_those_of_the_paper():
    if sys.version_info[:2] == (3, 11):
        assert set(keyword.kwlist) == KEYWORDS
    assert len(TYPES) == len(set(TYPES))
    assert {"NAME", "KEYWORD", "NUMBER", "STRING", "LPAR", "DOUBLESTAR", "ERRORTOKEN"} <= set(TYPES)


@given(st.one_of(st.text(max_size=80), CODE))
def test_any_text_is_covered_and_has_as_many_tokens_as_types(source):
    cover = lexical_cover(source)
    assert "".join(source[start:end] for start, end, _ in cover) == source
    assert {kind for *_, kind in cover} <= set(TYPES)
    tokens, types = python_token_types(source)
    assert len(tokens) == len(types)
    assert python_token_types(source) == (tokens, types)


def test_every_beginning_of_a_file_is_read_as_the_file_is():
    source = (
        "import os\n\n\nclass A:\n    x = 1\n\n    def f(self, a=(1, 2)):\n        return a[0] * self.x\n\n\ny = A()\n"
    )
    whole, lexed = python_token_types(source)[0][1:-1], lex_python(source)
    for place in range(len(source)):
        assert len(lexical_cover(source[:place])) > 0 or place == 0
    structure = {"<EOL>", "<INDENT>", "<DEDENT>"}
    depth = 0
    for kind, end in zip(lexed.types, lexed.ends, strict=True):
        depth += (kind in ("LPAR", "LSQB")) - (kind in ("RPAR", "RSQB"))
        if not depth and kind not in ("EOL", "DEDENT", "INDENT"):
            tokens = python_token_types(source[:end])[0][1:-1]
            while tokens and tokens[-1] in structure:
                tokens.pop()
            assert tokens == whole[: len(tokens)]


@pytest.mark.parametrize(
    "source",
    [
        '"\\' * 40_000,
        "f'" * 40_001,
        "('" * 40_000,
        "'\n\"\n" * 20_000,
        "'a\\\n" * 30_000,
        "x" * 200_000,
        "1_" * 60_000,
        "'''" + "\\" * 90_001,
        "\\\n" * 60_000,
        "".join(" " * n + "if x:\n" for n in range(400)),
    ],
    ids=lambda source: repr(source[:6]),
)
def test_time_grows_with_the_text_whatever_is_in_it(source):
    began = time.process_time()
    lex_python(source)
    assert time.process_time() - began < 3  # what is quadratic takes minutes


def test_literals_that_are_frequent_are_kept():
    source = "f(rb'a b', 'x', 'x', \"\"\"x\"\"\", 1, 1, 0x1F)\n"
    assert frequent_literals([source], 1, 1) == {"str": ["x"], "num": ["1"]}
    tokens, _ = python_token_types(source, frequent_literals([source], 2, 1))
    wanted = "f ( rb'<STR_LIT:aU+0020b>' , '<STR_LIT:x>' , '<STR_LIT:x>' , \"\"\"<STR_LIT:x>\"\"\" , <NUM_LIT:1>"
    assert " ".join(tokens[1:12]) == wanted
    assert [plain_code(token) for token in tokens[12:16]] == [",", "1", ",", "0"]


def test_types_are_repeated_for_pieces():
    assert repeat_types(["NAME", "EOL"], [3, 1]) == ["NAME", "NAME", "NAME", "EOL"]
    for counts in ([1], [1, -1]):
        with pytest.raises(UserError):
            repeat_types(["NAME", "EOL"], counts)


def test_pieces_of_a_tokenizer_have_the_type_of_what_begins_in_them():
    source = "if ab:\n    c = 'é'\n    d\ne"
    pieces = ["if", " a", "b", ":", "\n   ", " c", " =", " ", "'é", "'", "\n    ", "d", "\n", "e"]
    ends = np.cumsum([len(piece) for piece in pieces]).tolist()
    cover = lexical_cover(source)
    offsets = list(zip([0, *ends[:-1]], ends, strict=True))
    wanted = "KEYWORD NAME NAME COLON INDENT NAME EQUAL EQUAL STRING STRING EOL NAME DEDENT NAME"
    assert [cover[index][2] for index in piece_types(cover, offsets)] == wanted.split()


def test_the_syntax_tree_types_whole_files_only():
    source = "x = f('é', 2)\n# c\r\nif x:\n    pass"
    cover = syntax_cover(source)
    assert "".join(source[start:end] for start, end, _ in cover) == source
    of = {source[start:end]: kind for start, end, kind in cover}
    assert (of["f"], of["'é'"], of["pass"]) == ("Name", "Constant", "Pass")
    assert {kind for *_, kind in cover} <= set(LABELS["ast"].names)
    for broken in ("x = f(", "print 'x'", "a\0b", "\ud800"):
        assert syntax_cover(broken) is None
        assert lexical_cover(broken)


@given(st.text("abc ", max_size=12), st.text("abc ", max_size=12))
def test_edit_similarity_is_that_of_insertions_and_deletions(a, b):
    found = edit_similarity(a, b)
    assert found == edit_similarity(b, a)
    assert 100 * SequenceMatcher(None, a, b, autojunk=False).ratio() - 1e-9 <= found <= 100
    assert (found == 100) == (a == b)


def test_lines_are_judged_by_the_first_proposal_and_ranked_by_the_first_right_one():
    found = line_metrics(
        ["return a + <NUM_LIT:1>", "x = '<STR_LIT:foo>'"], [["return  a + 1 "], ["x = ''", "x = 'foo'"]]
    )
    assert found.exact == 50
    assert found.rank == 0.75
    assert found.similarity == pytest.approx((100 * 24 / 25 + 200 * 6 / 15) / 2)
    for bad in (([], []), (["a"], [])):
        with pytest.raises(UserError):
            line_metrics(*bad)
    with pytest.raises(UserError, match="2 predictions for 1 tokens"):
        token_accuracy(["a"], ["a", "b"])
