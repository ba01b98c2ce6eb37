"""Files are written whole or not at all, also when the writer is killed."""

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mintage.data import Corpus
from mintage.errors import UserError
from mintage.files import (
    append_line,
    append_lines,
    cache_dir,
    is_full,
    parse_json,
    read_jsonl,
    replace_file,
    replace_folder,
)


def killed_while_running(code, *arguments):
    """Run `code` until it prints, then kill it as the kernel would."""
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half-way\n"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    process.stdout.close()


# -- replace_file --------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_with_readable_permissions(tmp_path):
    target = tmp_path / "new" / "folder" / "a.json"
    with replace_file(target) as temporary:
        assert temporary.suffix == ".json"
        assert temporary.parent == target.parent
        temporary.write_text("{}")
        assert not target.exists()
    assert target.read_text() == "{}"
    assert target.stat().st_mode & 0o777 == 0o644
    assert list(target.parent.iterdir()) == [target]


def test_an_exception_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write():
        with replace_file(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_kill_keeps_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    code = """
import sys, time
from mintage.files import replace_file
with replace_file(sys.argv[1]) as temporary:
    with temporary.open("w") as file:
        file.write("half of the new text")
        file.flush()
        print("half-way", flush=True)
        time.sleep(60)
"""
    killed_while_running(code, target)
    assert target.read_text() == "old"
    with replace_file(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


# -- replace_folder ------------------------------------------------------------------------------------------------


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "model"
    for text in ("first", "second"):
        with replace_folder(target) as temporary:
            (temporary / f"{text}.txt").write_text(text)
            assert not (target / f"{text}.txt").exists()
    assert [path.name for path in target.iterdir()] == ["second.txt"]
    assert target.stat().st_mode & 0o777 == 0o755
    assert list(tmp_path.iterdir()) == [target]


def test_a_kill_keeps_the_old_folder(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "weights").write_text("old")
    code = """
import sys, time
from mintage.files import replace_folder
with replace_folder(sys.argv[1]) as temporary:
    (temporary / "weights").write_text("half")
    print("half-way", flush=True)
    time.sleep(60)
"""
    killed_while_running(code, target)
    assert (target / "weights").read_text() == "old"


def test_an_exception_keeps_the_old_folder(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "weights").write_text("old")

    def write():
        with replace_folder(target) as temporary:
            (temporary / "weights").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write()
    assert (target / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


# -- lines ---------------------------------------------------------------------------------------------------------


def test_lines_are_appended(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    append_line(path, '{"a": 1}')
    append_line(path, '{"a": "ü"}')
    assert read_jsonl(path) == [{"a": 1}, {"a": "ü"}]


def test_a_torn_last_line_is_closed_before_the_next(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2')
    append_line(path, '{"a": 3}')
    assert path.read_text().splitlines() == ['{"a": 1}', '{"a": 2', '{"a": 3}']
    with pytest.raises(UserError, match="line 2"):
        read_jsonl(path)


def test_writers_in_several_processes_never_interleave(tmp_path):
    path = tmp_path / "rows.jsonl"
    code = """
import sys
from mintage.files import append_line
for i in range(40):
    append_line(sys.argv[1], '{"writer": %s, "i": %d, "pad": "%s"}' % (sys.argv[2], i, "x" * 5000))
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), str(n)]) for n in range(3)]
    assert [w.wait(timeout=120) for w in writers] == [0, 0, 0]
    rows = read_jsonl(path)
    assert sorted((row["writer"], row["i"]) for row in rows) == [(w, i) for w in range(3) for i in range(40)]


def test_a_kill_while_appending_loses_at_most_the_last_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_line(path, '{"kept": true}')
    code = """
import itertools, sys
from mintage.files import append_line
for i in itertools.count():
    append_line(sys.argv[1], '{"i": %d}' % i)
    if i == 20:
        print("half-way", flush=True)
"""
    killed_while_running(code, path)
    append_line(path, '{"last": true}')  # the dead writer's lock is not in the way
    lines = path.read_text().splitlines()
    assert lines[0] == '{"kept": true}'
    assert lines[-1] == '{"last": true}'
    assert [json.loads(line)["i"] for line in lines[1:22]] == list(range(21))


@given(st.lists(st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.none(), st.booleans()))))
def test_what_is_written_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.touch()
    for row in rows:
        append_line(path, json.dumps(row))
    assert read_jsonl(path) == rows


def test_blank_lines_are_skipped_and_gzip_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"a": 1}\n\n')
    assert read_jsonl(tmp_path / "a.jsonl") == [{"a": 1}]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write('{"a": 1}\n')
    assert read_jsonl(tmp_path / "a.jsonl.gz") == [{"a": 1}]


def test_line_separators_inside_a_text_do_not_end_the_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "one\u2028two\x85three"}\n', encoding="utf-8")
    assert read_jsonl(path) == [{"a": "one\u2028two\x85three"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n{"a": \n', "line 2: not JSON"),
        ('{"a": 1}\n\n[1]\n', "line 3: expected a JSON object, found list"),
        ("3\n", "line 1: expected a JSON object, found int"),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_jsonl(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*absent\.jsonl: No such file"):
        read_jsonl(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match=r"cannot read .*Is a directory"):
        read_jsonl(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(UserError, match="is not UTF-8 text"):
        read_jsonl(tmp_path / "latin.jsonl")
    whole = gzip.compress(b'{"a": 1}\n' * 1000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cannot read .*cut\.jsonl\.gz"):
        read_jsonl(tmp_path / "cut.jsonl.gz")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 5000 + "]" * 5000, "nested deeper than 200 levels"),
        ('{"a": ' * 300 + "1" + "}" * 300, "nested deeper than 200 levels"),
        ('{"a": "\\ud800"}', r"holds half of a surrogate pair"),
        ('{"\\uDFFF": 1}', r"holds half of a surrogate pair"),
        ('{"a": ' + "9" * 6000 + "}", "holds a whole number of hundreds of digits"),
        ('{"a": [-' + "9" * 400 + "]}", "holds a whole number of hundreds of digits"),
    ],
)
def test_json_that_would_break_what_comes_after_is_refused(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"fine": "x"}\n' + line + "\n")
    for read in (read_jsonl, lambda path: list(Corpus(path, key="fine"))):
        with pytest.raises(UserError, match=message) as caught:
            read(path)
        if read is read_jsonl:
            assert "line 2" in str(caught.value)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "value",
    [
        {"a": "\U0001f600 \\ud800 is how JSON writes a half"},
        {"a": 2**64, "b": -(10**300), "digits": "7" * 400},
        {"a": [[[]]] * 500},
    ],
)
def test_json_that_only_looks_like_it_is_read(value):
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert parse_json(text, "here") == value


# -- a full disk ---------------------------------------------------------------------------------------------------

FULL = """
import resource, sys
from pathlib import Path
from mintage.errors import UserError
from mintage.files import append_lines, replace_file, replace_folder
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
target = Path(sys.argv[1]) / "target"

def text():
    with replace_file(target) as path:
        path.write_text("x" * 1000)

def tensors():
    import numpy as np
    from safetensors.numpy import save_file
    with replace_file(target) as path:
        save_file({"x": np.zeros(1000)}, path)

def tokenizer():
    from tokenizers import Tokenizer, models
    with replace_folder(target) as folder:
        Tokenizer(models.BPE({str(n): n for n in range(500)}, [])).save(str(folder / "tokenizer.json"))

def lines():
    append_lines(target, ["x" * 40, "y" * 40, "z" * 40])

try:
    globals()[sys.argv[2]]()
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
@pytest.mark.parametrize("what", ["text", "tensors", "tokenizer", "lines"])
def test_a_disk_that_is_full_is_one_line_and_nothing_half_written_stays(tmp_path, what):
    command = [sys.executable, "-c", FULL, str(tmp_path), what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == f"no room left to write {tmp_path / 'target'}; make room on that disk, or pass another path\n"
    assert {path.name for path in tmp_path.iterdir()} <= {"target.lock"}


def test_lines_that_stood_before_a_full_disk_stay(tmp_path):
    target = tmp_path / "target"
    target.write_text('{"a": 1}\n')
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), "lines"], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("no room left to write ")
    assert target.read_text() == '{"a": 1}\n'
    append_lines(target, ['{"a": 2}', '{"a": 3}'])
    assert [row["a"] for row in read_jsonl(target)] == [1, 2, 3]


def test_other_errors_are_not_called_a_full_disk(tmp_path):
    for error in (OSError(errno.EACCES, "no"), ValueError("x"), UserError("No space left on device")):
        assert not is_full(error)

        def write(error=error):
            with replace_file(tmp_path / "a"):
                raise error

        with pytest.raises(type(error)) as caught:
            write()
        assert caught.value is error
    assert list(tmp_path.iterdir()) == []


# -- the cache -----------------------------------------------------------------------------------------------------


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MINTAGE_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("MINTAGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "mintage"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == Path(os.environ["HOME"]) / ".cache" / "mintage"
