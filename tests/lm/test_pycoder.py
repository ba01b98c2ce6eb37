"""PyCoder: windows with types, near-duplicates, training of every kind and its baselines, completion."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from mintage.cli import app
from mintage.data import texts
from mintage.data.code import distinct, python_files, read_python
from mintage.errors import Notice, UserError
from mintage.lm.core.code_accuracy import right_tokens
from mintage.lm.core.code_windows import pieces_of, typed_windows, unpythonic, without_comments
from mintage.lm.core.completion import complete_code
from mintage.lm.core.python_lexer import TYPES, lex_python
from mintage.lm.core.small_llama import small_llama
from mintage.lm.core.token_types import LABELS
from mintage.lm.pycoder import PyCoder
from mintage.lm.training.pycoder import PyCoderTraining
from mintage.testing.causal_lms import build_tiny

CODE = '''import os


def area(width, height):
    """Say how large."""
    return width * height  # in metres


for number in range(3):
    print(area(number, 2), os.sep)
'''
SMALL = {"steps": 12, "width": 16, "layers": 1, "vocabulary": 300, "window": 16, "rows": 4, "lr": 1e-2, "warmup": 2}


@pytest.fixture
def src(tmp_path, monkeypatch):
    """A folder of files that are not alike."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "src"
    folder.mkdir()
    for number, name in enumerate(("one", "two", "three")):
        text = "".join(f"{name}_{i} = {name}({i * 7 + number}, '{name[i % 3]}')\n" for i in range(60))
        (folder / f"{name}.py").write_text(CODE + text)
    return folder


def training(**changed):
    return PyCoderTraining(code=("src",), **{**SMALL, **changed})


@pytest.fixture(scope="module")
def pair():
    return small_llama([CODE], 300, 16, 1, 0)


def test_windows_have_a_type_for_every_piece(pair):
    _, tokenizer = pair
    windows = typed_windows(tokenizer, [CODE, "x = (", ""], 8, LABELS["lexer"])
    ids, offsets = pieces_of(tokenizer, CODE)
    assert windows.code.ravel().tolist()[: len(ids)] == ids[: windows.code.size]
    named = [TYPES[index] for index in windows.types.ravel()]
    assert (named[0], CODE[slice(*offsets[0])][:2]) == ("KEYWORD", "im")
    assert named[[end for _, end in offsets].index(len("import os"))] == "NAME"
    mixed = windows.shuffled(3)
    assert not np.array_equal(mixed.types, windows.types)
    assert np.array_equal(np.sort(mixed.types, 1), np.sort(windows.types, 1))
    assert np.array_equal(mixed.code, windows.code)
    of_tree = typed_windows(tokenizer, ["x = (\n" * 9, CODE], 8, LABELS["ast"])
    assert (of_tree.types[0] == -1).all()  # what does not parse has no types
    assert (of_tree.types[-1] >= 0).all()
    with pytest.raises(UserError, match="less than one window of 512"):
        typed_windows(tokenizer, [CODE], 512, LABELS["lexer"])


def test_comments_go_and_the_code_stays():
    bare = without_comments(CODE)
    assert bare == (
        'import os\ndef area(width, height):\n    ""\n    return width * height\n'
        "for number in range(3):\n    print(area(number, 2), os.sep)\n"
    )
    kinds = [[kind for kind in lex_python(text).types if kind not in ("COMMENT", "EOL")] for text in (CODE, bare)]
    assert kinds[0] == kinds[1]
    assert without_comments("x = '''a\n\n# b'''\n") == "x = '''a\n\n# b'''\n"
    assert without_comments("# only") == ""


def test_near_duplicates_are_found_and_the_first_is_kept():
    lines = [f"value_{n} = compute({n}, other_{n * 3})" for n in range(120)]
    whole, changed = "\n".join(lines), "\n".join([*lines[:60], "x = 1", *lines[61:]])
    other = "\n".join(f"def name_{n}(self): return {n * n}" for n in range(120))
    assert distinct([whole, other, changed, whole, ""]) == [True, True, False, False, True]
    assert distinct([changed, whole], threshold=1) == [True, True]
    with pytest.raises(UserError, match="threshold=0"):
        distinct([whole], threshold=0)


