"""The command line as a user meets it: help, lists, text, and mistakes told in one line."""

import base64
import gzip
import inspect
import io
import json
import re
import shlex
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from functools import wraps
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from mintage import catalog
from mintage.cli import app
from mintage.cli.fields import Lazy
from mintage.measure import Result

Done = namedtuple("Done", "status out err")
SAID = "Tell me about tides, and again about tides"
TINY = ["--dtype", "float32", "-n", "24"]


@pytest.fixture(autouse=True)
def _own_room(monkeypatch, tmp_path):
    """Leave no files, read no cache, ask no network; lines are as long as they are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINTAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr("mintage.models._hub_is_reachable", lambda: False)


@pytest.fixture
def tiny(mintage, tiny_folder):
    """Run ``mintage generate SAID`` with the tiny model, 24 tokens in float32."""

    def run(*arguments, prompt=SAID, model=tiny_folder, **stdin):
        return mintage("generate", prompt, "--model", model, *TINY, *arguments, **stdin)

    return run


@pytest.fixture
def plain_text(tiny_folder):
    """What transformers' own generate says to SAID, in 24 tokens."""
    from mintage.models import load_causal_lm

    def text(chat=True, prompt=SAID, folder=tiny_folder, system=None):
        lm = load_causal_lm(folder, dtype="float32")
        ids = lm.encode(prompt, chat=chat, system=system)
        out = lm.model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)
        return lm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) + "\n"

    return text


def tokens_per_forward(done):
    return float(re.search(r"([\d.]+) tokens per forward", done.err)[1])


# -- help ----------------------------------------------------------------------------------------------------------


def _commands(group, path=()):
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if hasattr(command, "list_commands"):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name)


VERBS = list(_commands(typer.main.get_command(app)))
VERB_IDS = [" ".join(verb) for verb in VERBS]


def _help(verb, columns=200):
    done = CliRunner().invoke(app, [*verb, "--help"], env={"COLUMNS": str(columns), "TERMINAL_WIDTH": str(columns)})
    assert done.exit_code == 0
    return done.stdout


def _examples(verb, columns=200):
    """Commands shown in a verb's help: lines that start with mintage, or pipe into it."""
    lines = [line.strip() for line in _help(verb, columns).splitlines()]
    return [line for line in lines if re.match(r"(?:[\w ]+ \| )?mintage ", line)]


EXAMPLES = [(verb, line) for verb in VERBS for line in _examples(verb)]


def test_the_known_verbs_are_there():
    assert {("methods",), ("show",), ("generate",), ("report",)} <= set(VERBS)
    assert {("bench", "draft"), ("bench", "token-recycling"), ("bench", "lib"), ("train", "vit")} <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS, ids=VERB_IDS)
def test_help_tells_the_purpose_examples_and_what_comes_next(verb):
    text = _help(verb)
    purpose, rest = text.split("Example", 1)
    assert len(purpose.strip().splitlines()[-1]) > 30 or len(purpose.split("Usage:")[1].splitlines()) > 2
    assert _examples(verb)
    assert "Next: " in rest
    assert "[dim]" not in text
    assert "[bold]" not in text


@pytest.mark.parametrize("verb", VERBS, ids=VERB_IDS)
def test_examples_can_be_copied_from_a_terminal_of_80_columns(verb):
    assert _examples(verb, columns=80) == _examples(verb)


def test_every_option_is_explained():
    for verb in VERBS:
        command = typer.main.get_command(app)
        for name in verb:
            command = command.get_command(None, name)
        if isinstance(command, Lazy):
            command = command.load()
        for parameter in command.params:
            assert parameter.help, f"mintage {' '.join(verb)}: {parameter.name} has no help"


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_the_front_page_lists_all_verbs(mintage, arguments):
    done = mintage(*arguments)
    for verb in VERBS:
        assert f" {verb[0]} " in done.out + done.err
    assert "mintage generate" in done.out + done.err


def test_version(mintage):
    from mintage import __version__

    assert mintage("--version") == Done(0, f"mintage {__version__}\n", "")


@pytest.mark.parametrize("verb", VERBS, ids=VERB_IDS)
def test_the_next_command_exists(verb):
    for line in re.findall(r"Next: (mintage .*)", _help(verb)):
        words = shlex.split(line)[1:]
        group = typer.main.get_command(app)
        command = group.get_command(None, words[0])
        command.make_context(words[0], words[1:], parent=group.make_context("mintage", words))


