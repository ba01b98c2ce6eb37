"""The bench of drafters on a tiny model: what it measures, what it claims, and what it draws."""

import copy
import itertools
import json
import re
import shutil
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from mintage import catalog
from mintage.bench.draft import drafting
from mintage.bench.draft import rows as row_room
from mintage.bench.draft.arm import Arm
from mintage.bench.draft.arms import (
    ASSISTED,
    ASSISTED_SAME,
    AUTO,
    COLD,
    DEFAULT,
    EVERYTHING,
    GENERATE,
    LOOKUP,
    RECYCLING,
    UNION,
    WITH_DRAFT_MODEL,
    default_arms,
    default_specs,
)
from mintage.bench.draft.figures import tree_figure
from mintage.bench.draft.joint import DraftBench
from mintage.bench.draft.rows import metric_rows
from mintage.bench.draft.run import Answer, DraftRun
from mintage.data import Prompt
from mintage.draft.core.continuations import Continuation
from mintage.draft.core.distilled import DistilledDrafter, cut_drafter, load_drafter
from mintage.draft.core.guessing import guess_accuracy, text_initialised
from mintage.draft.core.loop import Stats
from mintage.draft.core.prompt_tokens import PromptTokens, describe
from mintage.draft.core.target import Target
from mintage.errors import UserError
from mintage.measure import Figure, Result, append_results, read_results
from mintage.measure.study import run_study
from mintage.models import CausalLM, load_causal_lm
from mintage.studies.spectr import MANY

RSD = "rsd:width=2,depth=2"
SPECS = [RECYCLING, COLD, "prompt-lookup", UNION, RSD]
NEW = 12
MODELLED = "modelled speed over generate, this machine's latency curve"
OFFLOADED = "modelled speed over generate, weights offloaded over 16 GB/s"
TEXTS = {
    "chat": "Tell me about tides.",
    "code": "def f(x): return x",
    "summarise": "Sum up: the tide, the tide, the tide.",
}


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINTAGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory):
    def write(*categories):
        path = tmp_path_factory.mktemp("prompts") / "mine.jsonl"
        rows = [{"id": f"{c}-{i}", "category": c, "prompt": f"{TEXTS[c]} {i}"} for i in range(2) for c in categories]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture(scope="module")
def lm(tiny_folder):
    return load_causal_lm(tiny_folder, dtype="float32")


@pytest.fixture(scope="module")
def given(tiny_folder, prompt_file, tmp_path_factory):
    """Make the settings of a bench or a study; answers of unfinished runs go to a folder of the tests."""

    def make(categories=tuple(TEXTS), **settings):
        files = {"model": tiny_folder, "prompts": prompt_file(*categories)}
        return {**files, "limit": 0, "dtype": "float32", "max_new_tokens": NEW} | settings

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("work"))
        yield make


@pytest.fixture(scope="module")
def measure(given):
    def go(methods, *, progress=lambda *_: None, note=lambda line: None, command="", **settings):
        return DraftBench(**given(**settings)).run(methods, progress=progress, note=note, command=command)

    return go


@pytest.fixture(scope="module")
def check(given, tmp_path_factory):
    """Run the study of a method."""

    def go(method, **settings):
        study = catalog.find(method).load_study()(**given(**settings))
        return run_study(study, work=tmp_path_factory.mktemp("study"))

    return go


@pytest.fixture(scope="module")
def rows(measure):
    return measure(SPECS, seed=3, command="mintage bench ...")


def results(rows, **wanted):
    kept = [row for row in rows if isinstance(row, Result)]
    return [row for row in kept if all(getattr(row, name) == value for name, value in wanted.items())]


def claimed(rows):
    return {row.claim for row in results(rows) if row.claim}


# -- rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "arms", "baseline"),
    [
        ("tokens per target forward", [LOOKUP, ASSISTED, *SPECS], 1.0),
        ("speed over generate, median prompt", [LOOKUP, ASSISTED, *SPECS], 1.0),
        ("speed over generate, whole run", [LOOKUP, ASSISTED, *SPECS], 1.0),
        ("tokens per second", [LOOKUP, ASSISTED, *SPECS], None),
        ("outputs identical to generate", [LOOKUP, ASSISTED, *SPECS], 1.0),
        ("tree nodes per target forward", [LOOKUP, ASSISTED, *SPECS], 1.0),
        ("target GFLOPs per token", [LOOKUP, ASSISTED, *SPECS], None),
        ("draft forwards per token", [ASSISTED, RSD], {}),
        ("draft GFLOPs per token", [ASSISTED, RSD], {}),
        ("peak memory beyond the target's weights", [LOOKUP, ASSISTED, *SPECS], None),
        (MODELLED, [LOOKUP, ASSISTED, *SPECS], 1.0),
        (OFFLOADED, [LOOKUP, ASSISTED, *SPECS], 1.0),
    ],
)
def test_every_arm_has_a_row_for_every_metric(rows, metric, arms, baseline):
    found = results(rows, metric=metric, claim="")
    assert [row.method for row in found] == arms
    for row in found:
        assert row.value > 0
        assert row.interval[0] <= row.value <= row.interval[1]
        assert set(row.peers) == set(arms) - {row.method}
        if baseline == {}:
            assert row.baseline == {}
        else:
            assert set(row.baseline) == {GENERATE}
            assert baseline is None or row.baseline[GENERATE] == pytest.approx(baseline)


