"""``mintage audit`` as a user meets it."""

import json

import pytest

from mintage.audit import Report
from mintage.audit.data_mixture import DataMixture


@pytest.fixture(autouse=True)
def _own_room(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def here(tmp_path):
    """A tokenizer and two samples as files."""
    DataMixture.tiny_subject().save(str(tmp_path / "tokenizer.json"))
    for name, texts in DataMixture.tiny().samples.items():
        (tmp_path / f"{name}.txt").write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return ["tokenizer.json", "--category", "words=words.txt", "-c", "numbers=numbers.txt", "--min-count", "0"]


def test_table_and_notes(mintage, here):
    status, out, err = mintage("audit", "data-mixture", *here)
    assert status == 0
    assert "words" in out
    assert "objective" in out
    assert "absorbed by the samples nearest" in out
    assert "HiGHS" not in out + err


def test_json_is_the_report(mintage, here):
    status, out, _ = mintage("audit", "data-mixture", *here, "--json", "--bootstrap", 0)
    report = Report.from_json(out)
    assert status == 0
    assert report.subject == "tokenizer.json"
    assert sum(row["share of bytes"] for row in report.table) == pytest.approx(1)


def test_out_writes_the_report(mintage, here, tmp_path):
    status, out, _ = mintage("audit", "data-mixture", *here, "--out", "report.json", "--json", "--bootstrap", 3)
    assert status == 0
    assert json.loads(out) == json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))


def test_out_html_holds_the_figure(mintage, here, tmp_path):
    status, _, err = mintage("audit", "data-mixture", *here, "--out", "report.html", "--bootstrap", 2)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert status == 0
    assert "wrote report.html" in err
    assert "What tokenizer.json was trained on" in page
    assert "<svg" in page


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--category", "words"], "is not NAME=PATH"),
        (["--category", "words=words.txt"], "comes twice"),
        (["--category", "more=nothing.txt"], "nothing.txt does not exist"),
        (["--out", "report.pdf"], "neither .json nor .html"),
        (["--max-merges", "0"], "max_merges=0"),
    ],
)
def test_mistakes_are_one_line(mintage, here, change, said):
    status, out, err = mintage("audit", "data-mixture", *here, *change)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_a_choice_that_there_is_not_is_told(mintage, here):
    status, out, err = mintage("audit", "data-mixture", *here, "--unit", "words")
    assert (status, out) == (2, "")
    assert "'words' is not one of 'bytes', 'pairs'" in err


@pytest.mark.usefixtures("as_users_call")
def test_every_audit_has_a_command_of_its_fields(mintage):
    status, out, err = mintage("audit", "needle-threading", "--tasks", "single,sewing")
    assert (status, out) == (2, "")
    assert "tasks='sewing' is not one of single, multiple, conditional, thread, multi-thread" in err
    status, out, err = mintage("audit", "needle-threading", "--depths", "3,200")
    assert "depths=200 is out of range" in err
    status, out, err = mintage("audit", "nedle-threading")
    assert (status, out) == (2, "")
    assert "did you mean 'needle-threading'?" in err
    status, out, err = mintage("audit", "needle-threading", "--keep", "snapvk")
    assert "did you mean 'snapkv'?" in err


def test_a_truncated_tokenizer_is_one_line(mintage, here, tmp_path):
    whole = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(whole[: len(whole) // 2], encoding="utf-8")
    status, out, err = mintage("audit", "data-mixture", *here)
    assert (status, out) == (2, "")
    assert "damaged" in err
    assert err.count("\n") == 1


def test_bench_refuses_what_a_check_does_not_take(mintage):
    status, _, err = mintage("bench", "data-mixture", "--temperature", "1")
    assert status == 2
    assert "No such option: --temperature" in err
    status, _, err = mintage("bench", "data-mixture:max_merges=5")
    assert status == 2
    assert "has options of its own (mintage bench data-mixture --help)" in err
    status, _, err = mintage("bench", "audit", "data-mixture:max_merges=5", "--no-save")
    assert status == 2
    assert "has options of its own" in err
