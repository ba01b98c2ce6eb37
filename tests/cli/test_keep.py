import re

import pytest

SAID = "Tell me of the tides and of the moon that makes them, twice a day, every day."
TINY = ["--dtype", "float32", "-n", "24"]


@pytest.fixture(autouse=True)
def _own_room(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")


@pytest.fixture
def tiny(mintage, tiny_folder):
    def run(*arguments):
        return mintage("generate", SAID, "--model", tiny_folder, *TINY, *arguments)

    return run


def test_the_full_cache_says_what_no_policy_says(tiny):
    kept, plain = tiny("--keep", "full-cache"), tiny("--draft", "none")
    assert kept.status == 0
    assert kept.out == plain.out
    assert re.match(r"full-cache: 24 tokens in [\d.]+ s \([\d.]+ tokens/s\), (\d+) of \1 entries per head", kept.err)


def test_the_full_cache_goes_with_a_drafter(tiny):
    assert tiny("--keep", "full-cache", "--draft", "prompt-lookup").out == tiny("--draft", "none").out


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_a_policy_keeps_its_budget_and_tells_what_it_holds(tiny, stream):
    done = tiny("--keep", "streaming-llm:budget=20", stream)
    assert done.status == 0
    found = re.search(r"(\d+) of (\d+) entries per head, [\d.]+ MB of keys and values", done.err)
    assert int(found[1]) <= 20 < int(found[2])


def test_compare_stands_beside_the_full_cache(tiny):
    done = tiny("--keep", "snapkv:budget=40,window=8", "--compare")
    assert done.status == 0
    assert re.search(r"^full cache: 24 tokens in [\d.]+ s, [\d.]+ MB$", done.err, re.M)
    assert re.search(
        r"x as fast per token, and gives the same text( for \d+ tokens)?$", done.err.replace("\n", " ").strip()
    )


def test_samples_are_repeated_by_a_seed(tiny):
    settings = ("--keep", "h2o:budget=30", "-t", "0.9", "--seed", "3")
    assert tiny(*settings).out == tiny(*settings).out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--keep", "snapkv", "--draft", "prompt-lookup"), "--keep snapkv does not go with --draft"),
        (("--keep", "snapkv", "--compile"), "--keep snapkv does not go with --compile"),
        (("--keep", "snapkv:budget=8"), "budget=8 is below the 33 entries that are always kept"),
        (("--keep", "snapkv:budget=0"), "budget=0 keeps nothing"),
        (("--keep", "snapkv:budget=1.5"), "budget=1.5 is no share"),
        (("--keep", "snapkv:budget=lots"), "budget='lots' is no budget"),
        (("--keep", "h2o:budget=500B"), "are always kept; pass at least"),
        (("--keep", "snapkvv"), "did you mean 'snapkv'?"),
        (("--keep", "pitome"), "pitome"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_cannot_be_is_told_in_one_line(tiny, arguments, said):
    done = tiny(*arguments)
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert said in done.err
