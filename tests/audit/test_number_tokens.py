import json
import os
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from mintage.audit.core.digits import (
    SCHEMES,
    format_numbers,
    format_scheme,
    group_digits,
    number_pattern,
    number_split,
    number_tokenizer,
    scheme,
    tokenizer_cut,
)
from mintage.audit.core.r2l import save_tokenizer, to_r2l
from mintage.audit.number_tokens import NumberTokens, kind_of
from mintage.errors import UserError

VECTORS = Path(__file__).parents[1] / "vectors" / "number-tokens"

CLASSES = ["[0-9]", r"\p{Nd}", r"\p{N}"]
DIGITS = st.text("0123456789", max_size=40)
SIZES = st.integers(1, 5)
SIDES = st.sampled_from(["l2r", "r2l"])
# Without unassigned characters: Python, regex and tokenizers know the Unicode of different years.
TEXTS = st.text(
    st.sampled_from("0123456789.,- a_é²Ⅷ٣४\n") | st.characters(exclude_categories=["Cs", "Cn"]), max_size=60
)
DIGIT_FREE = st.text(st.characters(exclude_categories=["Cs", "Nd", "Nl", "No"]), max_size=60)

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{CONTRACTIONS}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{CONTRACTIONS}?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def with_pre_tokenizer(*stages, spaced=False):
    """A byte tokenizer with all 1110 digit strings (and, `spaced`, those after a space), behind `stages`."""
    tokenizer = number_tokenizer("l2r")
    if spaced:
        described = json.loads(tokenizer.to_str())
        vocabulary = described["model"]["vocab"]
        for digits in [f"{n:0{width}d}" for width in (1, 2, 3) for n in range(10**width)]:
            vocabulary["Ġ" + digits] = len(vocabulary)
        tokenizer = Tokenizer.from_str(json.dumps(described))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(stages))
    return tokenizer


def published(pattern, behavior="isolated", invert=False):
    split = pre_tokenizers.Split(Regex(pattern), behavior, invert=invert)
    return with_pre_tokenizer(split, pre_tokenizers.ByteLevel(False, use_regex=False))


KNOWN = {
    "gpt-4o": lambda: published(GPT4O, "removed", True),
    "llama-3": lambda: published(LLAMA3),
    "grouped": lambda: published(f"(?:{LLAMA3})"),
    "qwen": lambda: published(QWEN),
    "d": lambda: published(r"\d{1,3}|\p{L}+"),
    "digits": lambda: with_pre_tokenizer(pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False, use_regex=True)),
    "whole digits": lambda: with_pre_tokenizer(pre_tokenizers.Digits(False), pre_tokenizers.ByteLevel(False)),
    "gpt-2": lambda: with_pre_tokenizer(pre_tokenizers.ByteLevel(False, use_regex=True), spaced=True),
}
R2L = {name: (make(), to_r2l(make())) for name, make in KNOWN.items()}
known = pytest.mark.parametrize("name", KNOWN)


def cut_of(split, text):
    return [piece for piece, _ in split.pre_tokenize_str(text)]


# -- parity ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["group3", "edge"])
def vectors(request):
    return np.load(VECTORS / f"{request.param}.npz")


@pytest.mark.parametrize("side", ["l2r", "r2l"])
def test_groups_are_the_authors(vectors, side):
    for row, (digits, size) in enumerate(zip(vectors["digits"], vectors["group"], strict=True)):
        groups = group_digits(str(digits), int(size), side)
        assert ",".join(groups) == vectors[f"{side}_joined"][row]
        lengths = vectors[f"{side}_lengths"][row]
        assert [len(g) for g in groups] == lengths[lengths > 0].tolist()


def test_formats_are_the_authors(vectors):
    for number, name, result in zip(
        vectors["format_number"], vectors["format_scheme"], vectors["format_result"], strict=True
    ):
        assert format_scheme(str(number), str(name)) == result


# -- grouping ----------------------------------------------------------------------------------------------------------


