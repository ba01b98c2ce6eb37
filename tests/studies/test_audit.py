"""The studies of the audits on toy inputs: rows equal those of before, killed runs go on, wrong folders are told.

Corpora are of made-up languages; where a model answers, its answers are scripted, so that numbers are those of no
machine. Units, arms, and all that rows say are real.
"""

import dataclasses
import gzip
import hashlib
import json
import random
import re

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from mintage import catalog
from mintage.audit import needle_threading
from mintage.audit.core.number_problems import length_problems
from mintage.audit.needle_threading import NeedleThreading
from mintage.bench.audit import adders, claims, controls, mixtures, token_counts
from mintage.bench.audit.adders import ARMS, END, TOKENS, Adder, Additions, addition_problems, question
from mintage.data import corpora
from mintage.errors import UserError
from mintage.measure import Result
from mintage.measure.study import Run, run_study
from mintage.studies import data_mixture
from mintage.studies import needle_threading as needle_study
from mintage.studies.data_mixture import DataMixtureStudy
from mintage.studies.needle_threading import NeedleThreadingStudy
from mintage.studies.number_tokens import NumberTokensStudy

# -- toys --------------------------------------------------------------------------------------------------------------

ALPHABETS = {
    "ar": "ابتثجحخد",
    "el": "αβγδεζηθ",
    "hi": "कखगघचछजझ",
    "ru": "абвгдежз",
    "th": "กขคงจฉชซ",
    "zh": "月亮引起潮汐海水",
}
SPOKEN = {"ar": "ara", "de": "deu", "el": "ell", "es": "spa", "hi": "hin", "ro": "ron"}
SPOKEN |= {"ru": "rus", "th": "tha", "tr": "tur", "vi": "vie", "zh": "cmn", "en": ""}
GENESIS = {"de": "german", "fi": "finnish", "fr": "french", "pt": "portuguese", "sv": "swedish"}
FOLDERS = ("", "asyncio", "email", "unittest", "xml/dom")


def lines(language, count, seed):
    """Lines of words that a language draws by its own frequencies."""
    made = random.Random(language)
    letters = ALPHABETS.get(language) or "".join(made.sample("abcdefghijklmnopqrstuvwxyz", 14))
    words = ["".join(made.choices(letters, k=made.randint(1, 7))) for _ in range(150)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    draw = random.Random(f"{language} {seed}")
    return [" ".join(draw.choices(words, weights, k=draw.randint(5, 15))) + "." for _ in range(count)]


def write(path, rows):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))


def write_corpora(folder):
    """Write what the studies read of ``$MINTAGE_DATA``."""
    write(folder / "wikitext2_valid.txt.gz", "\n".join(lines("en", 150, 1)) + "\n")
    write(folder / "wikitext2_test_head.txt.gz", "\n".join(lines("en", 50, 2)) + "\n")
    paragraphs = [
        {"lang": spoken, "par": n, "context": " ".join(lines(spoken, 6, n)), "qas": [{"question": q}]}
        for spoken in SPOKEN
        for n, q in enumerate(lines(spoken, 20, "questions"))
    ]
    write(folder / "xquad.jsonl.gz", paragraphs)
    sentences = [
        {"lang": code, "i": n, "text": text, "eng": "yes"}
        for spoken, code in SPOKEN.items()
        if code
        for n, text in enumerate([*lines(spoken, 8, "sentences"), "10 000 words"])
    ]
    write(folder / "tatoeba_parallel.jsonl.gz", sentences)
    texts = [("genesis", f"{GENESIS[one]}.txt", lines(one, 120, "genesis")) for one in GENESIS]
    texts += [("state_union", "1945.txt", lines("speech", 60, 1)), ("inaugural", "1789.txt", lines("speech", 60, 2))]
    rows = [{"corpus": corpus, "file": file, "text": "\n".join(text)} for corpus, file, text in texts]
    write(folder / "long_docs.jsonl.gz", rows)