def test_no_other_metrics_appear(rows):
    assert len({row.metric for row in results(rows, claim="")}) == 12


def test_rows_say_what_repeats_them(rows):
    for row in results(rows):
        assert (row.job, row.seed, row.data) == ("draft", 3, "mine.jsonl")
        assert row.n == (1 if row.metric.startswith("peak memory") else 6)
        assert row.command == "mintage bench ..."
        assert row.settings == {
            "temperature": 0.0, "max_new_tokens": NEW, "dtype": "float32", "draft": "4-bit-rounded copy"
        }  # fmt: skip
        assert row.environment["torch"] == torch.__version__


def test_float32_greedy_text_is_identical_for_all_arms(rows):
    found = results(rows, metric="outputs identical to generate")
    assert {row.method: row.value for row in found} == dict.fromkeys([LOOKUP, ASSISTED, *SPECS], 1.0)


def test_rows_and_figures_come_back_from_a_file(rows, tmp_path):
    append_results(tmp_path / "draft.jsonl", rows)
    assert read_results(tmp_path) == rows


def test_drafting_costs_more_flops_per_token_and_fewer_forwards(rows):
    for row in results(rows, metric="target GFLOPs per token"):
        assert row.value >= row.baseline[GENERATE]
    hot = results(rows, metric="tokens per target forward", method=RECYCLING, claim="")[0]
    assert 1 < hot.value <= NEW


# -- claims --------------------------------------------------------------------------------------------------------


HOT = {
    "hot Token Recycling emits >= 1.7 tokens per target forward",
    "beats transformers' prompt lookup in tokens per forward on prompts that do not copy",
}
HOT_AND_COLD = HOT | {"a hot table beats a cold one"}
IDENTICAL = "output identical to plain greedy decoding on every prompt (float32)"
WITH_LOOKUP = "recycling and look-up together are faster than transformers' prompt lookup"
BEATS_A_CHAIN = "RSD-S beats a single speculative chain of the same length in tokens per forward (sampling)"


def test_claims_are_tested_where_their_arms_are_present(rows):
    assert claimed(rows) == HOT_AND_COLD | {IDENTICAL, WITH_LOOKUP}
    assert {row.method for row in results(rows) if row.claim} == {"token-recycling", "union"}


def test_a_claim_carries_its_verdict_and_number(rows):
    hot = next(row for row in results(rows) if ">= 1.7 tokens per target forward" in row.claim)
    plain = results(rows, metric="tokens per target forward", method=RECYCLING, claim="")[0]
    assert hot.value == plain.value
    assert hot.verdict == ("holds" if hot.value >= 1.7 else "does not hold")
    assert hot.baseline == {GENERATE: 1.0}
    assert RECYCLING not in hot.peers
    same = next(row for row in results(rows) if "identical to plain greedy" in row.claim)
    assert (same.value, same.verdict) == (1.0, "holds")


def test_claims_about_exact_arithmetic_need_float32(measure):
    rows = measure([RECYCLING, COLD], dtype="bfloat16", assisted=False)
    assert claimed(rows) == HOT_AND_COLD
    for row in results(rows, metric="largest logit gap at a first difference"):
        assert row.value < 0.5


def test_sampling_tests_the_claims_about_sampling_alone(measure):
    arms = ["rsd:width=2,depth=7", "speculative:length=7", RECYCLING]
    rows = measure(arms, temperature=(0.9,), assisted=False)
    assert claimed(rows) == {BEATS_A_CHAIN}
    assert not results(rows, metric="outputs identical to generate")
    assert {row.settings["temperature"] for row in results(rows)} == {0.9}


def test_a_claim_needs_the_prompts_it_is_about(measure):
    rows = measure([RECYCLING], categories=["summarise"], assisted=False)
    assert "hot Token Recycling emits >= 1.7 tokens per target forward" in claimed(rows)
    assert not any("do not copy" in claim for claim in claimed(rows))


