"""``mintage segment`` as a user meets it."""

import io
import json
import sys
from collections import namedtuple

import pytest
from filelock import FileLock

from mintage.cli import main
from mintage.measure import read_results
from mintage.segment import BPE, load
from mintage.testing.segment import BYTES, CORPUS, TEXTS

Done = namedtuple("Done", "status out err")


@pytest.fixture
def mintage(monkeypatch, capfdbinary, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("mintage.models._hub_is_reachable", lambda: False)

    def run(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "argv", ["mintage", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capfdbinary.readouterr()
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        captured = capfdbinary.readouterr()
        return Done(status, captured.out, captured.err.decode())

    return run


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text("".join(CORPUS), encoding="utf-8")
    return "text.txt"


@pytest.fixture
def bpe(tmp_path):
    segmenter = BPE(vocab_size=400).train(CORPUS)
    segmenter.save(tmp_path / "mine")
    return segmenter


def told(done):
    """The one line of a mistake."""
    assert done.status == 2, done
    assert done.out == b""
    assert done.err.startswith("mintage: "), done.err
    assert done.err.count("\n") == 1, done.err
    return done.err[9:-1]


# -- train ---------------------------------------------------------------------------------------------------------


def test_train_writes_what_load_and_transformers_read(mintage, text, tmp_path):
    done = mintage("segment", "train", "bpe", "--text", text, "--vocab-size", 300, "--out", "mine")
    assert (done.status, done.out) == (0, b"wrote mine: bpe, 300 entries (tokenizer.json beside it)\n")
    made = load(tmp_path / "mine")
    assert made.state() == BPE(vocab_size=300).train(CORPUS).state()
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tmp_path / "mine")
    assert theirs(CORPUS[0], add_special_tokens=False)["input_ids"] == made.encode(CORPUS[0])


def test_settings_and_several_texts(mintage, text, tmp_path):
    (tmp_path / "more.jsonl").write_text(json.dumps({"body": "more of the sea"}) + "\n")
    done = mintage("segment", "train", "superword-bpe:vocab_size=280,chunk=50", "--text", text, "-o", "a")
    assert done.out.startswith(b"wrote a: superword-bpe, 280 entries")
    done = mintage("segment", "train", "bpe", "--text", "more.jsonl", "--key", "body", "--vocab-size", 260, "-o", "b")
    assert done.status == 0
    done = mintage("segment", "train", "bpe:vocab_size=300", "--text", text, "--text", text, "--limit", 50, "-o", "c")
    assert load(tmp_path / "c").vocab_size < 300


def test_parity_reads_languages_from_json_lines(mintage, tmp_path):
    texts = {"en": "the moon pulls the sea, the sea follows", "el": "το φεγγάρι τραβά τη θάλασσα"}
    rows = [{"lang": lang, "text": t} for lang, t in texts.items() for _ in range(100 if lang == "en" else 10)]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dev = [{"lang": lang, "text": t} for lang, t in texts.items()]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in dev))

    def premium(method, *more):
        done = mintage("segment", "train", method, "--text", "web.jsonl", "--vocab-size", 280, "-o", "out", *more)
        assert done.status == 0, done.err
        made = load(tmp_path / "out")
        return len(made.encode(texts["el"])) / len(made.encode(texts["en"]))

    plain = premium("bpe")
    assert premium("parity-bpe", "--language", "lang", "--dev", "dev.jsonl") < plain
    assert premium("parity-bpe", "--language", "lang") < plain


def test_work_is_kept_for_a_killed_training(mintage, text, tmp_path):
    done = mintage("segment", "train", "morfessor:max_epochs=2", "--text", text, "--work", "work", "-o", "out")
    assert done.status == 0, done.err
    assert (tmp_path / "work").is_dir()


def test_two_trainings_do_not_share_a_folder(mintage, text, tmp_path):
    (tmp_path / "work").mkdir()
    with FileLock(tmp_path / "work" / "run.lock"):
        done = mintage("segment", "train", "bpe", "--text", text, "--work", "work", "-o", "out")
    assert done.status == 2
    assert done.err == "mintage: work is in use by another training; wait for it, or pass another --work\n"
    assert mintage("segment", "train", "bpe", "--text", text, "--work", "work", "-o", "out").status == 0


@pytest.mark.parametrize("method", ["bpe", "unigram", "lib", "superword-bpe", "compoundpiece"])
@pytest.mark.parametrize("size", [10**23, 2**63 - 1, 10_000_001])
def test_an_enormous_vocabulary_is_refused(mintage, text, method, size):
    done = mintage("segment", "train", method, "--text", text, "--vocab-size", size, "-o", "out")
    assert done.status == 2
    assert done.err.startswith(f"mintage: vocab_size={size} is out of range; pass a number in [")
    assert done.err.count("\n") == 1


