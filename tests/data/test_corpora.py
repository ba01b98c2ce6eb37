"""The list of corpora: every text in one split, read lazily, opened nowhere else."""

import ast
import gzip
import json
from pathlib import Path

import pytest

import mintage
from mintage.data import Document, texts
from mintage.data.corpora import CORPORA, READS_BOTH, is_held_out_word
from mintage.errors import UserError

SOURCE = Path(mintage.__file__).parent


def write(folder, name, content):
    lines = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
    with gzip.open(folder / name, "wt", encoding="utf-8") as file:
        file.write(lines)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINTAGE_DATA", str(tmp_path))
    write(tmp_path, "wikitext2_valid.txt.gz", " = A = \n one \n")
    write(tmp_path, "wikitext2_test_head.txt.gz", " = B = \n two \n")
    spoken = [("ar", 0), ("en", 0), ("de", 0), ("en", 1), ("de", 1)]
    rows = [{"lang": lang, "par": n, "context": f"{lang}{n}", "qas": [{"question": "?"}]} for lang, n in spoken]
    write(tmp_path, "xquad.jsonl.gz", rows)
    rows = [{"lang": lang, "i": 0, "text": lang, "eng": "yes"} for lang in ("deu", "fra")]
    write(tmp_path, "tatoeba_parallel.jsonl.gz", rows)
    kinds = [("state_union", "1945.txt"), ("inaugural", "1789.txt"), ("shakespeare", "hamlet")]
    kinds += [("genesis", "english-kjv.txt"), ("genesis", "german.txt")]
    write(tmp_path, "long_docs.jsonl.gz", [{"corpus": c, "file": f, "text": f"in {f}"} for c, f in kinds])
    write(tmp_path, "udhr.jsonl.gz", [{"lang": "tha", "text": "all"}, {"lang": "eng", "text": "All"}])
    task = {"task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "    return 1\n", "test": ""}
    write(tmp_path, "humaneval.jsonl.gz", [task])
    rows = [{"split": split, "i": 0, "question": f"{split}?", "answer": "#### 1"} for split in ("train", "test")]
    write(tmp_path, "gsm8k.jsonl.gz", rows)
    write(tmp_path, "spec_bench.jsonl.gz", [{"question_id": 81, "category": "writing", "turns": ["first", "second"]}])
    rows = [{"set": s, "split": split, "s1": f"{s} {split}", "s2": "b", "score": 5.0} for s, split in (
        ("stsb", "train"), ("stsb", "dev"), ("sts12", "test"))]  # fmt: skip
    write(tmp_path, "sts.jsonl.gz", rows)
    words = [{"lang": "eng", "word": w, "segments": [w], "cat": "000"} for w in ("tide", "Tide", "sea", "boat", "sky")]
    write(tmp_path, "morph_segmentation.jsonl.gz", words)
    write(tmp_path, "genomes.fa.gz", ">dmel|2L|1-4\nACGT\n>dmel|X|1-3\nCCN\n")
    rows = [{"task": "promoter", "species": "dmel", "chrom": c, "label": 1, "seq": f"{c or ''}GT"} for c in ("2L", "X")]
    write(tmp_path, "dna_tasks.jsonl.gz", [*rows, *({**rows[0], "chrom": None, "seq": "A" * n} for n in range(1, 9))])
    return tmp_path


FILES = [name for name, corpus in CORPORA.items() if corpus.data]


@pytest.mark.parametrize("name", FILES)
def test_every_text_is_in_one_split_and_all_keeps_the_order(folder, name):
    both = list(texts(name, "all").documents())
    assert both
    parts = {split: list(texts(name, split).documents()) for split in CORPORA[name].splits if split != "all"}
    assert all(parts.values()), "a split that the corpus says it has is empty"
    assert sorted((d for part in parts.values() for d in part), key=both.index) == both
    for document in both:
        assert sum(document in part for part in parts.values()) == 1
    assert list(texts(name, "all")) == [document.text for document in both]


@pytest.mark.parametrize(
    ("name", "split", "domain", "wanted"),
    [
        ("wikitext2", "train", None, [" = A = \n", " one \n"]),
        ("wikitext2", "held-out", None, [" = B = \n", " two \n"]),
        ("xquad", "train", None, ["en0", "en1"]),
        ("xquad", "held-out", "de", ["de0", "de1"]),
        ("xquad", "all", ("en", "ar"), ["ar0", "en0", "en1"]),
        ("tatoeba", "train", "fra", ["fra"]),
        ("speeches", "train", None, ["in 1945.txt", "in 1789.txt"]),
        ("genesis", "train", "de", ["in german.txt"]),
        ("shakespeare", "all", "en", ["in hamlet"]),
        ("humaneval", "held-out", "code", ["def f():\n    return 1\n"]),
        ("gsm8k", "train", None, ["train?"]),
        ("gsm8k", "held-out", None, ["test?"]),
        ("spec-bench", "held-out", None, ["first"]),
        ("genomes", "train", None, ["CCN"]),
        ("genomes", "held-out", "dmel", ["ACGT"]),
        ("sts", "train", None, ["stsb train"]),
        ("sts", "held-out", None, ["stsb dev", "sts12 test"]),
    ],
)
def test_what_a_split_holds(folder, name, split, domain, wanted):
    assert list(texts(name, split, domain=domain)) == wanted


def test_documents_say_what_they_are(folder):
    (first, *_) = texts("xquad", "held-out", domain="de").documents()
    assert first == Document("de 0", "de", "de0", first.fields)
    assert first.fields["qas"] == [{"question": "?"}]
    (task,) = texts("humaneval", "held-out").documents()
    assert (task.name, task.domain) == ("HumanEval/0", "code")
    assert [d.name for d in texts("wikitext2", "held-out").documents()] == ["line 0", "line 1"]


def test_a_word_is_in_the_same_half_however_it_is_written(folder):
    assert is_held_out_word("Tide") == is_held_out_word("tide")
    held = {word for word in ("tide", "sea", "boat", "sky") if is_held_out_word(word)}
    assert {word.lower() for word in texts("morph-segmentation", "held-out")} == held


def test_the_library_by_file():
    top = list(texts("python-library", "held-out").documents())
    assert "textwrap.py" in [d.name for d in top]
    assert all("/" not in d.name and d.domain == "code" for d in top)
    below = [d.name for d in texts("python-library", "train").documents()]
    assert "json/decoder.py" in below
    assert not [name for name in below if name.startswith("test/") or name.count("/") != 1]
    files = list(texts("python-files", "all").documents())
    held = [d.name for d in texts("python-files", "held-out").documents()]
    assert held == [d.name for d in files if d.fields["part"] == 19]
    assert held + [d.name for d in texts("python-files", "train").documents()] != []
    assert not [d.name for d in files if "site-packages" in d.name or "/tests/" in d.name]
    assert 0.02 < len(held) / len(files) < 0.1


def test_a_split_is_read_again_and_knows_when_it_changes(folder):
    split = texts("tatoeba", "train")
    assert list(split) == list(split)
    before = split.fingerprint
    assert before == texts("tatoeba", "train").fingerprint
    assert before != texts("tatoeba", "train", domain="deu").fingerprint
    write(folder, "tatoeba_parallel.jsonl.gz", [{"lang": "deu", "i": 0, "text": "other", "eng": "yes"}])
    assert split.fingerprint != before


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("wikitext", "train"), r"^unknown corpus 'wikitext'; did you mean 'wikitext2'\?"),
        (("wikitext2", "test"), r"^unknown split 'test'; "),
        (("tatoeba", "held-out"), r"^tatoeba has no 'held-out' split; it has: train, all"),
        (("humaneval", "train"), r"^humaneval has no 'train' split; it has: held-out, all"),
    ],
)
def test_mistakes_are_told_at_once(arguments, line):
    with pytest.raises(UserError, match=line):
        texts(*arguments)