def test_a_study_runs_the_arms_of_its_claims(check):
    rows = check(RECYCLING, max_new_tokens=4, assisted=False)
    assert {row.method for row in results(rows, claim="")} == {LOOKUP, RECYCLING, COLD, AUTO}
    fast = "faster than plain generate on this machine (tree size from the latency curve)"
    assert claimed(rows) == HOT_AND_COLD | {IDENTICAL, fast}


def test_no_names_run_the_usual_arms(measure):
    rows = measure([], max_new_tokens=4, categories=["chat"])
    assert {row.method for row in results(rows, claim="")} == {LOOKUP, ASSISTED, *DEFAULT}


# -- arms ----------------------------------------------------------------------------------------------------------


def arm(lm, name, **settings):
    return next(a for a in default_arms(lm, [] if "(" in name else [name], **settings) if a.name == name)


def test_a_cold_arm_starts_every_prompt_afresh(lm):
    ids = lm.encode(TEXTS["chat"])
    cold, hot = arm(lm, COLD, assisted=False), arm(lm, RECYCLING, assisted=False)
    first, again = (cold.decode(ids, 0.0, 48, 0)[1] for _ in range(2))
    assert (first.rounds, first.accepted) == (again.rounds, again.accepted)
    once, twice = (hot.decode(ids, 0.0, 48, 0)[1] for _ in range(2))
    assert once.rounds == first.rounds
    assert twice.rounds < once.rounds


def test_cold_arms_are_not_warmed_up_by_the_run(lm):
    seen = []
    for name in (COLD, RECYCLING):
        inner = arm(lm, name, assisted=False)

        def decode(ids, *rest, inner=inner):
            seen.append((inner.name, ids.shape[1]))
            return inner.decode(ids, *rest)

        spied = [Arm(name=inner.name, decode=decode, fresh=inner.fresh), arm(lm, GENERATE, assisted=False)]
        arms = {each.name: each for each in spied}
        DraftRun(lm, [Prompt("a", "x", ("A long enough prompt",))], arms, max_new_tokens=4).measure()
    length = lm.encode("A long enough prompt").shape[1]
    assert seen == [(COLD, length), (RECYCLING, 8), (RECYCLING, length)]


@pytest.mark.parametrize("name", [GENERATE, LOOKUP, ASSISTED])
def test_forwards_of_transformers_are_counted(lm, name):
    decoder = arm(lm, name)
    counted = []
    handle = lm.model.register_forward_hook(lambda *_: counted.append(1))
    tokens, stats = decoder.decode(lm.encode(TEXTS["summarise"]), 0.0, 16, 0)
    handle.remove()
    assert stats.new_tokens == len(tokens) == 16
    assert stats.rounds == stats.target_forwards == len(counted)
    assert stats.rounds == 16 if name == GENERATE else 1 <= stats.rounds <= 17


def test_forwards_of_the_draft_model_are_not_counted(lm):
    _, stats = arm(lm, ASSISTED_SAME, draft_model=copy.deepcopy(lm.model)).decode(lm.encode(TEXTS["chat"]), 0.0, 16, 0)
    assert stats.rounds <= 8  # a draft model that is always right


def test_what_a_models_generation_config_adds_is_the_same_for_all(save_tiny_model, tmp_path, measure):
    folder = save_tiny_model(tmp_path / "penalised")
    path = tmp_path / "penalised" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"repetition_penalty": 1.5, "top_p": 0.3, "top_k": 3}))
    rows = measure(["token-recycling:budget=4", "plain"], model=folder, assisted=False, categories=["chat"])
    assert {row.value for row in results(rows, metric="outputs identical to generate")} == {1.0}


def test_equal_seeds_give_equal_samples(measure):
    def forwards(seed):
        rows = measure(["token-recycling:budget=8"], temperature=(1.0,), seed=seed, assisted=False, categories=["chat"])
        found = results(rows, metric="tokens per target forward")
        return {row.method: row.value for row in found}

    assert forwards(1) == forwards(1)


def test_the_limit_spreads_over_categories(measure):
    rows = measure(["plain"], limit=3, max_new_tokens=2, assisted=False)
    assert {row.n for row in results(rows)} == {3, 1}
    categories = next(row for row in rows if isinstance(row, Figure) and row.name.startswith("categories"))
    assert categories.data["categories"] == sorted(TEXTS)


def test_progress_is_told_after_every_answer(measure):
    told = []
    measure(["plain"], categories=["chat"], max_new_tokens=2, progress=lambda *now: told.append(now), assisted=False)
    assert [done for _, done, _ in told] == [0, 1, 2, 3, 4, 5, 6]
    assert {of for _, _, of in told} == {6}
    assert {stage for stage, _, _ in told} == {"answers at temperature 0"}


# -- the grid ------------------------------------------------------------------------------------------------------