def write_library(folder):
    """Write a library of Python."""
    draw = random.Random(0)
    names = ["value", "count", "total", "index", "name", "result", "item", "path", "line", "data"]
    for place in FOLDERS:
        (folder / place).mkdir(parents=True, exist_ok=True)
        for number in range(3):
            body = [f"def {draw.choice(names)}_{n}({draw.choice(names)}):\n    return {n}\n" for n in range(40)]
            (folder / place / f"module_{number}.py").write_text("\n".join(body))


def write_tokenizers(folder):
    """Write published tokenizers: two that cut numbers from the left, one that does not; other mixtures each."""
    numbers = [f"{n:0{width}d}" for width in (1, 2, 3) for n in range(10**width)]
    for name, languages in {"claude": ["en"], "gpt35turbo": ["en", "de"], "gpt4o": ["en", "de", "ru", "tr"]}.items():
        tokenizer = Tokenizer(models.BPE(ignore_merges=True))
        stages = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name == "claude")]
        if name != "claude":
            stages.insert(0, pre_tokenizers.Split(Regex(r"\p{N}{1,3}|[^\s\p{N}]+|\s+"), "isolated"))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(stages)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator([line for one in languages for line in lines(one, 150, "list")], trainer)
        described = json.loads(tokenizer.to_str())
        vocabulary = described["model"]["vocab"]
        for digits in numbers if name != "claude" else ():
            vocabulary.setdefault(digits, len(vocabulary))
        (folder / name).mkdir(parents=True)
        (folder / name / "tokenizer.json").write_text(json.dumps(described))


def chance(*said):
    """A number from 0 to 1 that depends on what is said, and on no machine."""
    return int.from_bytes(hashlib.sha256(repr(said).encode()).digest()[:6], "big") / 2**48


def additions(problems, arm, seed):
    """Answers to additions as a model might give them: right, off in one digit, or no number."""
    skill = {"R2L-3": 0.8, "L2R-3": 0.4, "single digits": 0.7}[arm]
    answers = []
    for problem in problems:
        right, luck = str(problem.answer), chance(problem.a, problem.b, arm, seed)
        place = int(chance("place", problem.a, problem.b, seed) * len(right))
        wrong = right[:place] + str((int(right[place]) + 1) % 10) + right[place + 1 :]
        answers.append(right if luck < skill else "?" if luck > 0.97 else wrong)
    return answers


def threads(prompt, policy):
    """Answer a question about a haystack, the more often the shorter the haystack and the thread."""
    text, question = re.search(r"(\{.*?\})(.*)", prompt, re.DOTALL).groups()
    held = json.loads(text)
    asked = [key for key in re.findall(r'"([0-9a-f-]+)"', question) if key in held]
    end, steps = asked[0], 0
    while end in held:
        end, steps = held[end], steps + 1
    name = type(policy).__name__
    luck = chance(prompt, name)
    return end if luck < 1.2 / (1 + 0.08 * len(held) + 0.4 * steps) * (0.5 + 0.5 * chance(name)) else "nothing"


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """A folder of corpora (``data``), a library of Python (``library``) and published tokenizers (``lists``)."""
    folder = tmp_path_factory.mktemp("toys")
    for name, write_part in {"data": write_corpora, "library": write_library, "lists": write_tokenizers}.items():
        (folder / name).mkdir()
        write_part(folder / name)
    return folder


@pytest.fixture
def corpus(toys, monkeypatch):
    monkeypatch.setenv("MINTAGE_DATA", str(toys / "data"))
    monkeypatch.setattr(corpora, "sysconfig", type("Paths", (), {"get_path": lambda name: str(toys / "library")}))
    return toys


def keys_of_claims(rows):
    return [row.claim for row in rows if isinstance(row, Result) and row.claim]


# -- data-mixture ------------------------------------------------------------------------------------------------------