@given(DIGITS, SIZES)
def test_grouping_laws(digits, size):
    left, right = group_digits(digits, size, "l2r"), group_digits(digits, size, "r2l")
    for groups, short in ((left, -1), (right, 0)):
        assert "".join(groups) == digits
        assert len(groups) == -(-len(digits) // size)
        whole = [g for place, g in enumerate(groups) if place != short % len(groups)] if groups else []
        assert all(len(g) == size for g in whole)
        assert all(1 <= len(g) <= size for g in groups)
    assert right == [g[::-1] for g in group_digits(digits[::-1], size, "l2r")][::-1]
    assert (left == right) == (len(digits) % size == 0 or len(digits) <= size)


@given(DIGITS, DIGITS, st.integers(0, 4), SIZES)
def test_right_groups_keep_their_suffix_and_left_groups_their_prefix(one, two, count, size):
    same = ("123456789" * 3)[: count * size]
    tails = [group_digits(x + same, size, "r2l")[-count:] if count else [] for x in (one, two)]
    heads = [group_digits(same + x, size, "l2r")[:count] for x in (one, two)]
    assert tails[0] == tails[1] == group_digits(same, size, "r2l")
    assert heads[0] == heads[1] == group_digits(same, size, "l2r")


def test_leading_zeros_stay_and_nothing_has_no_groups():
    assert group_digits("007") == ["007"]
    assert group_digits("0001234") == ["0", "001", "234"]
    assert group_digits("") == []


def test_the_default_is_from_the_right():
    assert group_digits("10642122") == ["10", "642", "122"]
    assert group_digits("10642122", direction="l2r") == ["106", "421", "22"]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: group_digits("12a4"), "'a', which is no digit"),
        (lambda: group_digits("12", 0), "size=0 is below 1"),
        (lambda: group_digits("12", 3, "rtl"), "direction='rtl' is not one of l2r, r2l"),
        (lambda: format_numbers("12", "1"), "holds a digit"),
        (lambda: format_numbers("12", digit_class="[a-z]"), "digit_class='[a-z]' is not one of [0-9]"),
        (lambda: format_numbers("12", fraction="r2l"), "fraction='r2l' is not one of l2r"),
        (lambda: format_numbers("12", only_if_longer_than=-1), "only_if_longer_than=-1 is negative"),
        (lambda: scheme("coma_r2l"), "did you mean 'comma_r2l'"),
        (lambda: number_tokenizer(size=5), "size=5"),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_bad_settings_are_one_line(call, says):
    with pytest.raises(UserError) as error:
        call()
    assert says in str(error.value)
    assert "\n" not in str(error.value)


# -- formats -----------------------------------------------------------------------------------------------------------


@given(TEXTS, st.sampled_from(sorted(SCHEMES)))
def test_a_format_changes_nothing_but_separators(text, name):
    mark, side = SCHEMES[name]
    expected = regex.sub("[0-9]+", lambda m: mark.join(group_digits(m.group(), 3, side)), text)
    assert format_scheme(text, name) == expected
    if mark not in ("", ".", " ", ",") and mark not in text:
        assert format_scheme(text, name).replace(mark, "") == text


def test_formats_by_example():
    assert format_numbers("12345 and 1234kg, 12_3456") == "12,345 and 1,234kg, 12_3,456"
    assert format_numbers("3.14159265") == "3.14,159,265"
    assert format_numbers("1234.14159265", fraction="l2r") == "1,234.141,592,65"
    assert format_numbers(".5 x. 12345", fraction="l2r") == ".5 x. 12,345"
    assert format_numbers("in 2024: 20240", only_if_longer_than=4) == "in 2024: 20,240"
    assert format_numbers("123² ٣٤٥٦", digit_class="[0-9]") == "123² ٣٤٥٦"
    assert format_numbers("123² ٣٤٥٦", digit_class=r"\p{Nd}") == "123² ٣,٤٥٦"
    assert format_numbers("123² ٣٤٥٦", digit_class=r"\p{N}") == "1,23² ٣,٤٥٦"
    assert set(SCHEMES) == {"nosep"} | {
        f"{name}_{side}"
        for name in ["comma", "space", "dec", "hash", "dollar", "foo", "nosep"]
        for side in ("l2r", "r2l")
    }