def test_every_temperature_is_a_run_of_its_own(measure):
    rows = measure([RECYCLING, "plain"], temperature=(0.0, 0.7), assisted=False, categories=["chat"], max_new_tokens=6)
    by_temperature = {t: [r for r in results(rows) if r.settings["temperature"] == t] for t in (0.0, 0.7)}
    assert len(by_temperature[0.0]) + len(by_temperature[0.7]) == len(results(rows))
    for found in by_temperature.values():
        assert {RECYCLING, "plain"} < {row.method for row in found}
    assert not [row for row in by_temperature[0.7] if row.metric == "outputs identical to generate"]
    figures = {row.name for row in rows if isinstance(row, Figure)}
    assert {"speed-t0-float32", "speed-t0.7-float32"} < figures
    # a hot drafter of the second run has not learned in the first
    alone = measure([RECYCLING, "plain"], temperature=(0.7,), assisted=False, categories=["chat"], max_new_tokens=6)
    (wanted,) = [r.value for r in results(alone, metric="tokens per target forward", method=RECYCLING, claim="")]
    assert [
        r.value for r in by_temperature[0.7] if r.method == RECYCLING and r.metric == "tokens per target forward"
    ] == [wanted]


@pytest.mark.parametrize(("method", "temperatures"), [("rsd", {1.0}), ("dyspec", {0.0, 1.0}), ("spectr", {1.0})])
def test_a_study_runs_at_the_temperatures_of_its_claims(check, method, temperatures):
    rows = check(method, assisted=False, categories=["chat"], max_new_tokens=3)
    assert {row.settings["temperature"] for row in results(rows) if "temperature" in row.settings} == temperatures
    kinds = {row.settings["temperature"] for row in results(rows, method=method, data="mine.jsonl") if row.claim}
    assert kinds == temperatures
    assert bool(results(rows, data="exact enumeration")) == (method != "dyspec")


def test_a_temperature_that_is_given_decides(check):
    rows = check("dyspec", temperature=(0.0,), assisted=False, categories=["chat"], max_new_tokens=3)
    assert {row.settings["temperature"] for row in results(rows)} == {0.0}
    assert [row.claim.rpartition(" ")[2] for row in results(rows, method="dyspec") if row.claim] == ["(greedy)"]


def test_numbers_of_nodes_make_a_curve(measure):
    rows = measure(["token-recycling", "rsd"], nodes=(2, 6), assisted=False, categories=["chat"])
    arms = {row.method for row in results(rows, metric="tokens per target forward", claim="")}
    assert arms == {
        LOOKUP, "token-recycling:budget=2", "token-recycling:budget=6", "rsd:branching=1x1",
        "rsd:branching=2x1x1", "rsd:width=1,depth=2", "rsd:width=2,depth=3",
    }  # fmt: skip
    (curve,) = [row for row in rows if isinstance(row, Figure) and row.name == "budget-t0-float32"]
    assert [series["name"] for series in curve.data["series"]] == ["token-recycling", "RSD-C", "RSD-S"]
    nodes = {r.method: r.value for r in results(rows, metric="tree nodes per target forward")}
    tokens = {r.method: r.value for r in results(rows, metric="tokens per target forward", claim="")}
    beam = curve.data["series"][2]
    assert beam["x"] == [nodes["rsd:width=1,depth=2"], nodes["rsd:width=2,depth=3"]]
    assert beam["y"] == [tokens["rsd:width=1,depth=2"], tokens["rsd:width=2,depth=3"]]
    assert all(n <= b + 1 for n, b in zip(beam["x"], (2, 6), strict=True))  # the root comes on top


def test_nodes_alone_take_the_usual_methods(measure):
    rows = measure([], nodes=(2,), assisted=False, categories=["chat"], max_new_tokens=3)
    assert {row.method for row in results(rows, claim="")} == {
        LOOKUP, "token-recycling:budget=2", "token-recycling:budget=2+prompt-lookup:length=2+budget=2"
    }  # fmt: skip


def test_a_draft_model_at_hand_brings_its_drafters(measure):
    rows = measure([], draft_model="rounded:8", categories=["chat"], max_new_tokens=3)
    arms = {row.method for row in results(rows, metric="tokens per target forward", claim="")}
    assert arms == {LOOKUP, ASSISTED_SAME, *DEFAULT, *WITH_DRAFT_MODEL}
    assert {row.settings["draft"] for row in results(rows)} == {"8-bit-rounded copy"}


# -- costs ---------------------------------------------------------------------------------------------------------


