import json

from mintage.measure.memo import Memo


def test_a_run_goes_on_and_starts_afresh_with_other_code(tmp_path):
    package = tmp_path / "package"
    (package / "inner").mkdir(parents=True)
    for name in ("a.py", "inner/kernel.cpp", "notes.txt"):
        (package / name).write_text("1")

    def memo(**definition):
        return Memo(tmp_path / "work", definition, [package])

    assert memo()("key", lambda: 7) == 7
    assert memo()("key", lambda: 8) == 7
    assert "key" not in memo(limit=2)
    (package / "notes.txt").write_text("2")
    assert "key" in memo()
    for name in ("a.py", "inner/kernel.cpp"):
        before = memo().path
        (package / name).write_text("2")
        assert memo().path != before


def test_a_line_that_was_cut_by_a_kill_is_measured_again(tmp_path):
    held = Memo(tmp_path, {})
    held("whole", lambda: [1, 2])
    with held.path.open("a") as file:
        file.write(json.dumps({"key": "cut", "value": 3})[:-4])
    again = Memo(tmp_path, {})
    assert "whole" in again
    assert again("cut", lambda: 4) == 4
    assert Memo(tmp_path, {})("cut", lambda: 5) == 4
    again.delete()
    assert not tmp_path.exists() or not any(tmp_path.iterdir())


def test_files_of_a_run_go_with_it(tmp_path):
    held = Memo(tmp_path / "work", {})
    assert held.folder != Memo(tmp_path / "work", {"limit": 2}).folder
    held.folder.mkdir(parents=True)
    (held.folder / "weights").write_text("kept")
    held("key", lambda: 1)
    held.delete()
    assert not (tmp_path / "work").exists()
