"""Laws of the segment contract."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from mintage.segment.contract import Segmenter, Trainer, load
from mintage.testing.refusals import refusal, refused
from mintage.testing.settings import a_wrong_setting_is_refused

__all__ = ["CORPUS", "LAWS", "TEXTS"]

CORPUS = [
    "The sea has tides because the moon pulls the water, and the sea-water follows the moon.\n",
    "A lighthouse-keeper keeps the lighthouse; the book-keeper keeps the books, a bookkeeper by the sea.\n",
    "Die Haustür und die Haus-Tür: ein Wort, zwei Schreibweisen. Das Wasser, die Wasser-Uhr, die Wasseruhr.\n",
    "月亮 引起 潮汐，海水 跟着 月亮 走。 潮汐 每天 两 次。\n",  # noqa: RUF001
    "def tide(moon, sea):\n    return moon.pull(sea) * 2 + 1  # twice a day\n",
] * 4
"""What the laws train on."""

TEXTS = [
    "",
    " ",
    "the moon pulls the sea",
    "The  moon   pulls\tthe sea \n\n and \r\n lets go. ",
    "\ufeffbyte order mark",
    "nul \0 and \x01 control \x7f",
    "emoji 👩‍👩‍👧‍👦 🏳️‍🌈 é e\u0301 ﬁ ½ Å",
    "月亮引起潮汐 พระจันทร์ द्वारा ܫܠܡܐ ⴰⵣⵓⵍ",
    "\U0010ffff\ue000\u2028\u2029\x85\u200b",
    "Donaudampfschifffahrtsgesellschaft 1234567.89 -- <s> </s> [UNK] <0x41> ▁ Ġ ##",
    "a" * 300,
]
"""Strings that break tokenizers."""

BYTES = [b"\xff\xfe\x00", bytes(range(256)), b"caf\xc3", b"\xed\xa0\x80 surrogate", b"\xf0\x9f\x91"]


@cache
def _trained(trainer: Trainer) -> Segmenter:
    return trainer.train(CORPUS)


def lossless_on_every_string(trainer: Trainer) -> None:
    """decode(encode(s)) == s for the strings that break tokenizers and for random ones."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    segmenter = _trained(trainer)
    for text in TEXTS:
        assert segmenter.decode(segmenter.encode(text)) == text
    likely = st.text(alphabet="the moonsawrTH-\n é潮", max_size=60)

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))  # pyright: ignore
    @given(st.one_of(st.text(max_size=40), likely))
    def check(text: str) -> None:
        assert segmenter.decode(segmenter.encode(text)) == text

    check()


def lossless_on_every_byte_string(trainer: Trainer) -> None:
    """decode_bytes(encode(b)) == b, UTF-8 or not."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    segmenter = _trained(trainer)
    for data in BYTES:
        assert segmenter.decode_bytes(segmenter.encode(data)) == data

    @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))  # pyright: ignore
    @given(st.binary(max_size=40))
    def check(data: bytes) -> None:
        assert segmenter.decode_bytes(segmenter.encode(data)) == data

    check()


def long_texts_are_cut_whole(trainer: Trainer) -> None:
    """A text of 200 kB without a line break comes back, and costs no more than linear time."""
    segmenter = _trained(trainer)
    text = ("the moon pulls the sea-water and 潮汐 " * 6000)[:150_000]
    assert segmenter.decode(segmenter.encode(text)) == text


def ids_are_in_range_and_mean_bytes(trainer: Trainer) -> None:
    """Ids are in the vocabulary; where ids mean bytes, the vocabulary has no duplicates and they join to the input."""
    segmenter = _trained(trainer)
    tokens = segmenter.tokens()
    if tokens is not None:
        assert len(tokens) == segmenter.vocab_size
    for text in [*TEXTS, *CORPUS, *BYTES]:
        data = text if isinstance(text, bytes) else text.encode()
        ids = segmenter.encode(text)
        assert all(0 <= i < segmenter.vocab_size for i in ids)
        assert bool(ids) == bool(data)
        if tokens is not None:
            assert b"".join(tokens[i] for i in ids) == data


def text_and_its_bytes_are_one(trainer: Trainer) -> None:
    """A text and its UTF-8 give the same ids; a batch gives what its texts give alone."""
    segmenter = _trained(trainer)
    alone = [segmenter.encode(text) for text in TEXTS]
    assert alone == [segmenter.encode(text.encode()) for text in TEXTS]
    assert alone == segmenter.encode_batch(TEXTS)


def training_repeats(trainer: Trainer) -> None:
    """The same texts give the same segmenter, whether they come as a list or as a stream."""
    again = trainer.train(text for text in CORPUS)
    assert _plain(again) == _plain(_trained(trainer))


def _plain(segmenter: Segmenter) -> Any:
    values, arrays = segmenter.state()
    return json.loads(json.dumps(values)), {name: (a.dtype.str, a.tolist()) for name, a in arrays.items()}


def saving_changes_nothing(trainer: Trainer) -> None:
    """What is loaded equals what was saved; a second save takes the first one's place; other files are not touched."""
    segmenter = _trained(trainer)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "mine"
        segmenter.save(folder)
        segmenter.save(folder)
        loaded = load(folder)
        assert type(loaded) is type(segmenter)
        assert _plain(loaded) == _plain(segmenter)
        assert [loaded.encode(t) for t in TEXTS] == [segmenter.encode(t) for t in TEXTS]
        (folder / "precious.txt").write_text("mine")
        assert "precious.txt" in refused(lambda: segmenter.save(folder))[0]
        assert (folder / "precious.txt").exists()