@pytest.fixture
def light(monkeypatch, tiny_folder):
    """Put the tiny model in the place of every other one, and two prompts in the place of all."""
    from mintage import models
    from mintage.bench.draft import drafting

    load, prepare = models.load_causal_lm, drafting.Drafting.prepare
    short = wraps(prepare)(lambda self, *plan, **told: prepare(replace(self, limit=2, max_new_tokens=4), *plan, **told))
    monkeypatch.setattr(drafting.Drafting, "prepare", short)

    from mintage.audit import needle_threading

    monkeypatch.setattr(needle_threading, "_window", lambda lm: None)  # the tiny model reads any length, badly
    ask = needle_threading.NeedleThreading.ask
    once = wraps(ask)(lambda self, *lm, **told: ask(replace(self, repeats=1), *lm, **told))
    monkeypatch.setattr(needle_threading.NeedleThreading, "ask", once)

    def only_bind(function, gives=("text",)):
        signature = inspect.signature(function)
        return wraps(function)(lambda *args, **kwargs: signature.bind(*args, **kwargs) and list(gives))

    monkeypatch.setattr(models, "load_causal_lm", lambda name, **settings: load(tiny_folder, **settings))
    monkeypatch.setattr(drafting, "load_causal_lm", lambda name, **settings: load(tiny_folder, **settings))
    from mintage.bench.keep import joint as keep_bench

    few = {"model": tiny_folder, "texts": 1, "contexts": (96,), "room": (4,), "dtype": "float32"}
    run_keep = keep_bench.KeepBench.run
    short_keep = wraps(run_keep)(
        lambda self, specs, **told: run_keep(replace(self, **few), specs or ["snapkv"], **told)
    )
    monkeypatch.setattr(keep_bench.KeepBench, "run", short_keep)
    monkeypatch.setattr(keep_bench, "load_causal_lm", lambda name, **settings: load(tiny_folder, **settings))
    from mintage.keep.training import channels

    monkeypatch.setattr(channels, "load_causal_lm", lambda name, **settings: load(tiny_folder, **settings))
    monkeypatch.setattr(models, "embedded_folder", lambda: Path(tiny_folder))
    from mintage.bench.run import bench_of

    row = Result(method="tome", job="reduce", metric="speed", value=1.0, unit="x", higher_is_better=True)
    for job in ("reduce", "segment", "retrofit", "lm", "audit"):
        monkeypatch.setattr(bench_of(job), "run", lambda self, specs, **told: [row])
    monkeypatch.setattr("mintage.measure.study.run_study", lambda study, **told: [row])  # its options are read
    for training in catalog.trainings().values():  # options are read and checked; nothing is trained
        kind = catalog.resolve(training.entry)
        monkeypatch.setattr(kind, "run", lambda self, *paths, **told: None)
        monkeypatch.setattr(kind, "summary", lambda self, made: "")


@pytest.mark.parametrize(("verb", "line"), EXAMPLES, ids=[line for _, line in EXAMPLES])
def test_every_example_of_the_help_runs(mintage, light, monkeypatch, tmp_path, make_draft_results, verb, line):
    for name in re.findall(r"--prompts (\S+)", line):
        (tmp_path / name).write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    if verb == ("report",):
        make_draft_results(tmp_path / "results")
    if verb in (("audit", "number-tokens"), ("audit", "to-r2l")):
        from mintage.audit import number_tokenizer

        number_tokenizer("l2r").save(str(tmp_path / "tokenizer.json"))
    if verb[0] == "segment" or verb in (("train", "decompounder"), ("calibrate",)):
        _files_of_segment(tmp_path)
    if verb == ("data", "get"):
        monkeypatch.setattr("mintage.data.fetch._download", lambda url, part, *_: part.write_bytes(b""))
        monkeypatch.setattr("mintage.data.fetch._checksum", lambda path, like: like)
        monkeypatch.setattr("mintage.data.fetch._copy", lambda source, part: part.write_bytes(b""))
    if " keep " in line:
        monkeypatch.setenv("MINTAGE_DATA", str(_speeches(tmp_path)))
    if "--code src/" in line:
        (tmp_path / "src").mkdir()
        (tmp_path / "src" / "main.py").write_text("import os\n" * 12)
    if verb == ("train", "composer"):
        (tmp_path / "chemistry.txt").write_text("a line\n")
    if verb == ("train", "zett"):
        (tmp_path / "corpus").mkdir()
        (tmp_path / "corpus" / "some.txt").write_text("a line\n")
    if verb == ("retrofit", "transfer"):
        _files_of_segment(tmp_path)
        made = mintage("segment", "train", "bpe", "--text", "german.txt", "--vocab-size", 300, "-o", "german")
        assert made.status == 0
    if verb == ("audit", "data-mixture"):
        _files_of_data_mixture(tmp_path)
    line = line.split(" < ")[0]  # of which the shell makes the input below
    command = next(part for part in re.split(r" \| (?=mintage)| \| ", line) if part.startswith("mintage "))
    words = shlex.split(command)[1:]
    if verb == ("generate",):
        words += ["-n", "8"]
    done = mintage(*words, stdin="+ a line\n- another\n")
    assert done.status == 0, done.err
    assert done.out.strip()


