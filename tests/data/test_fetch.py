"""Fetching: checked, resumed, atomic; against a server on this machine."""

import hashlib
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mintage.data import fetch
from mintage.data.fetch import fetch_file, fetch_set
from mintage.data.sets import DataFile, DataSet
from mintage.errors import UserError

CONTENT = bytes(range(256)) * 4000


def git_id(content):
    return "git:" + hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def file_of(content=CONTENT, name="words.bin", *, size=True, url=""):
    return DataFile(name, f"sha256:{hashlib.sha256(content).hexdigest()}", len(content) if size else 0, url)


class Server(ThreadingHTTPServer):
    """Serves `content` at every path but /absent; breaks off after `breaks` bytes of an answer, so often."""

    content, ranges, breaks, times, status = CONTENT, True, 0, 0, 200
    wrong_part = False

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append(self.headers.get("Range"))
        if self.path == "/absent" or server.status != 200:
            self.send_error(404 if self.path == "/absent" else server.status)
            return
        start = 0
        if server.ranges and (asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")):
            start = int(asked[1])
            if start >= len(server.content):
                self.send_error(416)
                return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            shown = 0 if server.wrong_part else start
            self.send_header("Content-Range", f"bytes {shown}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.times > 0:
            server.times -= 1
            body = body[: server.breaks]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as made:
        made.asked = []
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def left(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


@pytest.mark.parametrize("size", [True, False])
def test_a_file_arrives_whole_and_is_not_asked_for_again(server, tmp_path, size):
    told = []
    target = tmp_path / "sub" / "words.bin"
    for _ in range(2):
        fetch_file(file_of(size=size), f"{server.address}/words.bin", target, progress=lambda *p: told.append(p))
    assert target.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert server.asked == [None]
    assert left(tmp_path / "sub") == ["words.bin"]


def test_gits_ids_are_checksums(server, tmp_path):
    known = DataFile("words.bin", git_id(CONTENT), url=f"{server.address}/words.bin")
    fetch_file(known, known.url, tmp_path / "words.bin")
    assert (tmp_path / "words.bin").read_bytes() == CONTENT
    # of `printf 'one\n' | git hash-object --stdin`
    assert git_id(b"one\n") == "git:5626abf0f72e58d7a153368ba57db4c673c0e171"


@pytest.mark.parametrize("size", [True, False])
def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path, size):
    server.breaks, server.times = 300_000, 2
    fetch_file(file_of(size=size), f"{server.address}/words.bin", tmp_path / "words.bin")
    assert (tmp_path / "words.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=600000-"]


def test_what_another_run_left_is_gone_on_from(server, tmp_path):
    (tmp_path / ".words.bin.part").write_bytes(CONTENT[:1000])
    fetch_file(file_of(), f"{server.address}/words.bin", tmp_path / "words.bin")
    assert server.asked == ["bytes=1000-"]
    assert (tmp_path / "words.bin").read_bytes() == CONTENT
    assert left(tmp_path) == ["words.bin"]


@pytest.mark.parametrize("size", [True, False])
def test_a_part_that_is_whole_needs_no_more(server, tmp_path, size):
    (tmp_path / ".words.bin.part").write_bytes(CONTENT)
    fetch_file(file_of(size=size), f"{server.address}/words.bin", tmp_path / "words.bin")
    assert (tmp_path / "words.bin").read_bytes() == CONTENT
    assert server.asked == ([] if size else [f"bytes={len(CONTENT)}-"])


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    server.ranges, server.breaks, server.times = False, 300_000, 1
    fetch_file(file_of(), f"{server.address}/words.bin", tmp_path / "words.bin")
    assert (tmp_path / "words.bin").read_bytes() == CONTENT


def test_a_server_that_sends_another_part_is_not_believed(server, tmp_path):
    server.wrong_part = True
    (tmp_path / ".words.bin.part").write_bytes(CONTENT[:1000])
    with pytest.raises(UserError, match="another part"):
        fetch_file(file_of(), f"{server.address}/words.bin", tmp_path / "words.bin")
    assert not (tmp_path / "words.bin").exists()


def test_a_connection_that_breaks_for_good_keeps_its_part(server, tmp_path):
    server.breaks, server.times = 0, 100
    (tmp_path / ".words.bin.part").write_bytes(CONTENT[:1000])
    with pytest.raises(UserError, match="the same command goes on from there"):
        fetch_file(file_of(), f"{server.address}/words.bin", tmp_path / "words.bin")
    assert left(tmp_path) == [".words.bin.part"]
    server.times = 0
    fetch_file(file_of(), f"{server.address}/words.bin", tmp_path / "words.bin")
    assert (tmp_path / "words.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"!", CONTENT + b"!"])
def test_another_content_is_refused_and_nothing_stays(server, tmp_path, content):
    server.content = content
    with pytest.raises(UserError, match=r"is not words.bin as it should be|is longer than it should be"):
        fetch_file(file_of(), f"{server.address}/words.bin", tmp_path / "words.bin")
    assert not (tmp_path / "words.bin").exists()
    server.content = CONTENT
    fetch_file(file_of(), f"{server.address}/words.bin", tmp_path / "words.bin")
    assert (tmp_path / "words.bin").read_bytes() == CONTENT


def test_another_file_of_that_name_is_never_overwritten(server, tmp_path):
    (tmp_path / "words.bin").write_text("mine")
    with pytest.raises(UserError, match="is another file of that name; move or delete it"):
        fetch_file(file_of(), f"{server.address}/words.bin", tmp_path / "words.bin")
    assert (tmp_path / "words.bin").read_text() == "mine"


def test_what_the_server_says_is_told(server, tmp_path):
    with pytest.raises(UserError, match=r"/absent: 404 .*; check the address"):
        fetch_file(file_of(), f"{server.address}/absent", tmp_path / "words.bin")
    server.status = 503
    with pytest.raises(UserError, match=r"503 .*; the same command goes on"):
        fetch_file(file_of(), f"{server.address}/words.bin", tmp_path / "words.bin")
    assert len(server.asked) == 1 + fetch._TRIES


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/x", "http://", "https://[/x"])
def test_an_address_where_nobody_is(tmp_path, address):
    with pytest.raises(UserError):
        fetch_file(file_of(), address, tmp_path / "words.bin")
    assert left(tmp_path) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="writes to /dev/full")
def test_a_full_disk_is_one_line(server, tmp_path):
    (tmp_path / ".words.bin.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match="no space left"):
        fetch_file(file_of(), f"{server.address}/words.bin", tmp_path / "words.bin")


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="set MINTAGE_DATA to another folder"):
        fetch_file(file_of(), str(tmp_path / "file"), tmp_path / "file" / "words.bin")


# -- whole sets ----------------------------------------------------------------------------------------------------


def made(**settings):
    return DataSet("words", "text", "words", "MIT", "o/r@1", ships=True, files=(file_of(),), **settings)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MINTAGE_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_set_from_a_folder_and_from_an_address(server, home, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    with pytest.raises(UserError, match=r"words.bin does not exist; name a folder or a URL"):
        fetch_set(made(), str(there))
    (there / "words.bin").write_bytes(CONTENT[1:])
    with pytest.raises(UserError, match=r"is not words\.bin as it should be"):
        fetch_set(made(), str(there))
    (there / "words.bin").write_bytes(CONTENT)
    assert fetch_set(made(), str(there)) == [home / "words.bin"]
    (home / "words.bin").unlink()
    assert fetch_set(made(), f"{server.address}/data/") == [home / "words.bin"]
    assert (home / "words.bin").read_bytes() == CONTENT


def test_a_whole_set_goes_to_a_folder_of_its_own(server, home):
    whole = tuple(DataFile(f"words/{n}.txt", git_id(CONTENT), url=f"{server.address}/{n}.txt") for n in "ab")
    stages = []
    found = fetch_set(made(whole=whole), progress=lambda stage, done, of: stages.append((stage, done == of)))
    assert found == [home / "words" / "a.txt", home / "words" / "b.txt"]
    assert ("words/a.txt", True) in stages
    assert ("words/b.txt", True) in stages


def test_a_set_without_a_public_file_says_what_to_do(home):
    with pytest.raises(UserError, match=r"\(it was made from o/r@1\); run: mintage data get words --from"):
        fetch_set(made())


def test_the_hub_is_asked_through_its_own_library(home, monkeypatch):
    asked = []

    class Hub:
        load_dataset = asked.append

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    assert fetch_set(made(hub="owner/words")) == []
    assert asked == ["owner/words"]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'mintage\[data\]'"):
        fetch_set(made(hub="owner/words"))