def damaged_files_are_told(trainer: Trainer) -> None:
    """A truncated, foreign or newer file is one line, never a traceback of something else."""
    segmenter = _trained(trainer)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "mine"
        refused(lambda: load(folder))
        segmenter.save(folder)
        path = folder / "segmenter.json"
        whole = path.read_text(encoding="utf-8")
        held = json.loads(whole)
        broken = {**held, "values": {}}
        newer, foreign = {**held, "version": 99}, {**held, "class": "builtins:eval"}
        for text in (whole[: len(whole) // 2], "[]", *map(json.dumps, (broken, newer, foreign))):
            path.write_text(text, encoding="utf-8")
            refused(lambda: load(folder))
        path.write_text(whole, encoding="utf-8")
        arrays = folder / "segmenter.safetensors"
        if arrays.exists():
            arrays.write_bytes(arrays.read_bytes()[:20])
            refused(lambda: load(folder))


def hugging_face_gives_the_same_ids(trainer: Trainer) -> None:
    """`to_hf` gives a fast tokenizer with identical ids and texts, also after its own save and load, or it refuses."""
    segmenter = _trained(trainer)
    if refusal(segmenter.to_hf):
        return
    exported = segmenter.to_hf()
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        exported.save_pretrained(folder)
        loaded = AutoTokenizer.from_pretrained(folder)
    for text in [*TEXTS, *CORPUS]:
        ids = segmenter.encode(text)
        for theirs in (exported, loaded):
            assert theirs(text, add_special_tokens=False)["input_ids"] == ids
            assert theirs.decode(ids, clean_up_tokenization_spaces=False) == text


def bad_input_is_told(trainer: Trainer) -> None:
    """An empty corpus, a text for a corpus, a lone surrogate and an unknown id are one line each."""
    segmenter = _trained(trainer)
    for empty in ([], [""]):
        refused(lambda empty=empty: trainer.train(empty))
    refused(lambda: trainer.train("one text"))
    assert "D800" in refused(lambda: segmenter.encode("x\ud800"))[0]
    for ids in ([segmenter.vocab_size], [-1]):
        assert str(segmenter.vocab_size) in refused(lambda ids=ids: segmenter.decode_bytes(ids))[0]


LAWS = (
    lossless_on_every_string,
    lossless_on_every_byte_string,
    long_texts_are_cut_whole,
    ids_are_in_range_and_mean_bytes,
    text_and_its_bytes_are_one,
    training_repeats,
    saving_changes_nothing,
    damaged_files_are_told,
    hugging_face_gives_the_same_ids,
    bad_input_is_told,
    a_wrong_setting_is_refused,
)