# -- the pre-tokenizer -------------------------------------------------------------------------------------------------


def pieces(text, size, side, digit_class, fraction, longer):
    """What a text is cut to: the groups of every digit run, as the function has them, and what lies between."""
    found, end = [], 0
    for match in regex.finditer(f"{digit_class}+", text):
        found += [text[end : match.start()]]
        run = match.group()
        after_point = regex.search(rf"{digit_class}\.$", text[: match.start()])
        if len(run) <= longer:
            found += [run]
        else:
            found += group_digits(run, size, "l2r" if fraction and after_point else side)
        end = match.end()
    return [piece for piece in [*found, text[end:]] if piece]


@given(TEXTS, SIZES, SIDES, st.sampled_from(CLASSES), st.sampled_from([None, "l2r"]), st.integers(0, 6))
@settings(max_examples=300)
def test_the_expression_is_the_function_on_every_run(text, size, side, digit_class, fraction, longer):
    options = {"fraction": fraction, "only_if_longer_than": longer}
    split = number_split(side, size, digit_class, **options)
    wanted = pieces(text, size, side, digit_class, fraction, longer)
    assert cut_of(split, text) == wanted
    groups = regex.findall(number_pattern(side, size, digit_class, **options), text)  # and in Python's regex
    assert groups == [p for p in wanted if regex.match(digit_class, p)]


