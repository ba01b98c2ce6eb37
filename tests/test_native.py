import ctypes
import os
import shutil

import pytest

from mintage.errors import UserError
from mintage.native import Native

compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler here")


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setenv("MINTAGE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "one.cpp").write_text('extern "C" int one() { return 1; }')
    return lambda: Native(tmp_path / "one.cpp", "what follows is slower")


@compiler
def test_it_is_compiled_once(made, tmp_path, monkeypatch):
    first, second = made(), made()
    assert isinstance(first.library, ctypes.CDLL)
    assert first.library.one() == 1
    assert first.available
    monkeypatch.setattr(second, "_compile", lambda path: pytest.fail("compiled again"))
    assert second.library.one() == 1
    assert list(tmp_path.glob("cache/kernels/*.so")) == [first._path()]


@compiler
def test_what_fails_to_compile_or_load_is_told_in_one_line(made):
    broken = made()
    broken.source.write_text("int main( {")
    with pytest.raises(UserError, match=r"cannot compile the kernel \(.*error") as caught:
        broken.library  # noqa: B018
    assert "\n" not in str(caught.value)
    assert not broken._path().exists()
    broken._path().write_bytes(b"junk")
    with pytest.raises(UserError, match=r"is damaged \(.*\); delete it to compile again"):
        broken.library  # noqa: B018


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no owner here")
def test_a_file_of_another_user_is_not_loaded(made, monkeypatch):
    native = made()
    native._path().parent.mkdir(parents=True)
    native._path().write_bytes(b"theirs")
    monkeypatch.setattr(os, "getuid", lambda: native._path().stat().st_uid + 1)
    with pytest.raises(UserError, match="belongs to another user"):
        native.library  # noqa: B018


def test_without_a_compiler_there_is_none_and_one_note(made, monkeypatch, recwarn):
    monkeypatch.setenv("CXX", "no-such-compiler")
    native = made()
    assert not native.available
    assert not native.available
    (note,) = recwarn
    assert "'no-such-compiler' is not on PATH; set CXX; what follows is slower" in str(note.message)
