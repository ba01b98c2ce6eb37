"""The rules of the house: what `survey` counts may only get better. ``python tests/house/test_house.py`` tightens."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LIMITS = HERE / "limits.json"

spec = importlib.util.spec_from_file_location("survey", HERE / "survey.py")
assert spec is not None
assert spec.loader is not None
survey = importlib.util.module_from_spec(spec)
spec.loader.exec_module(survey)

WHAT_TO_DO = {
    "source lines": "what a library or a shared room does needs no lines here; a new method may raise it, see below",
    "method files over 300 lines": "move plumbing to core/, training to training/; a file holds one idea",
    "median method file": "see above",
    "studies over 150 lines": "what measures belongs into bench/<job>/",
    "median study": "see above",
    "trainings over 150 lines": "recipes may be files of their own",
    "median training": "see above",
    "functions with more than 8 parameters": "make the settings a dataclass of `option` fields",
    "import circles": "let the lower module take objects instead of importing what makes them",
    "median of modules reached by a paper's method": "a method stands on its contract and little else",
    "studies that do a runner's work": "a study holds arms, measures and rows; `run_study` does the rest",
    "corpora opened outside mintage.data": "read texts by mintage.data.texts(name, split)",
    "public names that stand in several modules": "one noun, one meaning: rename the newer one",
}

GROWS = {"source lines"}
"""What a new method may raise: tighten it again by hand when one was added."""


@pytest.fixture(scope="module")
def counted():
    return survey.survey()


@pytest.mark.parametrize("rule", WHAT_TO_DO)
def test_it_only_gets_better(rule, counted):
    limit = json.loads(LIMITS.read_text(encoding="utf-8"))[rule]
    assert counted[rule] <= limit, f"{rule}: {counted[rule]:g}, at most {limit:g}; {WHAT_TO_DO[rule]}"


def test_every_count_has_a_limit(counted):
    assert counted.keys() == WHAT_TO_DO.keys() == json.loads(LIMITS.read_text(encoding="utf-8")).keys()


def test_the_survey_sees_what_it_counts(tmp_path, monkeypatch):
    (tmp_path / "draft").mkdir()
    (tmp_path / "draft" / "__init__.py").write_text("")
    (tmp_path / "draft" / "one.py").write_text(
        "from mintage.draft import two\ndef f(a, b, c, d, e, f, g, h, i): ...\ndef twice(): ...\n"
    )
    (tmp_path / "draft" / "two.py").write_text("from mintage.draft.one import f\nclass twice: ...\n" + "x = 1\n" * 300)
    for cached in (survey.modules, survey.tree, survey.imports):
        cached.cache_clear()
    monkeypatch.setattr(survey, "SOURCE", tmp_path)
    try:
        assert survey.circles() == [["mintage.draft.one", "mintage.draft.two"]]
        assert survey.long_functions() == ["mintage.draft.one.f (9)"]
        assert survey.repeated_names() == {"twice": ["mintage.draft.one", "mintage.draft.two"]}
        assert [p.stem for p in survey.methods("draft") if survey.lines(p) > 300] == ["two"]
        assert survey.reached("mintage.draft.one") == {"mintage.draft.two"}
    finally:
        for cached in (survey.modules, survey.tree, survey.imports):
            cached.cache_clear()


if __name__ == "__main__":
    limits = json.loads(LIMITS.read_text(encoding="utf-8")) if LIMITS.exists() else {}
    found = {rule: min(value, limits.get(rule, value)) for rule, value in survey.survey().items()}
    LIMITS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