@given(TEXTS)
def test_it_is_the_published_expression(text):
    plain = pre_tokenizers.Split(Regex(r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"), "isolated")
    assert cut_of(number_split(), text) == cut_of(plain, text)


def test_tiktoken_reads_it():
    tiktoken = pytest.importorskip("tiktoken")
    strings = [bytes([b]) for b in range(256)] + [f"{n:0{w}d}".encode() for w in (2, 3) for n in range(10**w)]
    ranks = {s: rank for rank, s in enumerate(strings)}
    encoding = tiktoken.Encoding("r2l", pat_str=number_pattern() + r"|\P{N}+", mergeable_ranks=ranks, special_tokens={})
    assert [encoding.decode([i]) for i in encoding.encode("10642122")] == ["10", "642", "122"]


def test_long_numbers_take_linear_time():
    from time import perf_counter

    def seconds(length):
        times = []
        for _ in range(5):
            began = perf_counter()
            assert len(cut_of(number_split(), "1" * length)) == -(-length // 3)
            times.append(perf_counter() - began)
        return min(times)

    assert seconds(160_000) < 32 * max(seconds(20_000), 0.01)  # quadratic would be 64 times as long


@given(TEXTS, SIDES)
def test_encoding_is_lossless(text, side):
    tokenizer = BYTES[side]
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


BYTES = {"l2r": number_tokenizer("l2r"), "r2l": number_tokenizer("r2l")}


# -- rewriting ---------------------------------------------------------------------------------------------------------


@known
def test_a_known_tokenizer_cuts_from_the_right(name):
    before, after = R2L[name]
    for number in ("7", "42", "007", "2024", "10642122", "1" * 31):
        for prefix in ("", " ", "x", "=", "  ", "\t", "1+", "1 "):
            kept = ["1"] if "1" in prefix else []
            assert tokenizer_cut(after, [number], prefix)[0] == kept + group_digits(number)
    assert after.get_vocab() == before.get_vocab()
    assert after.model.__getstate__() == before.model.__getstate__()


@known
@given(text=DIGIT_FREE)
@settings(max_examples=40)
def test_digit_free_text_is_cut_as_before(name, text):
    before, after = R2L[name]
    assert after.encode(text).tokens == before.encode(text).tokens


@known
@given(text=TEXTS)
@settings(max_examples=40)
def test_the_copy_is_lossless_and_cuts_every_number(name, text):
    after = R2L[name][1]
    encoding = after.encode(text)
    assert after.decode(encoding.ids) == text
    cut = [d for t in encoding.tokens if (d := "".join(c for c in t if c in "0123456789"))]
    if not regex.search(r"(?![0-9])\p{N}", text):  # other numerals join a run
        assert cut == [g for run in regex.findall("[0-9]+", text) for g in group_digits(run)]


@known
def test_the_copy_survives_json_and_the_original_stays(name, tmp_path):
    before = KNOWN[name]()
    state = before.to_str()
    after = to_r2l(before)
    assert before.to_str() == state
    path = tmp_path / "tokenizer.json"
    after.save(str(path))
    assert Tokenizer.from_file(str(path)).encode("a 10642122!").ids == after.encode("a 10642122!").ids


def test_a_narrower_class_leaves_the_other_numerals_to_the_branch():
    tokenizer = published(LLAMA3)
    after = to_r2l(tokenizer, digit_class="[0-9]")
    assert tokenizer_cut(after, ["10642122"]) == [["10", "642", "122"]]
    assert tokenizer_cut(after, ["1234"], "²") == [["1", "234"]]
    for text in ("²²²²", "ⅧⅧ", "٣٤٥٦٧", "x²³ ½¾⅓¼"):
        assert after.encode(text).tokens == tokenizer.encode(text).tokens


def test_short_runs_can_stay_as_they_were():
    for name, year in (("llama-3", ["202", "4"]), ("gpt-4o", ["202", "4"])):
        after = to_r2l(KNOWN[name](), only_if_longer_than=4)
        assert tokenizer_cut(after, ["2024", "20240"]) == [year, ["20", "240"]]
    before = KNOWN["gpt-2"]()
    after = to_r2l(before, only_if_longer_than=4)
    assert tokenizer_cut(after, ["2024"], " ") == tokenizer_cut(before, ["2024"], " ")
    assert tokenizer_cut(after, ["20240"], " ") == [["20", "240"]]


def test_decimals_can_be_cut_from_the_point():
    after = to_r2l(KNOWN["llama-3"](), fraction="l2r")
    assert tokenizer_cut(after, ["31415.9265358", "v.1234"]) == [["31", "415", "926", "535", "8"], ["1", "234"]]


def test_a_vocabulary_without_the_groups_is_refused_but_can_be_trained_on():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    numbers = [str(n) for n in range(1000, 10_000)]
    trainer = trainers.BpeTrainer(vocab_size=1600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(numbers, trainer)
    with pytest.raises(UserError, match="cannot build 1100 of 1110 groups of up to 3 digits"):
        to_r2l(tokenizer)
    empty = to_r2l(tokenizer, allow_missing=True)
    empty.train_from_iterator(numbers, trainer)
    assert tokenizer_cut(empty, ["2024"]) == [["2", "024"]]


@pytest.mark.parametrize(
    ("make", "options", "says"),
    [
        (lambda: with_pre_tokenizer(pre_tokenizers.Whitespace()), {}, "no digit branch"),
        (lambda: Tokenizer(models.BPE()), {}, "no digit branch"),
        (lambda: published(r"\p{N}+(?=\s)|\p{L}+"), {}, "looks ahead already"),
        (lambda: to_r2l(KNOWN["llama-3"]()), {}, "looks ahead already"),
        (lambda: published(r"[\p{N}a-z]+|\p{N}{1,3}"), {}, "takes its digits first"),
        (lambda: published(LLAMA3, "merged_with_next"), {}, "MergedWithNext"),
        (lambda: published(r"[0-9]{1,3}|\p{L}+"), {"digit_class": r"\p{N}"}, "wider than this tokenizer's"),
        (lambda: with_pre_tokenizer(pre_tokenizers.ByteLevel(True, use_regex=True)), {}, "add_prefix_space"),
        (KNOWN["qwen"], {"only_if_longer_than": 4}, "only_if_longer_than=4 needs"),
        (KNOWN["llama-3"], {"size": 4}, "cannot build"),
        (lambda: "llama-3", {}, "str is no tokenizers.Tokenizer"),
    ],
)
def test_what_cannot_be_rewritten_is_refused_in_one_line(make, options, says):
    with pytest.raises(UserError) as error:
        to_r2l(make(), **options)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_saved_folder_is_what_transformers_reads(tmp_path):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    source = tmp_path / "source"
    original = PreTrainedTokenizerFast(tokenizer_object=KNOWN["llama-3"](), eos_token="<|end|>", pad_token="<pad>")
    original.chat_template = "{{ messages[0]['content'] }}"
    original.save_pretrained(source)
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "Qwen2Tokenizer"}))

    changed = to_r2l(Tokenizer.from_file(str(source / "tokenizer.json")))
    save_tokenizer(changed, tmp_path / "r2l", source)
    again = AutoTokenizer.from_pretrained(tmp_path / "r2l")
    assert again.tokenize("x10642122") == ["x", "10", "642", "122"]
    assert again.decode(again("10642122 apples")["input_ids"]) == "10642122 apples"
    assert (again.eos_token, again.pad_token) == ("<|end|>", "<pad>")
    assert again.chat_template == original.chat_template
    with pytest.raises(UserError, match="nothing was written"):
        save_tokenizer(changed, tmp_path / "r2l")
    (source / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        save_tokenizer(changed, tmp_path / "other", source)
    assert not (tmp_path / "other").exists()


# -- the report --------------------------------------------------------------------------------------------------------


def test_a_left_cutter_is_reported():
    report = NumberTokens(samples=50).run(number_tokenizer("l2r"), name="left")
    assert report.findings["cut"] == "left to right, groups of 3"
    assert report.findings["share left to right"] == 1
    assert report.findings["single tokens"] == 1110
    assert report.findings["example"] == "10642122 = 106|421|22"
    assert [row["length"] for row in report.table] == list(range(1, 16))
    for row in report.table:
        told = row["length"] > 3 and row["length"] % 3 > 0
        assert row["l2r"] == told
        assert row["both"] == (not told)
        assert row["r2l"] == row["digits"] == row["irregular"] == 0
        assert row["cuts"] == 1
        assert row["tokens"] == -(-row["length"] // 3)
    assert [row["usual_cut"] for row in report.table][7] == "3+3+2"


def test_a_right_cutter_and_a_single_digit_cutter_are_reported():
    report = NumberTokens(samples=50).run(number_tokenizer("r2l"))
    assert report.findings["cut"] == "right to left, groups of 3"
    assert report.findings["example"] == "10642122 = 10|642|122"
    singles = NumberTokens(samples=50).run(number_tokenizer("r2l", 1))
    assert singles.findings["cut"] == "single digits"
    assert singles.findings["single tokens"] == 10
    assert singles.table[5]["digits"] == 1


def test_merges_without_a_number_pattern_are_irregular():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([str(n * 7919) for n in range(20_000)], trainer)
    report = NumberTokens(samples=300).run(tokenizer)
    assert report.findings["cut"] == "irregular"
    assert report.findings["most cuts of one length"] > 2
    assert 110 < report.findings["single tokens"] < 1110
    for row in report.table:
        assert sum(row[k] for k in ("l2r", "r2l", "both", "digits", "irregular")) == (pytest.approx(1))


def test_a_prefix_padding_and_truncation_do_not_confuse_the_report():
    tokenizer = number_tokenizer("r2l")
    plain = NumberTokens(samples=20).run(tokenizer)
    tokenizer.enable_padding(pad_token="!0", pad_id=0, length=40)
    tokenizer.enable_truncation(2)
    assert NumberTokens(samples=20).run(tokenizer).table == plain.table
    assert NumberTokens(samples=20, prefix="= ").run(tokenizer).table == plain.table
    with pytest.raises(UserError, match="prefix '1' holds a digit"):
        NumberTokens(prefix="1")
    with pytest.raises(UserError, match="samples=0"):
        NumberTokens(samples=0)


def test_an_unknown_token_is_irregular():
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "1": 1}, unk_token="[UNK]"))
    report = NumberTokens(max_length=5, samples=10).run(tokenizer)
    assert report.findings["share irregular"] == 1
    assert report.findings["single tokens"] == 1