def test_the_mixtures_are_those_of_before_and_a_killed_run_goes_on(corpus, tmp_path, monkeypatch, equal_to_golden):
    study = DataMixtureStudy(controls=3, tokenizers=corpus / "lists")
    told, whole = [], controls.audited_shifted

    def killed(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(controls, "audited_shifted", killed)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, work=tmp_path / "work", progress=lambda *step: told.append(step))
    monkeypatch.setattr(controls, "audited_shifted", whole)
    monkeypatch.setattr(controls, "audited", killed)  # what is measured is not measured again
    rows = run_study(study, work=tmp_path / "work", progress=lambda *step: told.append(step))
    equal_to_golden("data_mixture", rows, rel=1e-6)  # solvers differ by so much
    assert len(set(keys_of_claims(rows))) == 4
    assert told[-1] == ("published lists", 3, 3)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(("names", "said"), [(["claude"], "holds claude tokenizers"), ([], "holds no tokenizers")])
def test_a_folder_without_the_lists_is_told_before_anything_is_measured(corpus, tmp_path, names, said):
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text("{}")
    for study in (DataMixtureStudy, NumberTokensStudy, NeedleThreadingStudy)[: 3 if not names else 1]:
        with pytest.raises(UserError, match=said):
            run_study(study(tokenizers=tmp_path), work=tmp_path / "work", progress=lambda *step: pytest.fail("began"))


@pytest.mark.parametrize(("noise", "verdict"), [(0.002, "holds"), (0.2, "does not hold")])
def test_the_verdict_follows_the_errors(noise, verdict):
    generator = np.random.default_rng(7)
    run = Run(DataMixtureStudy(controls=12))
    truths = [generator.dirichlet(np.ones(4)) for _ in range(12)]
    near = [np.clip(truth + noise * generator.standard_normal(4), 0, 1) for truth in truths]
    errors = np.array(list(map(controls.log_error, near, truths)))
    inside = np.concatenate([abs(a - b) < 2 * noise for a, b in zip(near, truths, strict=True)])
    run.columns[data_mixture.OURS] = {"log error": errors, "inside": inside, "categories": np.full(12, 4)}
    for part, arm in data_mixture.PARTS.items():
        run.columns[arm] = {"log error": errors - np.log10(part)}
    guesses = generator.dirichlet(np.ones(4), (3, 12))
    arms = (data_mixture.EFFICIENCY, data_mixture.VOCABULARY, data_mixture.RANDOM)
    for arm, some in zip(arms, guesses, strict=True):
        run.columns[arm] = {"log error": np.array(list(map(controls.log_error, some, truths)))}
    uniform = np.array([controls.log_error(np.full(4, 0.25), truth) for truth in truths])
    run.columns[data_mixture.UNIFORM] = {"log error": uniform}
    for arm, times in ((data_mixture.SAME, 1), (data_mixture.OTHER, 11)):
        run.columns[arm] = {"log error": errors[:4], "objective": times * generator.uniform(0.05, 0.06, 4)}
    first, fall, inside, shift = (row.result(run) for row in run.study.rows(run))
    assert (first.verdict, set(first.peers)) == (verdict, set(arms))
    assert (fall.value, fall.verdict) == (pytest.approx(np.log10(16)), "holds")
    assert 0.8 < inside.value <= 1
    assert shift.rule == "at least 10"
    assert sum(1 for _ in run.study.figures(run)) == 2


def test_the_regression_learns_from_the_other_controls():
    generator = np.random.default_rng(1)
    truths = [generator.dirichlet(np.ones(4)) for _ in range(8)]
    assert (controls.regression_errors([truth**0.2 for truth in truths], truths) < -6).all()


def test_training_text_and_sample_share_no_document():
    train, sample = mixtures.halves(["a", "b", "a", "c", "d", "d"])
    assert not set(train) & set(sample)
    assert sorted(train + sample) == ["a", "b", "c", "d"]


# -- number-tokens -----------------------------------------------------------------------------------------------------


class Scripted:
    """An arm that has learnt without training."""

    def __init__(self, seed):
        self.seed = seed

    def answers(self, problems, arm):
        return additions(problems, arm, self.seed)


def test_the_additions_are_those_of_before(corpus, tmp_path, monkeypatch, equal_to_golden):
    monkeypatch.setattr(adders, "learnt", lambda arm, seed, *args: (Scripted(seed), 1000.0 * (1 + len(arm)) + seed))
    study = NumberTokensStudy(steps=40, match=40, mismatch=40, tokenizers=corpus / "lists")
    rows = run_study(study, work=tmp_path / "work")
    equal_to_golden("number_tokens", rows)
    assert [row.rule for row in rows if isinstance(row, Result) and row.claim] == [
        "at least 15 and interval above 0",
        "interval above 50",
        "",
    ]