def _speeches(folder):
    with gzip.open(folder / "long_docs.jsonl.gz", "wt") as file:
        for number in range(3):
            text = "The people of these states are heard. " * 400
            file.write(json.dumps({"corpus": "inaugural", "file": str(number), "text": text}) + "\n")
    return folder


def _untrained():
    from mintage.segment.decompounder import Decompounder, Tagger

    return Decompounder("aeh", {}, Tagger(5))


def _files_of_data_mixture(folder):
    from mintage.segment import BPE
    from mintage.testing.segment import CORPUS

    (folder / "src").mkdir()
    for name, part in {
        "german.txt": CORPUS[2],
        "src/one.py": CORPUS[4],
        "en.jsonl": json.dumps({"text": CORPUS[0]}),
    }.items():
        (folder / name).write_text(part * (1 if name.endswith("jsonl") else 20))
    BPE(vocab_size=300).train(CORPUS).save(folder / "tokenizer")
    (folder / "tokenizer" / "tokenizer.json").replace(folder / "tokenizer.json")
    tokens = [bytes([value]) for value in range(256)] + [b"th", b"the", b" the", b"re", b"er"]
    ranks = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    (folder / "cl100k_base.tiktoken").write_text("".join(ranks))


def _files_of_segment(folder):
    from mintage.segment import BPE
    from mintage.testing.segment import CORPUS

    (folder / "texts").mkdir()
    (folder / "articles").mkdir()
    for name in ("books.txt", "german.txt", "held-out.txt", "texts/one.txt", "articles/one.txt"):
        (folder / name).write_text("".join(CORPUS))
    for name in ("web.jsonl", "parallel.jsonl"):
        rows = [{"lang": lang, "id": i, "text": CORPUS[i]} for lang in ("en", "de") for i in range(3)]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    _untrained().save(folder / "de.safetensors")
    BPE(vocab_size=300).train(CORPUS).save(folder / "my-tokenizer")
    (folder / "my-tokenizer" / "tokenizer.json").replace(folder / "tokenizer.json")


@pytest.fixture
def make_draft_results():
    from mintage.measure import Result, append_results

    def make(folder, time="2126-01-01T00:00:00+00:00"):
        row = Result(
            method="token-recycling", job="draft", metric="tokens per target forward", value=1.75, unit="tokens",
            higher_is_better=True, interval=(1.5, 2.0), n=9, baseline={"generate (transformers)": 1.0}, model="made up",
            environment={"time": time},
        )  # fmt: skip
        append_results(folder / "draft.jsonl", [row])

    return make


