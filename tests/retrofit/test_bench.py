import sys
import types

import pytest

from mintage.bench.retrofit import joint as bench
from mintage.bench.retrofit.measures import Bits, Document
from mintage.errors import UserError
from mintage.measure import Result


def check(name, **functions):
    module = types.ModuleType(f"mintage.bench.retrofit.measures.{name}")
    for key, function in functions.items():
        setattr(module, key, function)
    return module


def test_a_method_alone_runs_its_check(monkeypatch, tmp_path):
    asked = {}
    row = Result(method="exact-bytes", job="retrofit", metric="x", value=1.0, unit="x", higher_is_better=True)

    def run(**settings):
        asked.update(settings)
        return [row]

    module = check("exact_bytes", run=run)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    rows = bench.run(["exact-bytes"], model="m", limit=3, seed=2, command="c", work=tmp_path)
    assert rows == [row]
    assert {k: asked[k] for k in ("model", "limit", "seed", "command", "work")} == {
        "model": "m",
        "limit": 3,
        "seed": 2,
        "command": "c",
        "work": tmp_path,
    }


@pytest.mark.parametrize("name", ["exact-bytes:tolerance=0", "exact-byte", "pitome"])
def test_what_cannot_be_measured_is_told(name):
    with pytest.raises(UserError) as told:
        bench.run([name])
    assert "\n" not in str(told.value)


def test_the_joint_run_reads_the_same_texts_with_all(monkeypatch, tmp_path, tiny_folder):
    """Two kinds of text, one rival that needs half the bits at half the positions."""
    seen = []

    def half(text):
        seen.append(text)
        return Bits(len(text) / 2, len(text), len(text) // 4)

    module = check("exact_bytes", arms=lambda lm, seed: {"exact-bytes": half})
    monkeypatch.setattr(bench, "_module", lambda name: module if name == "exact-bytes" else None)
    monkeypatch.setattr(bench, "bits_of", lambda lm, text, window: Bits(float(len(text)), len(text), len(text) // 2))
    monkeypatch.setattr(bench, "JOINT", ("code", "de"))
    monkeypatch.setattr(
        bench, "documents", lambda kind, number, **_: [Document(f"{i}", kind, kind * 4) for i in range(number)]
    )
    told = []
    rows = bench.run([], model=tiny_folder, limit=2, work=tmp_path / "w", progress=lambda *step: told.append(step[:2]))
    assert told[-1] == (8, 8)
    assert seen == ["code" * 4] * 2 + ["de" * 4] * 2
    assert all(isinstance(row, Result) and row.method == "exact-bytes" for row in rows)
    by = {row.metric: row for row in rows}
    assert by["bits per byte, de"].value == 0.5
    assert by["bits per byte, de"].baseline == {"plain": 1.0}
    assert by["positions read per byte, code"].value == 0.25
    assert by["seconds per kilobyte, code"].unit == "s"
    assert not (tmp_path / "w").exists()
