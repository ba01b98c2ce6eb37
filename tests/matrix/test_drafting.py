"""Drafting over every causal LM class of transformers: plain decoding's tokens, or a refusal in one line."""

import pytest
import torch
from served import SERVED, check, main, refusal_of, skip_if_new_and_broken

from mintage.draft import PromptLookup, TokenRecycling, generate
from mintage.errors import UserError
from mintage.testing.causal_lms import build_tiny, names

PROMPTS = ([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 1, 4, 1, 5], [2, 7, 1, 8, 2])
WIDTH = max(map(len, PROMPTS))
IDS = torch.tensor([[0] * (WIDTH - len(p)) + p for p in PROMPTS])
MASK = torch.tensor([[0] * (WIDTH - len(p)) + [1] * len(p) for p in PROMPTS])
SETTINGS = {"max_new_tokens": 14, "pad_token_id": 0, "do_sample": False}


def by_trees(model, ids, mask):
    return generate(model, ids, TokenRecycling(), attention_mask=mask, max_new_tokens=14, pad_token_id=0).sequences


def by_chains_inside_transformers(model, ids, mask):
    return model.generate(ids, attention_mask=mask, custom_generate=PromptLookup(), **SETTINGS)


def outcome_of(kind: str) -> str:
    """Return "served" if every way to draft gives plain decoding's tokens, or the refusal, the same for all ways."""
    model, found = build_tiny(kind), set()
    for ids, mask in ((IDS[:1], MASK[:1]), (IDS, MASK)):
        plain = model.generate(ids, attention_mask=mask, **SETTINGS)
        for way in (by_trees, by_chains_inside_transformers):
            try:
                assert torch.equal(way(model, ids, mask), plain), f"{way.__name__}, {len(ids)} rows"
                found.add(SERVED)
            except UserError as error:
                found.add(refusal_of(error, model))
    assert len(found) == 1, found
    return found.pop()


@pytest.mark.parametrize("kind", names())
def test_drafting_equals_plain_decoding_or_is_refused_in_one_line(kind):
    skip_if_new_and_broken(kind)
    check("drafting", kind, outcome_of(kind), "tests/matrix/test_drafting.py")


if __name__ == "__main__":
    main({"drafting": outcome_of})