# -- weight --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--help"], ["methods"], ["methods", "--json"], ["generate", "--help"], ["bench", "--help"]]
)
def test_looking_around_imports_no_torch(arguments):
    code = (
        "import sys; sys.argv = ['mintage', *sys.argv[1:]]\n"
        "from mintage.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'numpy', 'jinja2', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not done.stderr


def test_the_installed_script_tells_a_mistake_and_the_status_two():
    done = subprocess.run(
        [sys.executable, "-m", "mintage.cli", "show", "token-recyclin"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mintage: unknown method 'token-recyclin'; did you mean 'token-recycling'?\n"


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m mintage.cli methods --json | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert done.stdout == "[\n"
    assert done.stderr == ""


# -- methods and show ----------------------------------------------------------------------------------------------


def test_methods_lists_all_jobs(mintage):
    done = mintage("methods")
    assert (done.status, done.err) == (0, "")
    for row in catalog.methods():
        assert re.search(rf"^\s*{row.name} .*{row.status}", done.out, re.MULTILINE), row.name
    ready = sum(r.status == "ready" for r in catalog.methods(role="paper"))
    assert f"{ready} of 46 papers ready" in done.out


def test_methods_of_one_job(mintage):
    done = mintage("methods", "--job", "draft")
    assert "token-recycling" in done.out
    assert "pitome" not in done.out


def test_methods_as_json(mintage):
    done = mintage("methods", "--json")
    rows = json.loads(done.out)
    assert len([row for row in rows if row["role"] == "paper"]) == 46
    assert len({row["name"] for row in rows}) == len(rows)
    assert {row["job"] for row in rows} == set(catalog.JOBS)
    assert {row["status"] for row in rows} <= {"ready", "planned"}
    assert [row["name"] for row in json.loads(mintage("methods", "--json", "--job", "lm").out)] == [
        row.name for row in catalog.methods("lm")
    ]


@pytest.mark.parametrize("name", [m.name for m in catalog.methods() if m.status == "ready"])
def test_show_a_method_that_is_ready(mintage, name):
    done = mintage("show", name)
    assert (done.status, done.err) == (0, "")
    row = catalog.find(name)
    assert row.title in done.out
    assert row.arxiv in done.out
    for key in catalog.hyperparameters(row.load_settings()):
        assert re.search(rf"^\s*{key} ", done.out, re.MULTILINE)
    assert "Laws it passes" in done.out
    assert f": mintage bench {name}" in done.out


def test_show_a_method_that_is_planned(mintage):
    planned = next(m for m in catalog.methods() if m.status == "planned")
    done = mintage("show", planned.name)
    assert (done.status, done.err) == (0, "")
    assert f"{planned.name}  ({planned.job}, paper, planned)" in done.out
    assert f"https://arxiv.org/abs/{planned.arxiv}" in done.out
    assert f"Claim: {planned.claim}" in done.out
    assert "Settings" not in done.out


def test_show_what_was_measured(mintage, make_draft_results, tmp_path):
    make_draft_results(tmp_path / "mine")
    shown = mintage("show", "token-recycling", "--results", tmp_path / "mine").out
    assert f"Measured (in {tmp_path / 'mine'}/, newest row of 2126-01-01)" in shown.replace("\n", "")
    assert re.search(r"^measured +tokens per target forward *$", shown, re.MULTILINE)
    assert re.search(r"1.75 tokens \(1.5 to 2\), n=9; baseline generate \(transformers\) 1 *$", shown, re.MULTILINE)
    assert "made up; unknown machine; 2126-01-01" in shown
    assert "shipped" in mintage("show", "prompt-lookup", "--results", tmp_path / "mine").out, "of another method"


def test_older_rows_of_ones_own_give_way_to_those_that_are_shipped(mintage, make_draft_results, tmp_path):
    make_draft_results(tmp_path / "old", time="2020-01-01T00:00:00+00:00")
    shown = mintage("show", "token-recycling", "--results", tmp_path / "old").out
    assert "Measured (shipped with mintage" in shown
    assert "made up" not in shown


def test_show_tells_anywhere_what_was_measured_before_it_was_shipped(mintage, tmp_path):
    shown = mintage("show", "ems", "--results", tmp_path / "nowhere").out
    head = r"Measured \(shipped with mintage [\d.]+, newest row of \d{4}-\d\d-\d\d\): \d+ of \d+ claims hold"
    assert re.search(head, shown)
    assert re.search(r"^does not hold +EMS finds more needles than the best rival", shown, re.MULTILINE)
    assert re.search(r"points \(.* to .*\), n=\d+; baseline full-cache [\d.]+, .*; best peer", shown)
    assert re.search(r"smollm2; pass-keys and .*; 20\d\d-\d\d-\d\d; commit [0-9a-f]{7}", " ".join(shown.split()))
    assert "Nothing measured" in mintage("show", "wechsel").out


def test_show_tells_when_a_method_pays_and_when_not(mintage):
    shown = " ".join(mintage("show", "ems").out.split())
    assert re.search(r"Pays when the cache must be tiny .* [\d.]+x \[.*n=\d+\] that of H2O\.", shown)
    assert re.search(r"Does not pay when .*: -\d+ points \[.*n=\d+\]", shown)
    assert "Pays when" not in mintage("show", "wechsel").out


# -- generate ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
@pytest.mark.parametrize("draft", ["token-recycling+prompt-lookup", "token-recycling", "prompt-lookup", "none"])
def test_the_text_is_that_of_plain_generate(tiny, plain_text, stream, draft):
    done = tiny("--draft", draft, stream)
    assert done.status == 0
    assert done.out == plain_text()
    name = "plain" if draft == "none" else re.escape(draft)
    assert re.match(rf"{name}: 24 tokens in [\d.]+ s \([\d.]+ tokens/s\), \d+ forwards, [\d.]+ tokens per f", done.err)


def test_none_drafts_nothing(tiny):
    assert tokens_per_forward(tiny("--draft", "none")) == 1


def test_raw_leaves_the_chat_template_out(tiny, plain_text):
    assert tiny("--raw").out == plain_text(chat=False) != plain_text()


def test_the_system_message_counts(tiny, plain_text):
    assert tiny("--system", "Be brief").out == plain_text(system="Be brief") != plain_text()


def test_standard_input(tiny, plain_text):
    assert tiny(prompt="-", stdin=SAID).out == plain_text()


def test_a_model_without_a_chat_template(tiny, plain_text, save_tiny_model, tmp_path):
    folder = save_tiny_model(tmp_path / "plain", chat=False)
    assert tiny("--raw", model=folder).out == plain_text(chat=False, folder=folder)
    done = tiny(model=folder)
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert done.err == f"mintage: {folder} has no chat template; pass the text as it is with --raw (chat=False)\n"


def test_compare_says_that_the_text_is_the_same(tiny, plain_text):
    done = tiny("--compare")
    assert done.status == 0
    assert done.out == plain_text()
    assert re.search(r"^plain generate: 24 tokens in [\d.]+ s", done.err, re.MULTILINE)
    assert re.search(r"^drafted decoding is [\d.]+x as fast per token, and the text is identical$", done.err, re.M)


def test_compare_of_samples_compares_the_speed_alone(tiny):
    done = tiny("--compare", "-t", "0.9", "--top-k", "5", "--top-p", "0.9", "--repetition-penalty", "1.1")
    assert done.status == 0
    assert done.err.rstrip().endswith("as fast per token")


def test_compare_tells_where_texts_part(capfd, tiny_folder):
    import torch

    from mintage.cli.generate import _sameness
    from mintage.models import load_causal_lm

    lm = load_causal_lm(tiny_folder, dtype="bfloat16")
    ids, a, b = torch.tensor([[1]]), torch.tensor([[1, 5, 6, 7]]), torch.tensor([[1, 5, 9, 7]])
    assert _sameness(lm, ids, a, a) == "identical"
    assert _sameness(lm, ids, a, b).startswith("identical for 1 tokens, then parts at a near-tie (in torch.bfloat16")
    assert _sameness(lm, ids, a, a[:, :3]).startswith("identical for 2 tokens")


def test_a_seed_repeats_a_sample(tiny):
    first, again, other = (tiny("-t", "1.2", "--seed", seed).out for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_table_is_kept_from_call_to_call(tiny, tmp_path):
    table = tmp_path / "deep" / "table.safetensors"
    draft = ["--draft", "token-recycling", "--table", table, "-n", "96"]
    cold, hot = tiny(*draft), tiny(*draft)
    assert table.exists()
    assert hot.out == cold.out
    assert tokens_per_forward(hot) > tokens_per_forward(cold)


def test_the_table_serves_inside_a_union(tiny, tmp_path):
    table = tmp_path / "table.safetensors"
    assert tiny("--table", table).status == 0
    before = table.read_bytes()
    assert tiny("--table", table, prompt="Another matter").status == 0
    assert table.read_bytes() != before


def test_no_new_tokens_print_nothing_and_keep_the_table(tiny, tmp_path):
    table = tmp_path / "table.safetensors"
    tiny("--table", table)
    before = table.read_bytes()
    done = tiny("-n", "0", "--table", table)
    assert (done.status, done.out) == (0, "\n")
    assert "0 tokens in" in done.err
    assert "0 forwards" in done.err
    assert table.read_bytes() == before


def test_a_drafter_with_a_draft_model(tiny, tiny_folder, plain_text):
    for draft_model in (tiny_folder, "rounded:4"):
        done = tiny("--draft", "speculative", "--draft-model", draft_model)
        assert done.out == plain_text()
        assert re.search(r", \d+ draft forwards;", done.err)
    assert tokens_per_forward(tiny("--draft", "speculative", "--draft-model", tiny_folder)) > 3


# -- bench and report ----------------------------------------------------------------------------------------------


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text, "category": "x"}) + "\n" for text in ("one", "two", "three")))
    return path