def test_kinds_by_example():
    cases = {"1|2": "single digits", "12": "both", "123|4": "left to right", "1|234": "right to left"}
    cases |= {"12|34": "irregular", "123|456": "both", "1234": "irregular", "1": "both"}
    assert {cut: kind_of(cut.split("|")) for cut in cases} == cases


def test_every_number_of_a_short_length_is_looked_at():
    audit = NumberTokens()
    assert audit._numbers(1) == list("0123456789")
    assert audit._numbers(3) == [str(n) for n in range(100, 1000)]
    drawn = audit._numbers(4)
    assert len(set(drawn)) == 1000
    assert all(len(n) == 4 and n[0] != "0" for n in drawn)


@pytest.mark.e2e
def test_the_embedded_tokenizer_has_single_digits(tmp_path):
    from mintage.tokenizer_files import load_tokenizer

    tokenizer = load_tokenizer("smollm2")
    report = NumberTokens(samples=100, prefix=" ").run(tokenizer, name="smollm2")
    assert report.findings["cut"] == "single digits"
    assert report.findings["single tokens"] == 10
    with pytest.raises(UserError, match="train a new vocabulary"):
        to_r2l(tokenizer)
    changed = to_r2l(tokenizer, allow_missing=True)
    text = "No number here, café\n\n  def f(x): return x"
    assert changed.encode(text).ids == tokenizer.encode(text).ids
    assert [p for p, _ in changed.pre_tokenizer.pre_tokenize_str("=10642122")] == ["=", "10", "642", "122"]


