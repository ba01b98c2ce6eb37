"""Drafting inside a cache policy: the policy's own text, or a refusal that names the policy."""

import pytest
import torch

from mintage.draft import PPD, RSD, Chain, Plain, PromptLookup, SpecTr, TokenRecycling, Union, generate
from mintage.errors import UserError
from mintage.keep import EMS, H2O, DoubleSparsity, FullCache, SnapKV, StreamingLLM, TokenSelect
from mintage.models import tiny_causal_lm

SIZE = 64
IDS = torch.randint(1, SIZE, (1, 30), generator=torch.Generator().manual_seed(1))
PADDED = torch.cat([torch.zeros(1, 5, dtype=torch.long), IDS], 1)
MASK = (PADDED > 0).long()
NEW = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}

EXACT = {
    "full cache": FullCache(),
    "double sparsity": DoubleSparsity.tiny(),
    "token select": TokenSelect.tiny(),
    "an evictor with room for all": SnapKV(budget=1.0),
}
EVICTS = (SnapKV.tiny(), H2O.tiny(), StreamingLLM.tiny(), EMS.tiny())


@pytest.fixture(scope="module")
def lm():
    return tiny_causal_lm(vocab_size=SIZE, seed=3)


def drafters(lm):
    draft = tiny_causal_lm(vocab_size=SIZE, seed=3, num_hidden_layers=1)
    return {
        "nothing": Plain(),
        "trees": TokenRecycling(),
        "chains": PromptLookup(ngram=1),
        "a union": Union(drafters=(TokenRecycling(), PromptLookup(ngram=1)), budget=12),
        "a draft model": Chain(draft_model=draft),
        "siblings": RSD(draft_model=draft),
        "sequences": SpecTr(draft_model=draft, num_drafts=2, draft_len=2),
    }


@pytest.mark.parametrize("name", EXACT)
def test_a_policy_that_drops_nothing_writes_its_own_text(lm, name):
    with EXACT[name](lm):
        wanted = lm.generate(IDS, **NEW)
        for kind, drafter in drafters(lm).items():
            assert torch.equal(generate(lm, IDS, drafter, max_new_tokens=16).sequences, wanted), kind
        learned = TokenRecycling()
        assert torch.equal(lm.generate(IDS, custom_generate=learned, **NEW), wanted)
        out = generate(lm, IDS, learned, max_new_tokens=16)
        assert torch.equal(out.sequences, wanted)
        assert sum(out.stats.accepted) > 0
        padded = lm.generate(PADDED, attention_mask=MASK, **NEW)
        got = generate(lm, PADDED, TokenRecycling(), attention_mask=MASK, max_new_tokens=16).sequences
        assert torch.equal(got, padded)


def test_a_selector_reads_what_it_reads_alone(lm):
    """Or the equality above would hold whatever is selected."""
    with DoubleSparsity.tiny()(lm):
        sparse = generate(lm, IDS, TokenRecycling(), max_new_tokens=16).sequences
    assert not torch.equal(sparse, lm.generate(IDS, **NEW))


@pytest.mark.parametrize("policy", EVICTS, ids=lambda p: type(p).__name__)
def test_a_policy_that_drops_entries_is_refused_by_name(lm, policy):
    with policy(lm):
        for run in (
            lambda: generate(lm, IDS, TokenRecycling(), max_new_tokens=8),
            lambda: lm.generate(IDS, custom_generate=PromptLookup(), **NEW),
        ):
            with pytest.raises(UserError, match=f"{type(policy).__name__} drops entries of LlamaForCausalLM's cache"):
                run()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine": "native"}, "a cache policy is run by torch alone"),
        ({"compile": True}, "a cache policy is run by torch alone"),
        ({"input_ids": IDS.repeat(2, 1)}, "draft one sequence at a time, not 2"),
        ({"drafter": PPD.tiny()}, ""),
    ],
    ids=["native", "compiled", "batch", "prompt tokens"],
)
def test_what_does_not_go_with_a_policy_is_refused_in_one_line(lm, settings, said):
    given = {"input_ids": IDS, "drafter": Plain(), "max_new_tokens": 8} | settings
    with FullCache()(lm), pytest.raises(UserError) as caught:
        generate(lm, **given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_after_the_with_drafting_is_as_before(lm):
    wanted = lm.generate(IDS, **NEW)
    with DoubleSparsity.tiny()(lm):
        generate(lm, IDS, TokenRecycling(), max_new_tokens=16)
    assert torch.equal(generate(lm, IDS, TokenRecycling(), max_new_tokens=16).sequences, wanted)