@pytest.fixture
def bench(mintage, tiny_folder, prompts):
    def run(*arguments):
        files = "--model", tiny_folder, "--prompts", prompts
        return mintage("bench", "draft", *arguments, *files, "--dtype", "float32", "-n", 6)

    return run


def test_bench_appends_prints_and_feeds_the_report(bench, mintage, tmp_path):
    done = bench("token-recycling:budget=4", "prompt-lookup")
    assert done.status == 0
    for name in ("token-recycling:budget=4", "prompt-lookup", "generate (transformers)", "tokens per target"):
        assert name in done.out
    lines = (tmp_path / "results" / "draft.jsonl").read_text().splitlines()
    assert f"appended {len(lines)} rows to results/draft.jsonl; next: mintage report" in done.err
    assert {line.partition(":")[0] for line in done.err.splitlines()[:-1]} == {"answers at temperature 0"}
    rows = [json.loads(line) for line in lines]
    command = rows[0]["command"]
    assert command.startswith("mintage bench draft token-recycling:budget=4 prompt-lookup --model ")
    bench("prompt-lookup")
    assert (tmp_path / "results" / "draft.jsonl").read_text().splitlines()[: len(lines)] == lines

    made = mintage("report")
    assert made == Done(0, f"wrote {tmp_path / 'report.html'}\n", "")
    page = (tmp_path / "report.html").read_text()
    assert "token-recycling:budget=4" in page
    assert "http-equiv" in page


