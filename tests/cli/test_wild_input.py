"""Numbers and files that nobody means: one line and status 2, at once, with nothing loaded for it."""

import json

import pytest

from mintage.audit import Report
from mintage.audit.core.r2l import _special_tokens
from mintage.audit.data_mixture import DataMixture
from mintage.errors import UserError
from mintage.models import tiny_causal_lm
from mintage.reduce.core.rate_schedule import read_schedules

SEED = 10**29


@pytest.fixture(autouse=True)
def _own_room(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def one_line(done, *said):
    assert done.status == 2, done.err
    assert "Traceback" not in done.err
    assert done.err.count("\n") == 1, done.err
    for part in said:
        assert part in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-t", "1e-300"], "--temperature 1e-300 overflows; pass 0 to be greedy"),
        (["-t", "0.8", "--seed", SEED], f"seed={SEED} is out of range"),
        (["--seed", "-1"], "seed=-1 is out of range"),
    ],
)
def test_generate_refuses_numbers_that_no_float_or_generator_takes(mintage, arguments, said):
    one_line(mintage("generate", "hello", *arguments), said)


@pytest.mark.parametrize("command", [["audit", "needle-threading"], ["train", "vit"], ["bench", "pitome"]])
def test_a_seed_of_thirty_digits_is_out_of_range(mintage, command):
    one_line(mintage(*command, "--seed", SEED), f"seed={SEED} is out of range")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "a\\ud800b"}', "surrogate"),
        ("[" * 100_000 + "]" * 100_000, "nested deeper than 200 levels"),
        ('{"text": "a", "n": ' + "9" * 6_000 + "}", "number"),
        ("{text: a}", "not JSON"),
    ],
    ids=["half of a pair", "deep nesting", "6,000 digits", "no JSON"],
)
def test_a_sample_of_broken_json_lines_is_told_by_its_line(mintage, tmp_path, line, said):
    DataMixture.tiny_subject().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one"}) + "\n" + line + "\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("two\n", encoding="utf-8")
    done = mintage("audit", "data-mixture", "tokenizer.json", "-c", "a=a.jsonl", "-c", "b=b.txt")
    one_line(done, "a.jsonl", "line 2", said)


@pytest.mark.parametrize("text", ["9" * 6_000, "[" * 100_000, '{"prune_kept": ["\\ud800"]}', "\x00"])
def test_files_that_are_no_json_are_told(tmp_path, text):
    for name, read in {
        "rates.json": read_schedules,
        "report.json": lambda path: Report.from_json(path.read_text(encoding="utf-8")),
        "tokenizer_config.json": lambda path: _special_tokens(path.parent),
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"again|make it with: mintage train diffrate") as told:
            read(tmp_path / name)
        assert "\n" not in str(told.value)


def test_numbers_longer_than_anyone_writes_are_refused_at_once(mintage, tmp_path):
    DataMixture.tiny_subject().save(str(tmp_path / "tokenizer.json"))
    one_line(mintage("audit", "number-tokens", "tokenizer.json", "--max-length", 99_999), "max_length=99999")


def test_a_model_without_a_tokenizer_says_so(mintage, tmp_path):
    tiny_causal_lm(vocab_size=32).save_pretrained(tmp_path / "bare")
    one_line(mintage("generate", "hello", "--model", "bare", "--dtype", "float32"), "bare", "tokenizer")


def test_a_job_is_not_called_an_unknown_method(mintage):
    one_line(mintage("bench", "draft", "keep"), "keep is a job, not a method")


def test_a_report_goes_into_a_file(mintage, tmp_path):
    one_line(mintage("report", "-o", str(tmp_path)), f"{tmp_path} is a folder; pass the file to write")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["drafter", "--batch-rows", 0], "batch_rows=0 is out of range"),
        (["ppd", "--steps", -3], "steps=-3 is out of range"),
        (["zett", "--hidden", 0], "hidden=0 is out of range"),
        (["zett", "--rows", 0], "rows=0 is out of range"),
        (["vit", "--epochs", 0], "epochs=0.0 is out of range"),
        (["diffrate", "--steps", 0], "steps=0 is out of range"),
        (["sit-slim", "--batch-rows", 0], "batch_rows=0 is out of range"),
        (["sparsifiner", "--keep-rate", 2], "keep_rate=2.0 is out of range"),
    ],
)
def test_a_training_refuses_before_it_reads_anything(mintage, arguments, said):
    one_line(mintage("train", *arguments, "--out", "x.safetensors"), said)
