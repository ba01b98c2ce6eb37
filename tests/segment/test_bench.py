"""The bench of tokenizers, on a small data folder of its own."""

import gzip
import json

import pytest

from mintage import catalog
from mintage.bench.segment import joint as bench
from mintage.bench.segment import table as tables
from mintage.bench.segment.joint import SegmentBench, train_arms
from mintage.bench.segment.mix import open_mix
from mintage.bench.segment.table import TokenizerTable
from mintage.errors import UserError
from mintage.measure import Figure, Result, append_results, read_results
from mintage.measure.memo import Memo
from mintage.segment.baselines import BPE, ByteLevel
from mintage.testing.segment import CORPUS

HELD = [*CORPUS[:5], "A new moon, a new sea.\n"]
PARALLEL = {"de": (["Das Wasser der See"], ["The water of the sea"]), "zh": (["潮汐"], ["The tide"])}
GOLD = {"keepers": ["keep", "er", "s"], "waters": ["water", "s"]}


def zipped(path, text):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write(text)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder of the right shape, with few lines."""
    folder = tmp_path / "data"
    folder.mkdir()
    text = "".join(CORPUS)
    zipped(folder / "wikitext2_valid.txt.gz", text * 4)
    zipped(folder / "wikitext2_test_head.txt.gz", "A head : " + text)
    rows = [
        {"lang": lang, "par": number, "context": f"{CORPUS[place]} {number}"}
        for place, lang in enumerate(("en", "de", "zh"))
        for number in range(10)
    ]
    zipped(folder / "xquad.jsonl.gz", "".join(json.dumps(row) + "\n" for row in rows))
    rows = [
        {"lang": lang, "i": i, "text": f"{text} {i}", "eng": f"The tide {i}"}
        for lang, text in (("deu", "Die Flut"), ("fin", "Vuorovesi"), ("cmn", "潮汐"))
        for i in range(6)
    ]
    zipped(folder / "tatoeba_parallel.jsonl.gz", "".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"lang": "eng", "word": word, "segments": parts} for word, parts in GOLD.items()]
    rows.append({"lang": "fra", "word": "marées", "segments": ["marée", "s"]})
    zipped(folder / "morph_segmentation.jsonl.gz", "".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("MINTAGE_DATA", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture(scope="module")
def segmenters():
    return {"bpe": BPE(vocab_size=330).train(CORPUS), "bytes": ByteLevel().train(CORPUS)}


def compare(segmenters, texts, **fields):
    return TokenizerTable(segmenters=segmenters, texts=texts, **fields).rows()


def run(specs=(), *, command="mintage bench segment", progress=lambda stage, done, of: None, **fields):
    return SegmentBench(**fields).run(specs, command=command, progress=progress)


def table(rows):
    found = {}
    for row in rows:
        if isinstance(row, Result):
            found.setdefault(row.method, {})[row.metric] = row
    return found


# -- compare ---------------------------------------------------------------------------------------------------------


def test_every_metric_of_the_issue_is_there(segmenters):
    rows = compare(segmenters, HELD, parallel={"": PARALLEL}, gold=GOLD, repeats=2, training_seconds={"bpe": 1.5})
    found = table(rows)
    wanted = {
        "bytes per token", "tokens per word", "words cut", "Renyi efficiency (a=2.5)", "Shannon efficiency",
        "vocabulary size", "vocabulary used", "dead entries", "description length", "documents that come back",
        "premium, mean", "premium, worst", "premium, Gini", "morphology F1", "morphology precision",
        "morphology recall", "words cut as gold", "encode", "decode",
    }  # fmt: skip
    assert set(found["bytes"]) == wanted
    assert set(found["bpe"]) == wanted | {"training time"}
    assert found["bytes"]["bytes per token"].value == 1
    assert found["bytes"]["words cut as gold"].value == 0
    assert found["bytes"]["morphology recall"].value == 1
    assert found["bytes"]["bytes per token"].baseline == {"bpe": found["bpe"]["bytes per token"].value}
    assert found["bpe"]["bytes per token"].baseline == {}
    assert all(row.verdict == "measured" for own in found.values() for row in own.values())
    low, high = found["bpe"]["bytes per token"].interval
    assert low <= found["bpe"]["bytes per token"].value <= high


def test_figures_show_what_the_rows_say(segmenters, tmp_path):
    rows = compare(segmenters, HELD, parallel={"mine": PARALLEL}, repeats=0)
    figures = {row.name: row for row in rows if isinstance(row, Figure)}
    assert set(figures) == {"length-and-spread", "premium-mine", "token-map-bpe", "token-map-bytes"}
    assert figures["premium-mine"].data["categories"] == ["en", "de", "zh"]
    assert figures["premium-mine"].data["series"][1]["y"][0] == 1
    tokens = figures["token-map-bpe"].data["tokens"]
    assert len(tokens) == len(segmenters["bpe"].encode(tables.SENTENCE))
    assert {token["group"] for token in tokens} == {"begins a word", "goes on"}
    append_results(tmp_path / "r.jsonl", rows)  # the report reads them again
    assert len(read_results(tmp_path / "r.jsonl")) == len(rows)


def test_a_lossy_tokenizer_is_measured_and_named_lossy(segmenters):
    from tokenizers import Tokenizer, normalizers

    from mintage.segment.core.adapters import HFTokenizer

    inner = Tokenizer.from_str(segmenters["bpe"].tokenizer.to_str())
    inner.normalizer = normalizers.Lowercase()
    rows = compare({"bpe": segmenters["bpe"], "lower": HFTokenizer(inner)}, HELD, gold=GOLD, repeats=0)
    row = table(rows)["lower"]["documents that come back"]
    assert 0 < row.value < 1
    assert row.note.startswith("lossy: 'The sea, THE SEA' comes back as 'the sea, the sea'")


def test_nothing_to_compare_is_told(segmenters):
    with pytest.raises(UserError, match="no tokenizer to compare"):
        compare({}, HELD)
    with pytest.raises(UserError, match="the text is empty"):
        compare(segmenters, [""])


# -- the job -----------------------------------------------------------------------------------------------------------


def test_held_out_text_is_not_trained_on(data):
    mix = open_mix()
    trained = set(mix.train)
    assert set(mix.train.texts) == {"en", "de", "zh"}
    assert mix.train.dev.keys() == mix.train.texts.keys()
    assert set(mix.train.dev["de"]) <= trained
    for language, (own, reference) in mix.parallel["XQuAD"].items():
        assert len(own) == len(reference) == 5, language
        assert not trained & {*own, *reference}
    assert set(mix.parallel["languages not trained on"]) == {"fin"}
    assert mix.gold == GOLD
    assert len(open_mix(100).held) <= len(mix.held)


def test_the_job_measures_all_that_is_ready(data, monkeypatch):
    ready = ["bpe", "bytes", "superword-bpe", "parity-bpe"]
    methods = catalog.methods

    def some(job=None, *, role=None):
        return [m for m in methods(job, role=role) if m.job != "segment" or m.name in ready]

    monkeypatch.setattr(bench.catalog, "methods", some)
    seen = []
    rows = run(vocab_size=400, command="mine", progress=lambda *said: seen.append(said))
    found = table(rows)
    rivals = {"tiktoken (bpe's merges)", "sentencepiece bpe", "sentencepiece unigram"}
    assert rivals | set(ready) <= set(found) <= rivals | set(ready) | {"smollm2 (given)"}
    same = [found[name]["bytes per token"].value for name in ("bpe", "tiktoken (bpe's merges)")]
    assert same[0] == same[1]
    assert found["bpe"]["vocabulary size"].value <= 400
    assert found["bpe"]["training time"].value > 0
    assert "premium, mean, XQuAD" in found["bpe"]
    assert {row.command for row in rows if isinstance(row, Result)} == {"mine"}
    assert {stage for stage, *_ in seen} == {"train", "train sentencepiece", "measure", "time"}
    assert all((stage, of, of) in seen for stage, _, of in seen), "every stage ends"
    assert not (data.parent / ".mintage" / "bench-segment").exists(), "a finished run leaves nothing"


def test_sentencepiece_is_left_out_where_its_alphabet_does_not_fit(data):
    assert set(bench.given_rivals(ByteLevel().train(CORPUS), open_mix(), 270)[0]) <= {"smollm2 (given)"}


def test_a_named_baseline_stands_beside_bpe(data):
    found = table(run(["superword-bpe:chunk=50"], vocab_size=300))
    assert set(found) == {"bpe", "superword-bpe:chunk=50"}
    assert found["superword-bpe:chunk=50"]["bytes per token"].settings == {"vocab_size": 300}


def test_an_arm_that_leaves_rare_words_out_keeps_them_all_here_and_its_rows_say_so(data):
    found = table(run(["compoundpiece:decompounder=none"], vocab_size=300))
    assert found["compoundpiece:decompounder=none"]["bytes per token"].note == "min_count=1"
    assert found["bpe"]["bytes per token"].note == ""
    asked = SegmentBench(vocab_size=300, seed=5).trainer("compoundpiece:min_count=3")
    assert (asked.min_count, asked.vocab_size, asked.seed) == (3, 300, 5), "what is asked for goes before"


def test_a_killed_run_keeps_its_tokenizers(data, monkeypatch):
    mix, trainers = open_mix(), {spec: SegmentBench(vocab_size=300).trainer(spec) for spec in ("bpe", "bytes")}
    first, seconds = train_arms(trainers, mix, Memo(data / "work", {}))
    monkeypatch.setattr(BPE, "train", lambda *_, **__: pytest.fail("trained again"))
    again, known = train_arms(trainers, mix, Memo(data / "work", {}))
    assert known == seconds
    assert again["bpe"].state() == first["bpe"].state()


def test_papers_are_arms_like_others(data):
    found = table(run(["lib:epochs=3"], vocab_size=330, lines=100, seed=3))
    assert set(found) == {"bpe", "lib:epochs=3"}
    row = found["lib:epochs=3"]["bytes per token"]
    assert (row.seed, row.settings) == (3, {"vocab_size": 330, "lines": 100})
    assert set(row.baseline) == {"bpe"}


def test_another_baseline(data):
    found = table(run(["bpe"], vocab_size=300, baseline="bytes"))
    assert set(found["bpe"]["bytes per token"].baseline) == {"bytes"}


def test_a_plug_in_of_any_role_is_an_arm(data, monkeypatch):
    row = catalog.Method(name="my-bytes", job="segment", title="", entry="mintage.segment.baselines:ByteLevel")
    rows = catalog._discover()
    monkeypatch.setattr(catalog, "_discover", lambda: {**rows, "my-bytes": row})
    assert "my-bytes" in table(run(["my-bytes"], vocab_size=300))


@pytest.mark.parametrize(
    ("methods", "settings", "line"),
    [
        (["bpee"], {}, "unknown method 'bpee'; did you mean 'bpe'"),
        (["bpe"], {"vocab_size": 100}, "vocab_size=100 is out of range"),
        (["bpe:chunk=3"], {}, "bpe has no setting 'chunk'"),
        (["plain"], {}, "plain belongs to the draft job"),
        (["bytes"], {"lines": 1}, "lines=1 is out of range; pass a number at least 100"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(data, methods, settings, line):
    with pytest.raises(UserError, match=line):
        run(methods, **settings)


def test_absent_data_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("MINTAGE_DATA", str(tmp_path))
    monkeypatch.setattr("mintage.data.sets._folders", lambda: [tmp_path])  # an installed package, without a clone
    with pytest.raises(UserError, match=r"wikitext2_valid.txt.gz is not on this machine .*; run: mintage data get"):
        run(["bytes"])