def test_the_library_is_parted_by_file_without_tests_or_near_duplicates():
    train, held = ([*texts("python-code", split).documents()] for split in ("train", "held-out"))
    assert len(train) > 5 * len(held) > 50
    assert not {document.name for document in train} & {document.name for document in held}
    assert not [d.name for d in (*train, *held) if "test" in Path(d.name).parts or "tests" in Path(d.name).parts]


def test_files_that_are_no_python_text_are_told(tmp_path):
    (tmp_path / "latin.py").write_bytes(b"# coding: latin-1\nx = '\xe9'\n")
    assert read_python(tmp_path / "latin.py").endswith("x = '\u00e9'\n")
    for name, data, rule in (
        ("null.py", b"x = 1\n\0\n", "line 2 holds a NUL"),
        ("bytes.py", b"x = '\xe9'\n", "not text in the encoding"),
        ("coding.py", b"# coding: nonsense\n", "not text in the encoding"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=rule):
            read_python(tmp_path / name)
    found = python_files(tmp_path)
    assert [Path(path).name for path in found.texts] == ["latin.py"]
    assert len(found.left_out) == 3
    (tmp_path / "empty").mkdir()
    for bad in ((), (tmp_path / "empty",), (tmp_path / "none.py",), (tmp_path / "null.py",)):
        with pytest.raises(UserError):
            python_files(*bad)


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("x = 1\nprint 'x'\n", (2, "is Python 2")),
        ("try:\n    f()\nexcept E, e:\n    pass\n", (3, "is Python 2")),
        ("if x:\n\ty\n        z\n", (3, "mixes tabs and blanks")),
        ("if x:\n        if y:\n\tz\n", (3, "mixes tabs and blanks")),
        ("if x:\n\ty\n\tif z:\n\t    a\n", None),
        ("print('x')\nprint\nf(a,\n  print)\nexcept_ = 1\n", None),
        ("'''\nprint x\n'''\n", None),
        (CODE, None),
    ],
)
def test_python_2_and_tabs_are_noticed(source, wanted):
    assert unpythonic(source) == wanted


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"sharing": "soft"},
        {"sharing": "intermediate", "type_steps": 5},
        {"sharing": "head"},
        {"sharing": "none"},
        {"labels": "ast"},
        {"labels": "shuffled"},
    ],
    ids=str,
)
def test_a_coder_is_trained_and_is_an_ordinary_model(src, changed):
    made = training(**changed).run("coder", "work", command="mintage train pycoder")
    plain = AutoModelForCausalLM.from_pretrained("coder").eval()
    ids = torch.tensor([made.tokenizer(CODE)["input_ids"]])
    assert torch.equal(plain(ids).logits, made.model(ids).logits)
    assert json.loads(plain.config.mintage_notes["settings"])["sharing"] == changed.get("sharing", "hard")
    again = PyCoder.load("coder")
    assert torch.equal(again(ids, ids % 5).loss, made(ids, ids % 5).loss) or made.sharing == "soft"
    assert "of the tokens right" in training(**changed).summary(made) or not hasattr(
        plain.config, "held_out_token_accuracy"
    )


def test_a_killed_training_goes_on_bit_by_bit(src, tmp_path):
    training().run("whole", "work-a")
    short, long = (Path(f"work-{name}/code/checkpoint.safetensors") for name in "ab")
    from mintage.train import loop

    steps = loop._Run.take_step
    try:

        def stop(self):
            if self.step == 7:
                raise KeyboardInterrupt
            steps(self)
            self.save()

        loop._Run.take_step = stop
        with pytest.raises(KeyboardInterrupt):
            training().run("killed", "work-b")
    finally:
        loop._Run.take_step = steps
    assert not Path("killed").exists()
    training().run("killed", "work-b")
    assert short.exists()
    assert long.exists()
    for file in ("model.safetensors", "types.safetensors"):
        a, b = (Path(name, file).read_bytes() for name in ("whole", "killed"))
        assert a == b or file == "types.safetensors"