def test_the_study_trains_resumes_and_tells_its_verdicts(tmp_path, monkeypatch):
    study, told = NumberTokensStudy(steps=2, match=3, mismatch=3), []
    whole, asked = adders.learnt, []

    def killed(arm, seed, *args):
        asked.append((arm, seed))
        if (arm, seed) == ("L2R-3", 1):
            raise KeyboardInterrupt
        return whole(arm, seed, *args)

    monkeypatch.setattr(adders, "learnt", killed)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, work=tmp_path / "work", progress=lambda *step: told.append(step))
    assert told[:3] == [("additions", 0, 9), ("R2L-3, seed 0", 1, 2), ("R2L-3, seed 0", 2, 2)]
    done = asked[:-1]
    monkeypatch.setattr(adders, "learnt", lambda *args: asked.append(args[:2]) or whole(*args))
    rows = run_study(study, work=tmp_path / "work")
    assert len(done) == 3
    assert not set(done) & set(asked[len(done) + 1 :])  # finished arms are not trained again
    claimed = [row for row in rows if isinstance(row, Result) and row.claim]
    assert [row.verdict for row in claimed] == ["does not hold"] * 2  # nothing is learnt in two steps
    names = {row.name for row in rows if not isinstance(row, Result)}
    assert names == {"number-tokens-errors", "number-tokens-accuracy"}
    tokens = next(row for row in rows if isinstance(row, Result) and row.metric == "training tokens")
    assert tokens.peers["single digits"] > 1.5 * tokens.value
    assert not (tmp_path / "work").exists()
    with pytest.raises(UserError, match="steps=0"):
        NumberTokensStudy(steps=0)


def test_arms_see_the_same_problems_and_differ_in_the_cut_alone():
    match, mismatch = addition_problems().values()
    assert (len(match), len(mismatch)) == (900, 400)
    held_out = frozenset(match + mismatch)
    modules = {arm: Adder(5) for arm in ARMS}
    recipes = {arm: Additions(module, arm, 5, held_out) for arm, module in modules.items()}
    assert len({tuple(recipe.problems(3)) for recipe in recipes.values()}) == 1
    states = [{n: t.sum().item() for n, t in m.state_dict().items()} for m in modules.values()]
    assert states[0] == states[1] == states[2]
    texts = {}
    for arm, recipe in recipes.items():
        batch = recipe.batch(3)
        rows = zip(batch["ids"].tolist(), batch["labels"].tolist(), strict=True)
        texts[arm] = []
        for ids, labels in rows:
            answer = "".join(TOKENS[i] for i in labels if i >= 0)
            asked = "".join(TOKENS[i] for i in ids[: next(p for p, i in enumerate(labels) if i >= 0) + 1])
            texts[arm].append(asked + answer)
            a, b = map(int, asked.rstrip("=").split("+"))
            assert answer == f"{a + b};"
            assert ids[-1] in (END, *range(END))
    assert texts["R2L-3"] == texts["L2R-3"] == texts["single digits"]
    assert not held_out & {p for i in range(20) for p in recipes["R2L-3"].problems(i)}


