"""``mintage audit number-tokens`` and ``to-r2l`` as a user meets them."""

import json
import sys

import pytest

from mintage.audit import Report, number_tokenizer
from mintage.cli import main


@pytest.fixture
def mintage(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    number_tokenizer("l2r").save("tokenizer.json")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mintage", "audit", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        return status, *capfd.readouterr()

    return run


def test_the_report_as_table_json_and_page(mintage, tmp_path):
    status, out, _ = mintage("number-tokens", "tokenizer.json", "--samples", 20)
    assert status == 0
    assert "left to right, groups of 3" in out
    assert "10642122 = 106|421|22" in out
    status, out, _ = mintage("number-tokens", "tokenizer.json", "--samples", 20, "--json", "--out", "report.json")
    assert status == 0
    assert len(Report.from_json(out).table) == 15
    assert json.loads(out) == json.loads((tmp_path / "report.json").read_text())
    status, _, _ = mintage("number-tokens", "tokenizer.json", "--max-length", 5, "--samples", 5, "-o", "report.html")
    assert status == 0
    assert "How numbers are cut" in (tmp_path / "report.html").read_text()


def test_a_tokenizer_is_turned_round_and_reported_so(mintage, tmp_path):
    status, out, _ = mintage("to-r2l", "tokenizer.json", "--out", "folder")
    assert (status, out) == (0, "10642122: 106|421|22 is now 10|642|122\n")
    status, out, _ = mintage("number-tokens", "folder", "--samples", 20)
    assert status == 0
    assert "right to left, groups of 3" in out
    status, out, _ = mintage("to-r2l", "tokenizer.json", "--out", "years", "--only-if-longer-than", 4)
    assert status == 0
    assert mintage("number-tokens", "years", "--max-length", 5, "--samples", 20, "--json")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["to-r2l", "folder", "--out", "twice"], "looks ahead already"),
        (["to-r2l", "tokenizer.json", "--out", "."], "nothing was written"),
        (["to-r2l", "tokenizer.json", "--out", "x", "--size", 4], "cannot build"),
        (["to-r2l", "tokenizer.json", "--out", "x", "--digit-class", "[a-z]"], "digit_class='[a-z]' is not one of"),
        (["to-r2l", "nothing.json", "--out", "x"], "nothing.json"),
        (["number-tokens", "tokenizer.json", "--prefix", "1"], "holds a digit"),
        (["number-tokens", "tokenizer.json", "--samples", 0], "samples=0"),
        (["number-tokens", "tokenizer.json", "--out", "report.pdf"], "neither .json nor .html"),
    ],
)
def test_mistakes_are_one_line(mintage, tmp_path, arguments, said):
    if "folder" in arguments:
        mintage("to-r2l", "tokenizer.json", "--out", "folder")
    status, out, err = mintage(*arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "x").exists()