def test_training_goes_on_from_a_model_and_types_are_learnt(src):
    first = training(sharing="none").run("first", "work-a")
    made = training(model="first", vocabulary=4096, steps=30).run("second", "work-b")
    windows = typed_windows(made.tokenizer, [CODE * 3], 16, LABELS["lexer"])
    batch = windows.batch(0, 4, 0)
    assert made(*batch).types < 0.7 * PyCoder(first.model, first.tokenizer)(*batch).types


def test_what_is_odd_in_a_folder_is_told_once(src):
    (src / "two.py").write_text("print 'old'\n" + CODE)
    (src / "null.py").write_bytes(b"x\0")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        training(steps=1).sources()
    lines = [str(one.message) for one in told if issubclass(one.category, Notice)]
    assert lines[0].endswith("leave it out (left out)")
    assert "two.py, line 1 is Python 2 (learnt as they are)" in lines[1]


def test_what_cannot_be_trained_is_told(src, tmp_path):
    for changed, rule in (
        ({"sharing": "none", "labels": "shuffled"}, "learns no types"),
        ({"type_steps": 3}, "are for sharing='intermediate'"),
        ({"weight": 1.5}, "weight=1.5"),
    ):
        with pytest.raises(UserError, match=rule):
            training(**changed)
    with pytest.raises(UserError, match="holds other files"):
        training().run("src", "work")


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gpt_neox", "gemma2", "qwen2", "phi", "bloom"])
def test_any_causal_model_learns_types(kind):
    coder = PyCoder(build_tiny(kind))
    code, types = torch.arange(18).reshape(2, 9), torch.arange(18).reshape(2, 9) % 7
    coder(code, types).loss.backward()
    assert all(p.grad is not None for p in coder.types.parameters())


def test_a_token_is_right_if_all_its_pieces_are(pair):
    _, tokenizer = pair
    ids, offsets = pieces_of(tokenizer, CODE)

    class Oracle:
        device = torch.device("cpu")
        wrong = -1

        def __call__(self, input_ids, use_cache):
            start = next(i for i in range(len(ids)) if ids[i : i + input_ids.shape[1]] == input_ids[0].tolist())
            logits = torch.zeros(1, input_ids.shape[1], len(tokenizer))
            for place in range(input_ids.shape[1] - 1):
                true = input_ids[0, place + 1]
                logits[0, place, true if start + place + 1 != self.wrong else (true + 1) % 300] = 1
            return type("Out", (), {"logits": logits})

    oracle = Oracle()
    counted = [kind not in ("EOL", "INDENT", "DEDENT", "COMMENT") for kind in lex_python(CODE).types]
    for window in (8, 16, 512):
        right = right_tokens(oracle, tokenizer, CODE, window)
        assert len(right) == sum(counted)
        assert right[1:].all()
        assert not right[0]  # nothing is before it
    oracle.wrong = 20
    at = offsets[20]
    lexed = lex_python(CODE)
    touched = [
        number
        for number, (start, end) in enumerate(zip(lexed.starts, lexed.ends, strict=True))
        if counted[number] and start < at[1] and end > at[0]
    ]
    assert len(right_tokens(oracle, tokenizer, CODE, 512)) - right_tokens(
        oracle, tokenizer, CODE, 512
    ).sum() == 1 + len(touched)


LEARNT = "def area(width, height):\n    return width * height\n\n\n"


@pytest.fixture(scope="module")
def coder(tmp_path_factory):
    """A model that knows one function by heart."""
    folder = tmp_path_factory.mktemp("coder")
    (folder / "main.py").write_text(LEARNT * 40)
    sizes = {**SMALL, "width": 32, "window": 64, "steps": 120, "vocabulary": 280, "sharing": "head"}
    made = PyCoderTraining(code=(str(folder / "main.py"),), **sizes).run(folder / "coder", folder / "work")
    return folder, made