# -- published vocabularies, where somebody put them ($MINTAGE_TOKENIZERS/NAME/tokenizer.json) -------------------------

OBSERVED = {
    "gpt4o": ("left to right, groups of 3", "106|421|22", 1110),
    "llama3": ("left to right, groups of 3", "106|421|22", 1110),
    "qwen3": ("single digits", "1|0|6|4|2|1|2|2", 10),
    "gemma3": ("single digits", "1|0|6|4|2|1|2|2", 10),
    "claude": ("irregular", "10|64|212|2", 1099),
}


@pytest.fixture
def published_tokenizer(request):
    from mintage.tokenizer_files import load_tokenizer

    root = Path(os.environ.get("MINTAGE_TOKENIZERS") or "no-such-folder")
    found = sorted(root.glob(f"*{request.param}*/**/tokenizer.json")) + sorted(root.glob(f"{request.param}.json"))
    if not found:
        pytest.skip(f"no {request.param} in $MINTAGE_TOKENIZERS")
    return request.param, load_tokenizer(found[0])


@pytest.mark.parametrize("published_tokenizer", OBSERVED, indirect=True)
def test_published_tokenizers_cut_as_observed(published_tokenizer):
    name, tokenizer = published_tokenizer
    cut, example, single = OBSERVED[name]
    findings = NumberTokens(samples=100).run(tokenizer, name=name).findings
    assert findings["cut"] == cut
    assert findings["example"] == f"10642122 = {example}"
    assert findings["single tokens"] == single
    assert tokenizer_cut(tokenizer, ["1234567"])[0] == (["12345", "67"] if name == "claude" else example_of(cut))
    if single == 1110:
        changed = to_r2l(tokenizer)
        assert tokenizer_cut(changed, ["10642122"]) == [["10", "642", "122"]]
        assert changed.get_vocab_size() == tokenizer.get_vocab_size()
        for text in ("Grüße, 世界!\n\n\t x", "it's ALL\u00a0here…", "   "):
            assert changed.encode(text).ids == tokenizer.encode(text).ids
    else:
        with pytest.raises(UserError):
            to_r2l(tokenizer)


def example_of(cut):
    return group_digits("1234567", 1 if cut == "single digits" else 3, "l2r")