def test_bench_as_json_without_saving(bench, tmp_path):
    done = bench("plain", "--json", "--no-save", "--limit", 0)
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert {row["method"] for row in rows} >= {"plain"}
    assert {row["n"] for row in rows if not row["metric"].startswith("peak memory")} == {3}
    assert all(line.startswith("answers at temperature 0: ") for line in done.err.splitlines())
    assert not (tmp_path / "results").exists()


def test_bench_options_reach_the_run(bench):
    done = bench("plain", "--json", "--no-save", "--limit", 2, "-t", 0.5, "--seed", 7)
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert {(row["seed"], row["settings"]["temperature"]) for row in rows} == {(7, 0.5)}
    assert {row["n"] for row in rows if not row["metric"].startswith("peak memory")} == {2}


def test_bench_takes_lists_of_temperatures_and_nodes(bench, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = bench("rsd", "--nodes", "2,4", "-t", "0,1", "--no-assisted", "--no-save", "--limit", 2)
    lines = done.out.splitlines()
    assert [line for line in lines if line.startswith("temperature")] == ["temperature 0", "temperature 1"]
    for spec in ("rsd:branching=2x1", "rsd:branching=1x1", "rsd:width=2,depth=2", "rsd:width=1,depth=2"):
        assert any(line.strip().startswith(spec) for line in lines), spec
    assert "modelled speed" in done.out
    assert max(map(len, lines)) <= 80
    assert not list((tmp_path / ".mintage" / "bench" / "draft").iterdir())


def test_a_table_too_wide_for_the_console_goes_on_below(bench, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = bench("prompt-lookup", "--no-assisted", "--no-save", "--limit", 2)
    for heading in ("tokens per second", "outputs identical to", "peak memory beyond", "modelled speed over"):
        assert heading in done.out
    plain = [line.split() for line in done.out.splitlines() if line.startswith(" generate (transformers)")]
    assert len(plain) > 2  # once per part of the table
    assert all(cells[-1].replace(".", "").replace("e-", "").isdigit() for cells in plain)


def test_bench_notes_go_to_standard_error(bench):
    done = bench("plain", "--no-assisted", "--json", "--no-save", "--limit", 1)
    assert done.err.splitlines()[0] == "one prompt has no interval: claims are not tested; pass --limit 2 or more"
    assert [json.loads(line)["method"] for line in done.out.splitlines()]


# -- mistakes ------------------------------------------------------------------------------------------------------


def told(done):
    """The one line of a mistake."""
    assert done.status == 2, done
    assert done.out == ""
    assert "Traceback" not in done.err
    assert done.err.startswith("mintage: "), done.err
    assert done.err.endswith("\n")
    assert done.err.count("\n") == 1, done.err
    return done.err[9:-1]


def test_mistakes_in_looking(mintage, tmp_path):
    assert told(mintage("show", "token-recyling")) == "unknown method 'token-recyling'; did you mean 'token-recycling'?"
    assert told(mintage("methods", "--job", "drafts")) == "unknown job 'drafts'; did you mean 'draft'?"
    assert told(mintage("report")) == "cannot read results: No such file or directory"
    (tmp_path / "empty").mkdir()
    assert told(mintage("report", "empty")) == "empty holds no *.jsonl results; run: mintage bench METHOD"
    (tmp_path / "empty" / "draft.jsonl").write_text('{"row": "result"}\n')
    assert told(mintage("report", "empty")).startswith("empty/draft.jsonl, line 1: no schema version")
    assert told(mintage("show", "plain", "--results", "empty")).startswith("empty/draft.jsonl, line 1: no schema")


def test_the_rows_that_travel_are_written_and_read_like_any_others(mintage, make_draft_results, tmp_path):
    make_draft_results(tmp_path / "results")
    done = mintage("report", "results", "--scoreboard", "few.jsonl")
    assert (done.status, done.out) == (0, f"wrote {tmp_path / 'few.jsonl'}\n")
    assert not (tmp_path / "report.html").exists()
    assert mintage("report", "few.jsonl").status == 0


def test_a_page_that_cannot_be_written(mintage, make_draft_results, tmp_path):
    make_draft_results(tmp_path / "results")
    (tmp_path / "file").touch()
    file, page = tmp_path / "file", tmp_path / "file" / "x.html"
    assert told(mintage("report", "-o", page)) == f"{page} cannot be written ({file}: File exists); pass another path"
    (tmp_path / "folder").mkdir()
    for option in ("-o", "--scoreboard"):
        line = told(mintage("report", option, tmp_path / "folder"))
        assert line == f"{tmp_path / 'folder'} is a folder; pass the file to write"
    assert list((tmp_path / "folder").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--draft", "token-recyclin"], "unknown method 'token-recyclin'; did you mean 'token-recycling'?"),
        (["--draft", "plain+token-recyclin"], "unknown method 'token-recyclin'; did you mean 'token-recycling'?"),
        (["--draft", "pitome"], "pitome belongs to the reduce job, not to draft; draft has: "),
        (["--draft", "token-recycling:budgt=8"], "token-recycling has no setting 'budgt'; did you mean 'budget'?"),
        (["--draft", "prompt-lookup:length=x"], "prompt-lookup: length='x' is not int"),
        (["--draft", "token-recycling:budget=x"], "budget='x' is not int or one of template, auto"),
        (["--draft", "prompt-lookup:length"], "'prompt-lookup:length': 'length' is not key=value; write e.g. "),
        (["--draft", "prompt-lookup:length=0"], "length=0 is out of range; pass a number at least 1, e.g. 10"),
        (["--draft", "token-recycling+budget=0"], "budget=0"),
        (["--draft", "prompt-lookup", "--table", "t"], "--table needs token-recycling among the drafters"),
        (["--raw", "--system", "Be brief"], "--system is part of the chat, which --raw leaves out"),
        (["--compare", "-n", "0"], "--compare needs at least 1 new token"),
    ],
)
def test_mistakes_told_before_the_model_loads(mintage, monkeypatch, arguments, line):
    monkeypatch.setattr("mintage.models.load_causal_lm", lambda *_, **__: pytest.fail("the model was loaded"))
    assert line in told(mintage("generate", SAID, *arguments))


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_an_empty_prompt(mintage, prompt):
    line = "the prompt is empty; pass some text, or - to read standard input"
    assert told(mintage("generate", prompt)) == line
    assert told(mintage("generate", "-", stdin=prompt)) == line


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_prompt_that_is_not_text(mintage, errors):
    stdin = io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8", errors=errors)
    assert told(mintage("generate", "-", stdin=stdin)).startswith("the prompt is not UTF-8 text")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["-n", "-1"], "max_new_tokens=-1 is negative; pass 0 or more"),
        (["-t", "-1"], "temperature=-1.0 is negative; pass 0 for greedy decoding"),
        (["--top-p", "1.5"], "top_p=1.5 is outside (0, 1]"),
        (["--top-k", "-3"], "top_k=-3 is negative"),
        (["--repetition-penalty", "0"], "repetition_penalty=0.0 is not positive"),
        (["--dtype", "bf16"], "unknown dtype 'bf16'; did you mean 'bfloat16'?"),
        (["--device", "gpu"], "device 'gpu' is not available on this machine; pass device='cpu'"),
        (["--device", "meta"], "device 'meta' is not available on this machine; pass device='cpu'"),
        (["--draft", "rsd", "--draft-model", "rounded:x"], "--draft-model 'rounded:x': expected rounded:BITS, e.g."),
        (["--draft", "rsd", "--draft-model", "rounded:9"], "bits=9 is outside 2..8; pass e.g. 4"),
        (["--draft", "rsd", "--draft-model", "no-such"], "'no-such' is neither a folder nor a model that can be fe"),
        (["--model", "no/such-model"], "'no/such-model' is neither a folder nor a model that can be fetched from"),
        (["--model", "/no/such/folder"], "'/no/such/folder' is neither a folder nor a model that can be fetched"),
    ],
)
def test_mistakes_in_values(tiny, arguments, line):
    assert line in told(tiny(*arguments))