def test_an_empty_text_does_not_block_the_next_training(mintage, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "de.txt").write_text("die Haus-Tür die Haustür der Wasser-Turm Wasserturm\n" * 9)
    for steps in (3, 4):
        done = mintage("train", "decompounder", "empty.txt", "--steps", steps)
        assert done.status == 2
        assert done.err.endswith("mintage: no word of the texts has a hyphen to learn from; pass more text\n")
    assert mintage("train", "decompounder", "de.txt", "--steps", 2).status == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("decompounder", "--width", -2), "width=-2 is out of range; pass a number at least 1, e.g. 48"),
        (("zett", "--hidden", 0), "hidden=0 is out of range; pass a number at least 4, e.g. 192"),
        (("zett", "--rows", 0), "rows=0 is out of range; pass a number at least 1, e.g. 4"),
    ],
)
def test_sizes_of_trainings_that_make_no_sense(mintage, text, arguments, line):
    done = mintage("train", arguments[0], text, *arguments[1:])
    assert (done.status, done.err) == (2, f"mintage: {line}\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["bpee"], "unknown method 'bpee'; did you mean 'bpe'?"),
        (["plain"], "plain belongs to the draft job, not to segment"),
        (["bpe:size=3"], "bpe has no setting 'size'; did you mean 'vocab_size'?"),
        (
            ["bpe", "--vocab-size", "100"],
            "vocab_size=100 is out of range; pass a number in [256, 10000000], e.g. 32000",
        ),
        (["bytes", "--vocab-size", "300"], "bytes has no vocabulary size to choose; leave out --vocab-size"),
        (["bpe:vocab_size=300", "--vocab-size", "300"], "the vocabulary size is given twice"),
        (["bpe", "--text", "absent.txt"], "absent.txt does not exist; pass a text file, a .jsonl file or a folder"),
        (["bpe", "--limit", "0"], "limit=0 is out of range; pass a number at least 1"),
        (["bpe", "--dev", "text.txt"], "--dev balances languages; name their field too, e.g. --language lang"),
        (["bpe", "--language", "lang"], "--language reads JSON lines; text.txt is none, pass .jsonl files"),
        (["bpe", "-o", "text.txt"], "text.txt is a file; pass a folder"),
        (["bpe", "-o", "."], ". holds other files (e.g. binary); pass a new folder, nothing was written"),
    ],
)
def test_mistakes_in_training(mintage, text, tmp_path, arguments, line):
    (tmp_path / "binary").write_bytes(b"\x00\x01\xff")
    if "--text" not in arguments:
        arguments += ["--text", text]
    if "-o" not in arguments:
        arguments += ["-o", "out"]
    assert told(mintage("segment", "train", *arguments)).startswith(line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "the corpus is empty; pass some text to learn from"),
        (b"text\x00text", "bad is not text (it holds NUL bytes); pass UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n", "bad is not UTF-8 text (byte 0); convert it, e.g. with iconv"),
    ],
)
def test_texts_that_are_none(mintage, tmp_path, content, line):
    (tmp_path / "bad").write_bytes(content)
    for method in ("bpe", "unigram", "parity-bpe", "morfessor"):
        assert told(mintage("segment", "train", method, "--text", "bad", "-o", "out")) == line
    assert not (tmp_path / "out").exists()


# -- encode and decode -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [t.encode() for t in TEXTS] + BYTES)
def test_decode_gives_back_exactly_what_was_encoded(mintage, bpe, data):
    ids = mintage("segment", "encode", "mine", stdin=data)
    assert ids.status == 0
    assert list(map(int, ids.out.split())) == bpe.encode(data)
    back = mintage("segment", "decode", "mine", stdin=ids.out)
    assert (back.status, back.out) == (0, data)


def test_ids_and_tokens(mintage, bpe):
    words = "the moon é"
    done = mintage("segment", "encode", "mine", words, "--ids")
    assert done.out.decode() == " ".join(map(str, bpe.encode(words))) + "\n"
    done = mintage("segment", "encode", "mine", words, "--tokens")
    lines = [line.split("\t") for line in done.out.decode().splitlines()]
    assert [int(number) for number, _ in lines] == bpe.encode(words)
    assert "".join(json.loads(piece) for _, piece in lines).startswith("the moon ")
    assert mintage("segment", "decode", "mine", *bpe.encode(words)).out.decode() == words
    assert (
        mintage("segment", "decode", "mine", "[" + ", ".join(map(str, bpe.encode(words))) + "]").out == words.encode()
    )


def test_a_terminal_sees_colours(mintage, bpe, monkeypatch):
    from rich.console import Console

    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    done = mintage("segment", "encode", "mine", "the moon\x1b[0m\n")
    assert b"\x1b[38;2;255;255;255;48;2;33;77;114m" in done.out
    assert b"\\x1b" in done.out, "the text cannot command the terminal"
    assert "tokens, 13 bytes" in done.err