def test_greedy_answers_are_what_the_full_forward_says():
    import torch

    module = Adder(1)
    problems = length_problems(match=True, count=6, lengths=(3, 6))
    for problem, text in zip(problems, module.answers(problems, "L2R-3"), strict=True):
        ids = question(problem, "L2R-3")
        expected = ""
        for _ in range(9):
            with torch.no_grad():
                token = module.lm(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()
            if token == END:
                break
            expected += TOKENS[token]
            ids = [*ids, token]
        assert text == expected.split(";")[0]


# -- needle-threading --------------------------------------------------------------------------------------------------


@pytest.fixture
def answering(monkeypatch):
    """A tiny model whose answers are scripted."""
    tiny = dataclasses.replace(NeedleThreading.tiny_subject(), name="tiny")
    monkeypatch.setattr(needle_study, "load_causal_lm", lambda model, **settings: tiny)
    monkeypatch.setattr(needle_threading, "_window", lambda lm: None)
    monkeypatch.setattr(needle_threading, "_new_tokens", lambda lm, example: 3)
    answer = lambda self, lm, ids, new: threads(lm.tokenizer.decode(ids[0]), self.policy)  # noqa: E731
    monkeypatch.setattr(NeedleThreading, "_answer", answer)


def test_the_needles_are_those_of_before(corpus, answering, tmp_path, equal_to_golden):
    study = NeedleThreadingStudy(pairs=(4, 6, 8, 10), haystacks=3, tokenizers=corpus / "lists")
    told = []
    rows = run_study(study, work=tmp_path / "work", progress=lambda *step: told.append(step))
    equal_to_golden("needle_threading", rows)
    assert len(set(keys_of_claims(rows))) == 5
    assert told[-1][1] == told[-1][2]
    assert not (tmp_path / "work").exists()


def test_the_study_asks_a_real_model(corpus, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(needle_threading, "_window", lambda lm: None)
    monkeypatch.setattr(needle_threading, "_new_tokens", lambda lm, example: 3)
    study = NeedleThreadingStudy(model=str(tiny_folder), pairs=(4, 6), haystacks=1)
    assert len(keys_of_claims(run_study(study, work=tmp_path / "work"))) == 5


def test_one_size_is_no_comparison():
    with pytest.raises(UserError, match="pass at least two"):
        NeedleThreadingStudy(pairs=(4,))


def test_tokens_are_counted_per_text():
    counters = {"words": lambda t: len(t.split()), "bytes": len}
    per = token_counts.characters_per_token(counters, {"prose": "a bc d", "one": "abcdef"})
    assert per == {"prose": {"words": 2, "bytes": 1}, "one": {"words": 6, "bytes": 1}}
    assert token_counts.order_changes(per["prose"], per["one"]) == []
    assert token_counts.order_changes(per["prose"], {"words": 6 / 9, "bytes": 1}) == [("words", "bytes")]
    with pytest.raises(UserError, match="empty"):
        token_counts.characters_per_token({"bytes": len}, {"nothing": ""})


# -- mintage bench audit -----------------------------------------------------------------------------------------------


@pytest.fixture
def called(monkeypatch, tmp_path):
    """Claim checks that are quick, and whose calls are kept; the one called ``killed`` is killed."""
    monkeypatch.chdir(tmp_path)
    calls, killed = [], []

    def run_claims(name, settings, **told):
        if name in killed:
            raise KeyboardInterrupt
        calls.append((name, settings, told["command"]))
        row = Result(method=name, job="audit", metric="m", value=1.0, unit="x", higher_is_better=True, interval=(0, 2))
        return [row]

    monkeypatch.setattr(claims, "run_claims", run_claims)
    return calls, killed


def test_one_audit_runs_its_check(called):
    (row,) = claims.AuditBench(seed=3).run(["data-mixture"], command="c")
    assert called[0] == [("data-mixture", {"seed": 3}, "c")]
    assert (row.method, row.interval) == ("data-mixture", (0.0, 2.0))


def test_the_job_alone_runs_all_checks_and_a_killed_run_keeps_what_is_done(called):
    calls, killed = called
    names = [row.name for row in catalog.methods("audit") if row.status == "ready" and row.role == "paper"]
    killed.append(names[1])
    with pytest.raises(KeyboardInterrupt):
        claims.AuditBench().run()
    killed.clear()
    assert [row.method for row in claims.AuditBench().run()] == names
    assert [name for name, _, _ in calls] == names  # none twice
    claims.AuditBench().run(names[:1])
    assert len(calls) == len(names) + 1  # what is over is forgotten


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data-mixtur", "did you mean"),
        ("data-mixture:tol=1", "options of its own"),
        ("utf", "no claim check yet"),
        ("ems", "belongs to the keep job"),
    ],
)
def test_refused_before_anything_runs(called, name, message):
    with pytest.raises(UserError, match=message):
        claims.AuditBench().run(["data-mixture", name])
    assert called[0] == []