def test_lines_and_tokens_are_completed(coder):
    _, made = coder
    place = LEARNT * 2 + LEARNT[: LEARNT.index("width * height")]
    found = complete_code(made.model, made.tokenizer, place)
    assert found[0].text.startswith("width * height")
    assert "\n" not in found[0].text
    assert sum(one.share for one in found) == pytest.approx(1)
    assert [one.share for one in found] == sorted((one.share for one in found), reverse=True)
    for typed, rest in (("wid", "th"), ("width", ""), ("width ", "* ")):
        done = complete_code(made.model, made.tokenizer, place + typed)[0].text
        assert done.startswith(rest), typed
    assert complete_code(made.model, made.tokenizer, place, level="token")[0].text == "width"
    assert complete_code(made.model, made.tokenizer, place + "wid", level="token")[0].text == "th"
    assert len(complete_code(made.model, made.tokenizer, place, beams=1, most=1)) == 1
    for bad in ({"beams": 0}, {"most": 0}):
        with pytest.raises(UserError, match="at least 1"):
            complete_code(made.model, made.tokenizer, place, **bad)
    with pytest.raises(UserError, match="no code before"):
        complete_code(made.model, made.tokenizer, "")


def test_a_long_file_is_read_from_its_end(coder):
    _, made = coder
    place = LEARNT * 200 + LEARNT[: LEARNT.index("width * height")]
    assert complete_code(made.model, made.tokenizer, place)[0].text.startswith("width")


def test_generate_completes_code_where_the_user_stands(coder):
    folder, _ = coder
    (folder / "new.py").write_text(LEARNT * 2 + "def area(width, height):\n    return width *\n")
    line = 2 * len(LEARNT.split("\n"))
    arguments = ["generate", "--model", str(folder / "coder"), "--dtype", "float32", "--code"]
    done = CliRunner().invoke(app, [*arguments, f"{folder / 'new.py'}:{line}"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(" height")
    assert "proposals" in done.stderr
    done = CliRunner().invoke(app, [*arguments, f"{folder / 'new.py'}:{line}:12", "--level", "token"])
    assert done.stdout.strip() == "width"


def test_what_cannot_be_completed_is_told_in_one_line(tmp_path):
    files = {
        "two.py": b"x = 1\nprint 'x'\n",
        "tabs.py": b"if x:\n\ty\n        z\n",
        "null.py": b"x = 1\n\0\n",
        "good.py": b"x = 1\n",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "bytes").mkdir()
    (tmp_path / "bytes" / "config.json").write_text('{"model_type": "mintage-hat"}')
    for options, rule in (
        (["--code", "two.py:3"], "line 2 is Python 2"),
        (["--code", "tabs.py:3"], "line 3 mixes tabs and blanks"),
        (["--code", "null.py:1"], "line 2 holds a NUL byte"),
        (["--code", "good.py:9"], "has 2 lines, no line 9"),
        (["--code", "good.py:0"], "no line 0"),
        (["--code", "good.py:1:9"], "has 5 letters, no column 9"),
        (["--code", "good.py"], "names no place in code"),
        (["--code", "none.py:1"], "cannot read none.py"),
        (["--code", "good.py:1", "--model", "bytes"], "no model of code"),
        (["--code", "good.py:1", "-t", "0.5"], "--temperature does not go with --code"),
        (["--code", "good.py:1", "--seed", "3"], "--seed does not go with --code"),
        (["--code", "good.py:1", "-n", "0"], "completes nothing"),
        (["--code", "good.py:1", "-n", "101"], "pass at most 100"),
        (["a prompt", "--code", "good.py:1"], "takes the place of the prompt"),
        (["a prompt", "--level", "token"], "is for --code"),
        ([], "there is no prompt"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            done = CliRunner().invoke(app, ["generate", *options])
        told = str(done.exception)
        assert done.exit_code != 0, options
        assert rule in told, options
        assert "\n" not in told