def test_a_prompt_longer_than_the_context(tiny, save_tiny_model, tmp_path):
    folder = save_tiny_model(tmp_path / "short", positions=64)
    line = told(tiny(model=folder, prompt="x" * 100))
    assert re.fullmatch(r"prompt of 1\d\d tokens plus max_new_tokens=24 exceeds .* context of 64; shorten .*", line)


def test_a_damaged_model_folder(tiny, save_tiny_model, tmp_path):
    folder = save_tiny_model(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert f"cannot load the model in {folder}: " in told(tiny(model=folder))
    (tmp_path / "bare").mkdir()
    assert "cannot load the model in " in told(tiny(model=tmp_path / "bare"))


def test_a_table_of_another_kind(tiny, save_tiny_model, tmp_path):
    table = tmp_path / "table"
    table.write_bytes(b"not a table")
    assert "is not a token-recycling table" in told(tiny("--table", table, "--no-stream"))
    assert table.read_bytes() == b"not a table"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["token-recyclin"], "bench has no 'token-recyclin'; did you mean 'token-recycling'?"),
        (["draft", "token-recyclin"], "unknown method 'token-recyclin'; did you mean 'token-recycling'?"),
        (["draft", "plain", "pitome"], "pitome belongs to the reduce job, not to draft"),
        (["codec"], "the codec job has no bench yet; these have: draft, keep"),
        (["plain"], "plain has no claim check; beside others: mintage bench draft plain"),
        (["token-recycling:budget=4"], "is an arm, not a paper: its claim check has options of its own"),
        (["draft", "--prompts", "absent.jsonl"], "cannot read absent.jsonl: No such file or directory"),
        (["draft", "--prompts", "broken.jsonl"], "broken.jsonl, line 2: not JSON"),
        (["draft", "--prompts", "odd.jsonl"], "odd.jsonl, prompt 1: expected"),
        (["draft", "--limit", "-1"], "limit=-1 is out of range; pass a number at least 0, e.g. 24"),
        (["token-recycling", "--limit", "-1"], "limit=-1 is out of range; pass a number at least 0, e.g. 24"),
        (["draft", "-n", "0"], "max_new_tokens=0 is out of range; pass a number at least 1, e.g. 96"),
        (["draft", "-t", "0;1"], "--temperature '0;1' is not a number"),
        (["draft", "--nodes", "4,x"], "--nodes 'x' is not a whole number"),
        (["draft", "--nodes", "0"], "nodes=0 is out of range; pass a number at least 1"),
        (["draft", "dyspec:budget=4", "--nodes", "8"], "has its shape already; with --nodes give bare names"),
        (["draft", "--link-bandwidth", "0"], "link_bandwidth=0.0 is out of range; pass a number above 0, e.g. 16.0"),
        (["draft", "-t", "-1"], "temperature=-1.0 is out of range; pass a number at least 0"),
        (
            ["draft", "--out", "odd.jsonl"],
            "odd.jsonl/draft.jsonl cannot be written (odd.jsonl: File exists)",
        ),
    ],
)
def test_mistakes_in_a_bench_are_told_before_the_model_loads(mintage, monkeypatch, tmp_path, arguments, line):
    monkeypatch.setattr(
        "mintage.bench.draft.drafting.load_causal_lm", lambda *_, **__: pytest.fail("the model was loaded")
    )
    (tmp_path / "broken.jsonl").write_text('{"prompt": "fine"}\n{"prompt": \n')
    (tmp_path / "odd.jsonl").write_text('{"text": "no prompt"}\n')
    assert line in told(mintage("bench", *arguments))
    assert not (tmp_path / "results" / "draft.jsonl").exists()