def test_mistakes_in_use(mintage, bpe, tmp_path):
    assert told(mintage("segment", "encode", "mine", "x", "--ids", "--tokens")).startswith("--ids and --tokens exclude")
    assert told(mintage("segment", "decode", "mine", "12", "x1")) == (
        "'x1' is not an id; pass whole numbers, e.g. 84 104 101"
    )
    assert told(mintage("segment", "decode", "mine", "99999")).startswith("id 99999 is outside this vocabulary of ")
    assert "does not exist" in told(mintage("segment", "encode", "nothing", "x"))


# -- compare ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path):
    rows = [{"lang": lang, "id": i, "text": CORPUS[i + 2 * (lang == "de")]} for lang in ("en", "de") for i in range(2)]
    (tmp_path / "parallel.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "gold.jsonl").write_text(json.dumps({"word": "keepers", "segments": ["keep", "er", "s"]}) + "\n")
    return ["--parallel", "parallel.jsonl", "--morphology", "gold.jsonl"]


def test_compare_prints_a_table_and_writes_a_page(mintage, bpe, text, rows, tmp_path):
    arguments = ["mine", "hf=mine/tokenizer.json", "--text", text, *rows, "--repeats", 1]
    done = mintage("segment", "compare", *arguments, "--out", "page.html")
    out = done.out.decode()
    assert done.status == 0, done.err
    header = out.splitlines()[0].split()
    assert header == ["mine", "hf"]
    for metric in ("bytes per token", "premium, worst", "morphology F1", "encode MB/s", "dead entries"):
        assert metric in out
    line = next(line for line in out.splitlines() if "bytes per token" in line)
    assert len(set(line.split()[-2:])) == 1, "the same tokenizer twice"
    assert "wrote page.html" in done.err
    page = (tmp_path / "page.html").read_text()
    assert "Tokens of mine" in page
    assert "Token premium per language" in page


def test_compare_as_json_and_into_results(mintage, bpe, text, tmp_path):
    done = mintage("segment", "compare", "mine", "--text", text, "--json", "--repeats", 0, "--out", "results")
    found = [json.loads(line) for line in done.out.splitlines()]
    assert {row["method"] for row in found} == {"mine"}
    assert found[0]["command"] == "mintage segment compare mine --text text.txt --json --repeats 0 --out results"
    assert len(read_results(tmp_path / "results")) > len(found), "figures too"


def test_a_lossy_tokenizer_is_named(mintage, bpe, text, tmp_path):
    import sentencepiece

    with open(tmp_path / "sp.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS), model_writer=file, vocab_size=120, hard_vocab_limit=False, minloglevel=2
        )
    done = mintage("segment", "compare", "mine", "sp.model", "--text", text, "--repeats", 0)
    assert done.status == 0, done.err
    assert "sp.model: lossy: " in done.err
    assert "mine: lossy" not in done.err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["mine", "mine"], "two tokenizers are called mine; name them, e.g. other=mine"),
        (["=mine"], "'=mine' is not NAME=TOKENIZER"),
        (["mine", "--repeats", "-1"], "repeats=-1 is out of range; pass a number at least 0, e.g. 5"),
        (["mine", "--out", "x.pdf"], "x.pdf is neither a .html page nor a folder"),
        (["mine", "--out", "text.txt"], "text.txt is neither a .html page nor a folder"),
        (["cut.json"], "cut.json is damaged or no tokenizer.json"),
        (["bare.json"], "bare.json is no tokenizer that tokenizers can read"),
        (["mine", "--parallel", "gold.jsonl"], "gold.jsonl: a row has no lang; it has: word, segments"),
        (["mine", "--parallel", "parallel.jsonl", "--reference", "fr"], "parallel.jsonl has no rows of the reference"),
        (["mine", "--morphology", "parallel.jsonl"], "parallel.jsonl: a row has no word or segments"),
        (["mine", "--text", "empty.txt"], "the text is empty; pass some to measure on"),
        (["mine", "--text", "binary"], "binary is not text"),
    ],
)
def test_mistakes_in_comparing(mintage, bpe, text, rows, tmp_path, arguments, line):
    (tmp_path / "cut.json").write_bytes((tmp_path / "mine" / "tokenizer.json").read_bytes()[:500])
    model = {"type": "BPE", "merges": [["a", "b"]], "vocab": {}}
    (tmp_path / "bare.json").write_text(json.dumps({"version": "1.0", "model": model}))
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary").write_bytes(b"\x00\x01")
    if "--text" not in arguments:
        arguments += ["--text", text]
    assert told(mintage("segment", "compare", *arguments)).startswith(line)


def test_the_bench_refuses_options_of_other_jobs(mintage):
    for job, option in (("segment", "--prompts"), ("segment", "--model"), ("draft", "--vocab-size")):
        done = mintage("bench", job, option, "300")
        assert done.status == 2
        assert f"No such option: {option}" in done.err
