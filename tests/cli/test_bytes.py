import io
import re

import pytest

SAID = "Tell me of the ti"


@pytest.fixture(autouse=True)
def _own_room(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")


@pytest.fixture
def said(mintage, tiny_folder):
    def run(*arguments):
        return mintage("generate", SAID, "--model", tiny_folder, "--dtype", "float32", "-n", "12", *arguments)

    return run


def test_bytes_are_written_and_counted(said):
    done = said("--raw", "--bytes", "--no-stream")
    assert done.status == 0, done.err
    assert re.search(r"12 bytes in [\d.]+ s \(\d+ bytes/s\); \S+ \d+ forwards", done.err)
    assert said("--raw", "--bytes", "--stream").out == done.out
    assert said("--bytes").status == 0  # as an answer in a chat


def test_bytes_that_are_no_text_are_gone_on_from(mintage, tiny_folder):
    def run(data, *more):
        stdin = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")
        return mintage("generate", "-", "--model", tiny_folder, "-n", "6", "--bytes", *more, stdin=stdin)

    done = run(b"un caf\xe9 au l", "--raw")
    assert done.status == 0, done.err
    assert "writes no text with 0xe9: read as single tokens or U+FFFD" in done.err
    assert re.search(r"6 bytes in", done.err)
    assert "writes no text" not in run("un caf\u00e9 au l".encode(), "--raw").err
    refused = run(b"un caf\xe9")  # a chat is text
    assert refused.status == 2
    assert "go on from its bytes with --raw --bytes" in refused.err


def test_a_model_that_votes_with_itself_says_the_same(said, tiny_folder):
    alone, both = said("--raw", "--bytes"), said("--raw", "--ensemble", tiny_folder)
    assert both.out == alone.out
    assert len(re.findall(r"forwards", both.err)) == 2


@pytest.mark.parametrize(
    "option",
    [("--draft", "prompt-lookup"), ("--keep", "full-cache"), ("--compile",), ("--compare",), ("--top-k", "5")],
)
def test_what_is_about_tokens_is_refused(said, option):
    done = said("--bytes", *option)
    assert done.status == 2
    assert done.err.startswith(f"mintage: {option[0]} is about tokens")


def test_a_model_that_cannot_fill_in_is_told(said):
    done = said("--suffix", "and the end")
    assert done.status == 2
    assert done.err.startswith("mintage: this model has no tokens to fill in the middle with")
    assert done.err.count("\n") == 1
    assert said("--suffix", "x", "--system", "Be brief.").err.startswith("mintage: --system is part of a chat")


@pytest.mark.parametrize("more", [(), ("--ensemble",)])
def test_the_middle_is_written(mintage, tiny_folder, tmp_path, more):
    """A model with control tokens of its own; what is written goes on from the last word of the prompt."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"], "bos_token": "<s>"}
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "fim")
    tokenizer.save_pretrained(tmp_path / "fim")
    options = (*more, *([str(tmp_path / "fim")] if more else []))
    done = mintage(
        "generate", "def f(x):\n    retu", "--suffix", "\n\nprint(f(1))", "--model", str(tmp_path / "fim"),
        "--dtype", "float32", "-n", "8", *options,
    )  # fmt: skip
    assert done.status == 0, done.err
    assert re.search(r"\d+ bytes in", done.err)
