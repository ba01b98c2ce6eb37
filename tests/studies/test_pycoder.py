"""The study of PyCoder on a toy: verdicts follow the numbers, and it goes on where it was killed."""

import numpy as np

from mintage.bench.lm.coding import points_of_files
from mintage.measure.figure import Figure
from mintage.measure.study import run_study
from mintage.studies.pycoder import PyCoderStudy

TOY = {
    "seeds": 1,
    "steps": 2,
    "window": 16,
    "width": 8,
    "layers": 1,
    "vocabulary": 260,
    "files": 2,
    "cuts": 30,
    "lines": 2,
}


def test_types_are_compared_with_code_alone(tmp_path, monkeypatch):
    letters = "".join(f"def name_{n}(x):\n    return x[{n}] + (x, {n})  # told\n\n\n" for n in range(12))
    held = ["import os\n" + letters, letters.replace("name", "other")]
    files = {"train": [letters.replace("def", f"# {n}\ndef") for n in range(20)], "held-out": held}
    monkeypatch.setattr("mintage.bench.lm.coding.texts", lambda name, split: files[split])
    study = PyCoderStudy(models=tmp_path / "models", **TOY)
    found = run_study(study, work=tmp_path / "work")
    rows = {row.metric: row for row in found if not isinstance(row, Figure)}
    assert rows["half-typed files without lexical types"].verdict == "holds"
    assert rows["half-typed files without lexical types"].baseline["syntax tree"] > 10
    ours = rows["tokens right, minus those of code only at equal code, hard sharing"]
    assert (ours.verdict == "holds") == (ours.interval[0] > 0)
    assert set(ours.peers) >= {"soft", "intermediate", "type head", "hard, shuffled types", "code only, equal compute"}
    assert {figure.name for figure in found if isinstance(figure, Figure)} == {"types", "pycoder-tokens"}
    assert len(list((tmp_path / "models").glob("pycoder-*-????????"))) == 8  # every arm


def test_a_difference_has_two_standard_errors_around_it():
    ours = np.array([[0.5, 0.6, 0.7], [0.6, 0.7, 0.8]]).ravel()
    found = points_of_files(2).of_two(ours, np.full(6, 0.5))
    assert np.allclose(found, (15 - 2 * 10 / 3**0.5, 15, 15 + 2 * 10 / 3**0.5))
    one = points_of_files(1).of_two(np.array([0.5, 0.7]), np.array([0.4, 0.4]))
    assert np.allclose(one, (0, 20, 40))
