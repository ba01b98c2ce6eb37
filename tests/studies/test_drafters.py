"""The studies of drafters on toy inputs: rows equal those of before studies were data; claims find their arms."""

import json
from pathlib import Path

import pytest
import torch

from mintage import catalog
from mintage.bench.draft.drafting import DraftStudy
from mintage.draft import Target
from mintage.draft.core import latency
from mintage.draft.core.distilled import DistilledDrafter, cut_drafter
from mintage.draft.core.prompt_tokens import PromptTokens, describe
from mintage.measure import Result
from mintage.measure.study import run_study
from mintage.models import load_causal_lm

GOLDEN = Path(__file__).parent / "golden"
DISTILLED = {"union", "spectr", "speculative"}
STUDIES = [row.name for row in catalog.methods("draft") if row.study]
TEXTS = {
    "chat": "Tell me about tides.",
    "code": "def f(x): return x",
    "summarise": "Sum up: the tide, the tide, the tide.",
}


@pytest.fixture(scope="module")
def toys(tiny_folder, tmp_path_factory):
    """Prompts, prompt tokens in the place of those that ship, and a distilled drafter; no clock decides a tree."""
    folder = tmp_path_factory.mktemp("toys")
    lm = load_causal_lm(tiny_folder, dtype="float32")
    rows = [{"id": f"{c}-{i}", "category": c, "prompt": f"{text} {i}"} for i in range(2) for c, text in TEXTS.items()]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    random = torch.randn(3, 1, 32, generator=torch.Generator().manual_seed(0))
    tokens = PromptTokens(random, vocabulary=257, model="tiny", architecture=describe(Target(lm.model)))
    tokens.save(folder / "ppd-smollm2.safetensors")
    DistilledDrafter(cut_drafter(lm.model, [0], torch.arange(3, 240)), lm).save(folder / "drafter.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINTAGE_CACHE", str(folder / "cache"))
        patch.setattr("mintage.weights._ASSETS", folder)
        patch.setattr(latency, "_measure", lambda target: latency.LatencyCurve((1, 96), (1e-3, 3e-3)))
        yield folder


@pytest.fixture(scope="module")
def measured(toys, tiny_folder):
    """The rows of a study, each measured once; paths are replaced by words."""
    known = {}

    def rows(name):
        if name not in known:
            draft = str(toys / "drafter.safetensors") if name in DISTILLED else None
            study = catalog.find(name).load_study()(
                model=tiny_folder,
                prompts=str(toys / "mine.jsonl"),
                draft_model=draft,
                limit=0,
                dtype="float32",
                max_new_tokens=12,
                seed=3,
                assisted=False,
            )
            known[name] = run_study(study, command="mintage bench ...", work=toys / "work")
        return known[name]

    return rows


def comparable(row, toys, tiny_folder):
    settings = dict(row.settings)
    if "draft" in settings:
        settings["draft"] = settings["draft"].replace(str(toys / "drafter.safetensors"), "DRAFTER")
    return {**row.__dict__, "settings": settings, "model": row.model.replace(tiny_folder, "TINY")}


def key(row):
    return row["method"], row["metric"], row.get("claim", ""), json.dumps(row.get("settings", {}), sort_keys=True)


@pytest.mark.parametrize("name", STUDIES)
def test_rows_are_those_of_before(name, measured, toys, tiny_folder):
    """Clocks and memory depend on the machine: of such rows everything but the numbers is compared."""
    rows = [comparable(row, toys, tiny_folder) for row in measured(name) if isinstance(row, Result)]
    made = {key(row): row for row in rows}
    assert len(made) == len(rows)
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    assert {key(row) for row in golden if row.get("claim")} == {key(row) for row in rows if row["claim"]}
    for wanted in golden:
        mine = made[key(wanted)]
        for field, value in wanted.items():
            given = mine[field]
            if isinstance(value, list) and field in ("baseline", "peers"):
                assert sorted(given) == value
            elif isinstance(value, dict) and field in ("baseline", "peers"):
                assert given == pytest.approx(value, rel=1e-6), (key(wanted), field)
            elif field in ("value", "interval") and value is not None:
                assert given == pytest.approx(value if field == "value" else tuple(value), rel=1e-6), key(wanted)
            else:
                assert given == value, (key(wanted), field)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_tests_all_its_claims(name, measured):
    """The arms that it names are those that its claims ask for, at every temperature."""
    rows = [row for row in measured(name) if isinstance(row, Result)]
    own = {row.claim for row in rows if row.claim and row.method == name}
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    assert own == {row["claim"] for row in golden if row.get("claim") and row["method"] == name} != set()
    assert all(row.rule or row.data == "exact enumeration" for row in rows if row.claim)
    kind = catalog.find(name).load_study()
    assert issubclass(kind, DraftStudy)
    temperatures = {row.settings["temperature"] for row in rows if "temperature" in row.settings}
    assert temperatures == {t for t, arms in ((0.0, kind.greedy), (1.0, kind.sampling)) if arms}


def test_nothing_is_left_of_a_run_that_is_over(measured, toys):
    measured("ppd")
    assert not list((toys / "work").glob("*"))