def test_an_absent_language_is_told(folder):
    with pytest.raises(UserError, match=r"^xquad, held-out: no text in en; it has: ar, de"):
        list(texts("xquad", "held-out", domain="en"))


@pytest.mark.parametrize(
    ("row", "line"),
    [({"lang": "deu", "eng": "yes"}, "a row lacks 'text'"), ({"lang": "deu", "text": 3}, "a row's text is a int")],
)
def test_a_damaged_row_is_named(folder, row, line):
    write(folder, "tatoeba_parallel.jsonl.gz", [row])
    with pytest.raises(UserError, match=line):
        list(texts("tatoeba", "train"))


# -- nobody else ---------------------------------------------------------------------------------------------------


def modules():
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(["mintage", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")
        if not name.startswith("mintage.data"):
            yield name, path.read_text(encoding="utf-8")


def reads(name, source):
    """Yield the corpus (None where it is a variable) and the split of every call of `texts`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "texts":
            found = [a.value if isinstance(a, ast.Constant) else None for a in node.args]
            if len(found) > 1:
                yield found[0], found[1]


def test_who_reads_both_splits_stands_in_the_table():
    for module, source in modules():
        listed = {corpus for corpus, reader in READS_BOTH if reader == module}
        for corpus, split in reads(module, source):
            if split == "all":
                assert listed if corpus is None else corpus in listed, f"{module} reads all of {corpus}"


def test_trainings_read_only_what_is_for_training():
    for module, source in modules():
        if ".training" in module or module == "mintage.cli.train":
            assert {split for _, split in reads(module, source)} <= {"train"}, module


WAITING = {
    "mintage.retrofit.training.composer",
    "mintage.retrofit.training.zett",
    "mintage.studies.dynamic_tokens",
    "mintage.studies.exact_bytes",
    "mintage.studies.zett",
}
"""Modules that still open a corpus themselves. The set may only shrink."""


def test_nobody_else_opens_a_corpus():
    marks = ("_parallel.jsonl", "xquad.jsonl", "long_docs.jsonl", "wikitext2_", "gsm8k.jsonl", "humaneval.jsonl")
    marks += ("sts.jsonl", "udhr.jsonl", "morph_segmentation.jsonl", "spec_bench.jsonl", 'get_path("stdlib")')
    marks += ("genomes.fa", "dna_tasks.jsonl")
    marks += ('get_paths()["stdlib"]',)
    opening = {module for module, source in modules() if any(mark in source for mark in marks)}
    assert opening <= WAITING, f"these open a corpus; use mintage.data.texts: {sorted(opening - WAITING)}"


def test_the_table_names_corpora_and_modules_that_there_are():
    there = {module for module, _ in modules()}
    for corpus, reader in READS_BOTH:
        assert corpus in CORPORA
        assert reader in there