def test_drafting_costs_what_its_model_reads(rows):
    """The rounded copy is as large as the target, so its operations per token read are the target's."""
    (draft,) = results(rows, metric="draft GFLOPs per token", method=RSD)
    (target,) = results(rows, metric="target GFLOPs per token", method=RSD)
    (nodes,) = results(rows, metric="tree nodes per target forward", method=RSD)
    (tokens,) = results(rows, metric="tokens per target forward", method=RSD)
    per_read = target.value / (nodes.value / tokens.value)
    assert per_read == pytest.approx(target.baseline[GENERATE], rel=1e-6)
    assert 0.5 * per_read < draft.value < 3 * per_read


def test_memory_of_drafting_counts_the_draft_models_own_weights(rows, lm):
    values = {r.method: r.value for r in results(rows, metric="peak memory beyond the target's weights")}
    table = lm.model.get_input_embeddings().weight
    own = sum(p.numel() * 4 for p in lm.model.parameters()) - table.numel() * 4  # embeddings are shared
    assert values[RSD] * 1e6 > own
    assert values[ASSISTED] * 1e6 > own
    assert values["prompt-lookup"] < values[RSD]
    assert values[RECYCLING] == pytest.approx(values[COLD], rel=0.01)  # a decoder that has learned nothing, both times


def test_modelled_rows_say_so(rows):
    for metric in (MODELLED, OFFLOADED):
        for row in results(rows, metric=metric):
            assert row.note.startswith("modelled from the measured tokens, nodes and draft forwards")
            assert row.verdict == "measured"
            assert row.claim == ""
    flat = {r.method: r.value for r in results(rows, metric=OFFLOADED)}
    tokens = {r.method: r.value for r in results(rows, metric="tokens per target forward", claim="")}
    assert flat[RECYCLING] == pytest.approx(tokens[RECYCLING])  # no draft model: tokens per forward are all that counts
    assert flat[RSD] < tokens[RSD]


def test_the_link_is_an_option(measure):
    rows = measure(["plain"], link_bandwidth=32.0, assisted=False, categories=["chat"], max_new_tokens=2)
    assert [r for r in results(rows) if r.metric.endswith("over 32 GB/s")]


def test_the_limit_of_one_token_decoding(measure, monkeypatch, lm):
    monkeypatch.setattr(row_room, "_CACHED", 0)
    monkeypatch.setattr(row_room, "memory_bandwidth", lambda device: 1e9)
    rows = measure(["plain"], assisted=False, categories=["chat"], max_new_tokens=2)
    (limit,) = results(rows, method="limit of one-token decoding (memory bandwidth)")
    read = sum(p.numel() for p in lm.model.parameters()) - 256 * 32  # of the input table, one row
    assert limit.value == pytest.approx(1e9 / (4 * read))
    (plain,) = results(rows, method="plain", metric="tokens per second")
    assert limit.baseline == plain.baseline
    assert "modelled, not a decoder" in limit.note


def test_one_prompt_is_too_few_for_claims(measure):
    told = []
    rows = measure([RECYCLING], limit=1, assisted=False, max_new_tokens=3, note=told.append)
    assert claimed(rows) == set()
    assert told == ["one prompt has no interval: claims are not tested; pass --limit 2 or more"]


# -- prompt tokens -------------------------------------------------------------------------------------------------


@pytest.fixture
def shipped(lm, monkeypatch, tmp_path):
    """Prompt tokens for the tiny model in the place of those that ship."""
    random = torch.randn(3, 1, 32, generator=torch.Generator().manual_seed(0))
    tokens = PromptTokens(random, vocabulary=257, model="tiny", architecture=describe(Target(lm.model)))
    tokens.save(tmp_path / "ppd-smollm2.safetensors")
    monkeypatch.setattr("mintage.weights._ASSETS", tmp_path)
    return tokens


def test_prompt_tokens_join_where_they_fit(lm, measure, shipped):
    assert default_specs(lm, draft_model=False) == [*DEFAULT, "ppd"]
    rows = measure([], nodes=(4,), assisted=False, categories=["chat"], max_new_tokens=3)
    assert "ppd:limit=4" in {row.method for row in results(rows)}


def test_accuracy_of_prompt_tokens_is_that_of_generates_answers(lm, check, shipped):
    rows = check("ppd", categories=["chat", "code"], assisted=False)
    guesses = [row for row in results(rows) if "ahead, trained prompt tokens" in row.metric]
    assert [row.metric for row in guesses] == [
        f"top-{best} accuracy {distance} tokens ahead, trained prompt tokens" for distance in (2, 3) for best in (1, 10)
    ]
    texts = []
    for text in (f"{TEXTS[c]} {i}" for i in range(2) for c in ("chat", "code")):
        ids = lm.encode(text)
        said = lm.model.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0)[0].tolist()
        texts.append(Continuation(tuple(said), ids.shape[1]))
    target = Target(lm.model)
    ours = guess_accuracy(target, shipped, texts).numpy()
    untrained = guess_accuracy(target, text_initialised(lm), texts).numpy()
    for row, (distance, best) in zip(guesses, [(2, 1), (2, 10), (3, 1), (3, 10)], strict=True):
        assert row.value == pytest.approx(ours[distance - 2, :best].sum())
        assert row.baseline == {"untrained (from words)": pytest.approx(untrained[distance - 2, :best].sum())}
        (frequent,) = row.peers.values()
        assert 0 <= frequent <= 1
        if row.value <= max(*row.baseline.values(), frequent):
            assert row.verdict == "does not hold"  # random embeddings guess nothing
        assert row.note.startswith("96 trained numbers (S x d)")