def test_a_bench_of_an_unknown_model(mintage):
    assert "'no/such' is neither a folder nor" in told(mintage("bench", "draft", "plain", "--model", "no/such"))
    assert "unknown dtype 'int8'" in told(mintage("bench", "draft", "plain", "--dtype", "int8"))


@pytest.mark.parametrize("arguments", [["bench"], ["generate", "x", "--no-such"], ["nosuch"], ["-x"]])
def test_wrong_usage_has_status_two_and_no_traceback(mintage, arguments):
    done = mintage(*arguments)
    assert done.status == 2
    assert "Traceback" not in done.err
    assert "Usage: " in done.out + done.err


def test_generating_from_nothing_is_told(mintage):
    assert "there is no prompt; pass some text, - to read standard input, or --code FILE:LINE" in told(
        mintage("generate")
    )


@pytest.mark.parametrize(("compiled", "told"), [((0.1, 0.3), "leave --compile out"), ((0.01, 0.02), "")])
def test_compiling_where_it_is_slower_is_told(monkeypatch, compiled, told):
    from mintage import draft
    from mintage.cli.generate import _slower
    from mintage.draft.core import engine

    monkeypatch.setattr(draft, "CompiledTarget", lambda model: model)
    monkeypatch.setattr(draft, "target_for", lambda model, engine: model)
    monkeypatch.setattr(engine, "engine_seconds", lambda targets: {"compiled": compiled, "auto": (0.04, 0.08)})
    line = _slower(None)
    assert told in line
    assert "\n" not in line
    assert bool(line) == bool(told)
