"""A misspelt choice is told, whoever is asked: functions say so themselves, methods by their fields."""

import pytest
import torch

from mintage.errors import UserError
from mintage.keep.double_sparsity import calibrate_channels, channel_scores
from mintage.keep.ems import combine_scores, evict_then_merge, global_local_score
from mintage.keep.token_select import select_tokens, votes

STATES = torch.rand(1, 2, 6, 4)
SCORES = torch.rand(1, 2, 4)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: combine_scores(SCORES, SCORES, "foo"), "combine='foo' is not one of max, sum"),
        (lambda: global_local_score(STATES, STATES, 2, combine="foo"), "combine='foo' is not one of max, sum"),
        (
            lambda: evict_then_merge(STATES, STATES, SCORES, window=2, budget=4, weights="foo"),
            "weights='foo' is not one of mean, score",
        ),
        (
            lambda: evict_then_merge(STATES, STATES, SCORES, window=2, budget=4, merge="foo"),
            "merge='foo' is not one of both, values",
        ),
        (lambda: channel_scores(STATES, STATES, "foo"), "rule='foo' is not one of qk, q, k"),
        (lambda: calibrate_channels(None, [], "foo"), "rule='foo' is not one of qk, q, k"),
        (lambda: votes(SCORES, "foo"), "rule='foo' is not one of soft, hard, sum"),
        (
            lambda: select_tokens(STATES[0], STATES[0], n_init=0, n_local=1, top_k=1, vote="foo"),
            "vote='foo' is not one of soft, hard, sum",
        ),
    ],
    ids=["combine", "score", "weights", "merge", "channels", "calibrate", "votes", "select"],
)
def test_a_misspelt_choice_is_told(call, said):
    with pytest.raises(UserError, match=said):
        call()