# -- a distilled drafter -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def distilled(lm, tmp_path_factory):
    """One block of the tiny model and a head of most bytes, as a drafter's file."""
    path = tmp_path_factory.mktemp("drafter") / "drafter.safetensors"
    DistilledDrafter(cut_drafter(lm.model, [0], torch.arange(3, 240)), lm).save(path)
    return str(path)


def test_a_distilled_drafter_is_held_to_agreement_and_cost(lm, check, distilled):
    rows = check("speculative", draft_model=distilled, assisted=False, categories=["chat", "code"])
    agreement, cost = [row for row in results(rows, method="speculative") if row.claim]
    assert agreement.metric == "greedy agreement with the target"
    texts, right, repeated = [], 0, 0
    drafter = load_drafter(lm, distilled)
    for text in (f"{TEXTS[c]} {i}" for i in range(2) for c in ("chat", "code")):
        ids = lm.encode(text)
        said = lm.model.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
        texts.append((ids.shape[1], said[0].tolist()))
        guessed = drafter(input_ids=said[:, :-1]).logits[0].argmax(-1)
        right += int((guessed == said[0, 1:])[ids.shape[1] - 1 :].sum())
    total = sum(len(said) - prompt for prompt, said in texts)
    assert agreement.value == pytest.approx(right / total)
    assert agreement.verdict == ("holds" if agreement.value >= 0.6 else "does not hold")
    assert set(agreement.peers) == {"prompt-lookup", "4-bit-rounded copy"}
    successor = 0
    for i, (prompt, said) in enumerate(texts):
        others = [pair for j, (_, other) in enumerate(texts) if j != i for pair in itertools.pairwise(other)]
        for token, truth in itertools.pairwise(said[prompt - 1 :]):
            followed = Counter(later for before, later in others if before == token).most_common(1)
            successor += bool(followed) and followed[0][0] == truth
        for end in range(prompt, len(said)):  # the longest of the last 3 tokens' earlier occurrences, the latest first
            repeated += said[end] == next(
                (
                    said[at + size]
                    for size in (3, 2, 1)
                    for at in range(end - size - 1, -1, -1)
                    if said[at : at + size] == said[end - size : end]
                ),
                None,
            )
    assert agreement.baseline == {"most frequent successor": pytest.approx(successor / total)}
    assert agreement.peers["prompt-lookup"] == pytest.approx(repeated / total)
    assert (cost.metric, cost.higher_is_better, cost.baseline) == (
        "step cost relative to the target", False, {"the target": 1.0}
    )  # fmt: skip
    assert cost.verdict == ("holds" if cost.value <= 0.15 else "does not hold")
    assert cost.n == 20


def test_a_distilled_drafter_is_held_to_tokens_per_forward(measure, distilled):
    for temperature, arm in ((0.0, EVERYTHING), (1.0, MANY)):
        rows = measure([arm], draft_model=distilled, assisted=False, categories=["chat"], temperature=(temperature,))
        (claim,) = [row for row in results(rows) if "distilled" in row.claim]
        (same,) = results(rows, metric="tokens per target forward", method=arm)
        assert (claim.value, claim.settings["temperature"]) == (same.value, temperature)
        assert claim.verdict == ("holds" if same.value >= (1.8 if temperature else 2.2) else "does not hold")


def test_no_other_draft_model_is_held_to_it(check):
    rows = check("speculative", draft_model="rounded:4", assisted=False, categories=["chat"], max_new_tokens=3)
    assert results(rows, metric="tokens per target forward", method="speculative:length=7")
    assert not claimed(rows)


# -- llama.cpp -----------------------------------------------------------------------------------------------------


