"""SuffixDecoding: the trees that suffix trees with counts would give; answers kept between requests and in files."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.draft import SuffixDecoding, generate
from mintage.draft.contract import Context
from mintage.draft.core.target import Target
from mintage.draft.core.warp import Warp
from mintage.errors import UserError
from mintage.models import tiny_causal_lm


def context_of(ids, *, prompt=None, room=10):
    ids = torch.tensor(ids)
    return Context(ids=ids, prompt_length=prompt or len(ids), room=room, warp=Warp())


def drafted(drafter, ids, **more):
    """Paths of the tree, each with its share."""
    context = context_of(ids, **more)
    drafter.begin(Target(tiny_causal_lm()), context)
    tree = drafter.propose(context)
    return [tuple(tree.tokens[tree.topology.path(node)[1:]].tolist()) for node in range(1, len(tree))]


def test_the_longest_match_is_continued():
    # 1 2 3 was followed by 7 8; 3 alone also by 9
    assert drafted(SuffixDecoding(alpha=1.0), [1, 2, 3, 7, 8, 3, 9, 3, 9, 1, 2, 3]) == [(7,), (7, 8), (7, 8, 3)]


def test_frequent_continuations_come_first():
    paths = drafted(SuffixDecoding(alpha=3.0), [5, 1, 5, 1, 5, 2, 9, 5])  # after 5: 1 twice, 2 once
    assert paths[:2] == [(1,), (1, 5)]
    assert paths[2] in {(2,), (1, 5, 1), (1, 5, 2)}


def test_nothing_seen_before_is_a_plain_step():
    assert drafted(SuffixDecoding(), [1, 2, 3]) == []


def test_a_tree_is_no_deeper_than_what_can_be_used():
    assert drafted(SuffixDecoding(), [1, 2, 3, 4, 5, 1, 2], room=1) == [(3,)]
    assert drafted(SuffixDecoding(), [1, 2, 3, 4, 5, 1, 2], room=0) == []


def naive(past, text, *, alpha, budget, longest):
    """Counts of all continuations of every suffix, by looking at every place."""
    best = (0.0, [])
    for length in range(1, min(longest, len(text)) + 1):
        suffix = text[-length:]
        ends = [i + length for i in range(len(past) - length + 1) if past[i : i + length] == suffix]
        share: dict[tuple[int, ...], float] = {(): 1.0}
        for depth in range(1, 6):
            paths = [tuple(past[e : e + depth]) for e in ends if e + depth <= len(past)]
            counts, above = Counter(paths), Counter(p[:-1] for p in paths)
            share |= {path: share[path[:-1]] * n / above[path[:-1]] for path, n in counts.items()}
        share.pop(())
        top = sorted(share.values(), reverse=True)[: min(budget, max(1, int(alpha * length)))]
        if sum(top) > best[0] + 1e-12:
            best = (sum(top), top)
    return best[1]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=30), st.integers(1, 8))
def test_shares_are_those_of_counting_every_place(ids, budget):
    drafter = SuffixDecoding(alpha=1.5, budget=budget, longest=6)
    context = context_of(ids, room=5)
    drafter.begin(Target(tiny_causal_lm()), context)
    memory = context.memory[drafter]
    memory.trust[:] = [[1.0, 1.0] for _ in memory.trust]  # shares as they are
    tree = drafter.propose(context)
    wanted = naive(ids, ids, alpha=1.5, budget=budget, longest=6)
    assert sum(tree.confidence[1:].tolist()) == pytest.approx(sum(wanted))


def test_past_answers_are_drafted_from_and_only_them():
    drafter = SuffixDecoding()
    target = Target(tiny_causal_lm())
    first = context_of([1, 2, 3, 9, 8, 7, 6], prompt=3)
    drafter.begin(target, first)
    assert drafted(drafter, [4, 9])[:2] == [(8,), (8, 7)]
    assert drafted(drafter, [4, 2]) == []  # the prompt was no answer
    assert drafted(SuffixDecoding(keep=0), [4, 9]) == []


def test_answers_do_not_run_into_each_other_and_the_oldest_are_dropped():
    drafter = SuffixDecoding(keep=6)
    target = Target(tiny_causal_lm())
    for answer in ([5, 6], [7, 8], [9, 10]):
        drafter.begin(target, context_of([1, *answer], prompt=1))
    assert drafted(drafter, [6]) == []
    assert drafted(drafter, [7]) == [(8,)]  # not 9, which another answer began with
    assert len(drafter._answers[0]) <= 6


def test_a_second_answer_to_the_same_question_takes_fewer_forwards():
    model = tiny_causal_lm()
    drafter = SuffixDecoding()
    ids = torch.tensor([[3, 5, 7, 9]])
    cold = generate(model, ids, drafter, max_new_tokens=40)
    hot = generate(model, ids, drafter, max_new_tokens=40)
    assert torch.equal(hot.sequences, cold.sequences)
    assert hot.stats.target_forwards < cold.stats.target_forwards


def test_answers_are_kept_in_a_file(tmp_path):
    drafter, again = SuffixDecoding(), SuffixDecoding()
    drafter.begin(Target(tiny_causal_lm()), context_of([1, 2, 9, 8, 7], prompt=2))
    drafter.save(tmp_path / "answers.safetensors")
    again.load(tmp_path / "answers.safetensors")
    assert drafted(again, [9]) == [(8,), (8, 7)]
    np.testing.assert_array_equal(again._answers[0][:3], [9, 8, 7])
    (tmp_path / "no.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match=r"no\.safetensors"):
        again.load(tmp_path / "no.safetensors")


@pytest.mark.parametrize(("setting", "value"), [("alpha", 0.0), ("budget", 0), ("longest", 0), ("keep", -1)])
def test_settings_out_of_range_are_refused(setting, value):
    with pytest.raises(UserError, match=f"{setting}={value}"):
        SuffixDecoding(**{setting: value})
