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
    assert re.search(r"12 bytes in [\d.]+ s; \S+ \d+ forwards", done.err)
    assert said("--raw", "--bytes", "--stream").out == done.out
    assert said("--bytes").status == 0  # as an answer in a chat


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