def test_rows_of_other_arithmetic_say_so(lm):
    prompts = [Prompt(f"p{i}", "chat", (f"{TEXTS['chat']} {i}",)) for i in range(2)]
    plain, *_ = default_arms(lm, [], assisted=False)

    def decode(ids, temperature, new, seed):
        tokens, stats = plain.decode(ids, temperature, new, seed)
        return (tokens + 1) % 257, Stats(prompt_tokens=stats.prompt_tokens, new_tokens=new, rounds=new)

    other = Arm(name="llama.cpp (Q4_1)", decode=decode, fresh=lambda: decode, note="other arithmetic")
    measured = DraftRun(lm, prompts, {arm.name: arm for arm in (plain, other)}, max_new_tokens=4)
    measured.measure()
    assert measured.same_arithmetic == [GENERATE]
    assert measured.gaps() == {}
    found = metric_rows(measured)
    assert {row.method for row in found} == {other.name}
    assert {row.note.split("; ")[-1] for row in found} == {"other arithmetic"}
    assert {row.metric for row in found} == {
        "speed over generate, median prompt", "speed over generate, whole run", "tokens per second",
        "outputs identical to generate",
    }  # fmt: skip


# -- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("methods", "settings", "line"),
    [
        (["token-recyclin"], {}, "unknown method 'token-recyclin'; did you mean 'token-recycling'"),
        (["token-recyclin cold"], {}, "unknown method 'token-recyclin'; did you mean 'token-recycling'"),
        (["plain+token-recyclin"], {}, "unknown method 'token-recyclin'; did you mean 'token-recycling'"),
        (["pitome"], {}, "pitome belongs to the reduce job"),
        (["plain"], {"max_new_tokens": 0}, "max_new_tokens=0 is out of range; pass a number at least 1"),
        (["plain"], {"temperature": (-0.5,)}, "temperature=-0.5 is out of range; pass a number at least 0"),
        (["plain"], {"temperature": (0.0, float("nan"))}, "temperature=nan is not a number"),
        (["plain"], {"limit": -1}, "limit=-1 is out of range"),
        (["plain"], {"link_bandwidth": 0.0}, "link_bandwidth=0.0 is out of range; pass a number above 0, e.g. 16.0"),
        (["plain"], {"prompts": "absent.jsonl"}, "cannot read absent.jsonl"),
        (["dyspec"], {"nodes": (0,)}, "nodes=0 is out of range; pass a number at least 1"),
        (["plain"], {"nodes": (4,)}, "plain has no shape that follows a number of nodes"),
        (["dyspec:budget=4"], {"nodes": (4,)}, "has its shape already; with --nodes give bare names"),
    ],
)
def test_mistakes_are_told_before_the_model_loads(monkeypatch, methods, settings, line):
    monkeypatch.setattr(drafting, "load_causal_lm", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(UserError, match=line):
        DraftBench(**settings).run(methods)


@pytest.mark.parametrize(
    ("methods", "line"),
    [
        (["token-recycling:budgt=3"], "token-recycling has no setting 'budgt'; did you mean 'budget'"),
        (["prompt-lookup:length=0"], "length=0 is out of range; pass a number at least 1, e.g. 10"),
    ],
)
def test_bad_settings_are_told_before_anything_is_measured(measure, methods, line):
    with pytest.raises(UserError, match=line):
        measure(methods, progress=lambda *_: pytest.fail("something was measured"))


def test_a_prompt_beyond_the_context_is_told_before_anything_is_measured(measure, save_tiny_model, tmp_path):
    folder = save_tiny_model(tmp_path / "short", positions=48)
    with pytest.raises(UserError, match=r"prompt chat-0 of \d+ tokens plus max_new_tokens=12 exceeds .* of 48"):
        measure(["plain"], model=folder, progress=lambda *_: pytest.fail("something was measured"))


# -- differences ---------------------------------------------------------------------------------------------------


def test_gaps_are_the_logits_between_the_two_choices(lm):
    prompt = Prompt("a", "chat", (TEXTS["chat"],))
    arms = {arm.name: arm for arm in default_arms(lm, ["plain"], assisted=False)}
    measured = DraftRun(lm, [prompt], arms, max_new_tokens=8)
    measured.measure()
    assert measured.gaps() == {LOOKUP: [], "plain": []}

    right = measured.measurements["plain"].answers[0].tokens
    wrong = (*right[:3], (right[3] + 1) % 257, *right[4:])
    measured.measurements["plain"].answers[0] = Answer(wrong, 1.0, Stats())
    ids = torch.cat([lm.encode(TEXTS["chat"]), torch.tensor([right[:3]])], dim=1)
    with torch.no_grad():
        logits = lm.model(ids).logits[0, -1]
    gap = float(logits[right[3]] - logits[wrong[3]])
    assert measured.gaps()["plain"] == pytest.approx([gap], rel=1e-4)
    assert gap > 0
    assert measured.identical("plain") == 0


# -- pictures ------------------------------------------------------------------------------------------------------


def test_the_figures_of_a_run(rows):
    figures = {row.name: row for row in rows if isinstance(row, Figure)}
    drawn = [name for name in SPECS if not name.endswith(" cold") and name != RSD]
    assert list(figures) == ["speed-t0-float32", "categories-t0-float32", "depth-t0-float32"] + [
        f"tree-{name}" for name in drawn
    ]
    arms = [GENERATE, LOOKUP, ASSISTED, *SPECS]
    speed = figures["speed-t0-float32"].data
    assert speed["categories"] == arms
    assert speed["series"][0]["y"][0] == 1
    categories = figures["categories-t0-float32"].data
    assert categories["categories"] == sorted(TEXTS)
    assert [series["name"] for series in categories["series"]] == arms[1:]
    for series in figures["depth-t0-float32"].data["series"]:
        assert series["name"] in SPECS
        assert all(0 <= share <= 1 for share in series["y"])


def numbered(lm):
    """The model with a tokenizer that writes ids as numbers, so that a picture can be read back."""
    tokenizer = SimpleNamespace(
        chat_template=lm.tokenizer.chat_template,
        apply_chat_template=lm.tokenizer.apply_chat_template,
        decode=lambda ids: " ".join(map(str, torch.as_tensor(ids).tolist())),
    )
    read_back = object.__new__(CausalLM)
    for name, value in (("model", lm.model), ("tokenizer", tokenizer), ("name", "tiny")):
        object.__setattr__(read_back, name, value)
    return read_back


@pytest.mark.parametrize(
    "spec",
    [
        "token-recycling",
        "token-recycling:budget=12",
        "prompt-lookup",
        "token-recycling:budget=12+prompt-lookup",
        "plain",
    ],
)
def test_the_tree_marks_the_path_that_was_accepted(lm, spec):
    prompt = Prompt("a", "chat", (TEXTS["summarise"],))
    figure = tree_figure(numbered(lm), prompt, spec, 64)
    nodes, context, emitted = figure.data["nodes"], figure.data["context"].split(), figure.data["emitted"].split()
    path = [n for n, node in enumerate(nodes) if node["accepted"]]
    assert [nodes[n]["parent"] for n in path] == [-1, *path][: len(path)]  # one chain from the context on
    assert [nodes[n]["token"] for n in path] == emitted[:-1]  # the last one is the target's own
    if spec != "plain":
        assert path

    ids = lm.encode(TEXTS["summarise"])
    said = lm.model.generate(ids, max_new_tokens=64, do_sample=False, pad_token_id=0)[0].tolist()
    assert f" {' '.join(context + emitted)} " in f" {' '.join(map(str, said))} "
    for node in nodes:  # and what was not marked would not have been said
        if node["parent"] in (-1, *path) and not node["accepted"]:
            depth = len(path[: path.index(node["parent"]) + 1]) if node["parent"] >= 0 else 0
            assert node["token"] != emitted[depth]
    told = re.search(r"(\d+) nodes scored in one forward, (\d+) accepted, (\d+) tokens emitted", figure.caption)
    assert [int(number) for number in told.groups()] == [len(nodes), len(path), len(emitted)]


def test_a_prompt_that_is_read_is_no_round(lm):
    text = "Tides come and go, and come again. " * 20  # longer than one chunk of the prompt's logits
    drawn = tree_figure(numbered(lm), Prompt("a", "chat", (text,)), "token-recycling:recycle_prompt=true", 8)
    assert len(drawn.data["nodes"]) <= 80
    assert len(drawn.data["emitted"].split()) <= 8


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on PATH")
def test_compiled_arms_run_beside_the_others_and_are_drawn(measure, monkeypatch, tmp_path):
    monkeypatch.setenv("MINTAGE_CACHE", str(tmp_path))
    rows = measure(["plain compiled", "token-recycling:budget=4 compiled"], max_new_tokens=6, assisted=False)
    same = {r.method: r.value for r in rows if isinstance(r, Result) and r.metric == "outputs identical to generate"}
    assert same["plain compiled"] == same["token-recycling:budget=4 compiled"] == 1
    assert any(isinstance(r, Figure) and r.name == "tree-token-recycling:budget=4" for r in rows)


# -- plug-ins ------------------------------------------------------------------------------------------------------


def test_a_broken_study_of_a_plug_in_is_named_and_the_others_are_tested(measure, monkeypatch):
    broken = catalog.Method(name="mine", job="draft", title="mine", study="no_such_module:Study", package="mine 1.0")
    known, told = catalog.methods("draft"), []
    monkeypatch.setattr(catalog, "methods", lambda job: [*known, broken])
    rows = measure([RECYCLING], assisted=False, max_new_tokens=3, note=told.append)
    assert claimed(rows) >= HOT
    assert len(told) == 1
    assert told[0].startswith("the claims of mine (mine 1.0) are not tested: ")
    assert "No module named 'no_such_module'" in told[0]
