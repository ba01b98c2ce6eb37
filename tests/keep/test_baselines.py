"""The policies people use today against plain loops over heads, queries and entries."""

import math

import pytest
import torch

from mintage.errors import UserError
from mintage.keep import H2O, TOVA, ExpectedAttention, Knorm, RandomEviction, SnapKV, StreamingLLM
from mintage.keep.core.evict import Budget
from mintage.keep.core.step import Geometry, Rotary, Step
from mintage.keep.core.storage import KeptLayer

HEADS, GROUPS, TOKENS, DIM = 4, 2, 30, 8


class Turning:
    def __call__(self, x, position_ids):
        angles = torch.cat((position_ids[..., None].float() * 100.0 ** (-torch.arange(0, DIM, 2) / DIM),) * 2, -1)
        return angles.cos(), angles.sin()


def read(policy, seed=0):
    """A layer that has read a prompt under `policy`, with the states it read: one sequence, heads first."""
    generator = torch.Generator().manual_seed(seed)
    query = 2 * torch.randn(1, HEADS, TOKENS, DIM, generator=generator)
    key, value = 2 * torch.randn(2, 1, GROUPS, TOKENS, DIM, generator=generator)
    layer = KeptLayer(0, policy)
    layer.geometry = Geometry("Test", 1, HEADS, GROUPS, DIM, Rotary(Turning()), "test")
    layer.position_ids = torch.arange(TOKENS)[None]
    policy.store(layer, key, value)
    step = Step(query, None, DIM**-0.5, layer.position_ids, layer.geometry, lambda: query)
    policy.settle(layer, step)
    return layer, query[0], key[0], value[0]


def weights(query, key, head, i):
    """Attention of one query of one head, by a loop."""
    group = head // (HEADS // GROUPS)
    scores = [float(query[head, i] @ key[group, j]) / math.sqrt(DIM) for j in range(i + 1)]
    top = max(scores)
    exponentials = [math.exp(s - top) for s in scores]
    return [e / sum(exponentials) for e in exponentials] + [0.0] * (TOKENS - 1 - i)


def best(scores, number, window):
    """The newest `window` tokens and the highest of the others."""
    older = sorted(range(TOKENS - window), key=lambda j: -scores[j])[: number - window]
    return sorted(older) + list(range(TOKENS - window, TOKENS))


def heads_of(group):
    return range(group * (HEADS // GROUPS), (group + 1) * (HEADS // GROUPS))


def test_streaming_llm():
    layer, *_ = read(StreamingLLM(budget=9, sinks=3, window=2))
    assert layer.positions[0].tolist() == [[0, 1, 2, *range(24, 30)]] * GROUPS


@pytest.mark.parametrize("kernel", [1, 3])
def test_snapkv(kernel):
    layer, query, key, _ = read(SnapKV(budget=12, window=4, kernel=kernel))
    for group in range(GROUPS):
        received = [
            sum(weights(query, key, h, i)[j] for h in heads_of(group) for i in range(TOKENS - 4, TOKENS))
            for j in range(TOKENS)
        ]
        half = kernel // 2
        pooled = [sum(received[max(j - half, 0) : j + half + 1]) / kernel for j in range(TOKENS)]
        assert layer.positions[0, group].tolist() == best(pooled, 12, 4)


def test_h2o():
    layer, query, key, _ = read(H2O(budget=12))
    for group in range(GROUPS):
        received = [
            sum(weights(query, key, h, i)[j] for h in heads_of(group) for i in range(TOKENS)) for j in range(TOKENS)
        ]
        assert layer.positions[0, group].tolist() == best(received, 12, 6)


def test_tova():
    layer, query, key, _ = read(TOVA(budget=12))
    last = [sum(weights(query, key, h, TOKENS - 1)[j] for h in range(HEADS)) for j in range(TOKENS)]
    assert layer.positions[0].tolist() == [best(last, 12, 1)] * GROUPS


def test_knorm():
    layer, _, key, _ = read(Knorm(budget=12))
    for group in range(GROUPS):
        norms = [-math.sqrt(sum(float(x) ** 2 for x in key[group, j])) for j in range(TOKENS)]
        assert layer.positions[0, group].tolist() == best(norms, 12, 1)


def test_expected_attention():
    """By drawing: the formula's mean of exponential scores is that of many queries turned by the mean rotation."""
    policy = ExpectedAttention(budget=12, sinks=2, future=5)
    layer, query, key, value = read(policy)
    rotary = Rotary(Turning())
    plain = rotary.undo(query[None], torch.arange(TOKENS)[None])[0, :, 2:]  # of sinks no query counts
    turns = rotary(torch.eye(DIM)[None, :, None].expand(1, DIM, 5, DIM), torch.arange(TOKENS, TOKENS + 5)[None])
    turn = turns[0].mean(1).T  # averaged over the next five places
    scores = torch.zeros(GROUPS, TOKENS)
    for group in range(GROUPS):
        for head in heads_of(group):
            mean = turn @ plain[head].mean(0)
            covariance = turn @ torch.cov(plain[head].T, correction=0) @ turn.T
            logs = [float(k @ mean) / math.sqrt(DIM) + float(k @ covariance @ k) / (2 * DIM) for k in key[group]]
            scores[group] += torch.tensor(logs).softmax(0) / (HEADS // GROUPS)
        scores[group] *= value[group].norm(dim=-1)
        scores[group, :2] = torch.inf
        assert layer.positions[0, group].tolist() == best(scores[group].tolist(), 12, 1)


def test_random_eviction():
    kept = torch.zeros(GROUPS, TOKENS)
    for seed in range(300):
        layer, *_ = read(RandomEviction(budget=12, window=4, seed=seed))
        assert torch.equal(layer.positions, read(RandomEviction(budget=12, window=4, seed=seed))[0].positions)
        kept.scatter_add_(1, layer.positions[0].long(), torch.ones(GROUPS, 12))
    assert (kept[:, -4:] == 300).all()
    share = kept[:, :-4] / 300  # 8 of 26
    assert (share - 8 / 26).abs().max() < 0.13
    assert not torch.equal(kept[0], kept[1])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: SnapKV(kernel=4),
        lambda: H2O(recent_share=1.0),
        lambda: StreamingLLM(window=0),
        lambda: TOVA(every=0),
        lambda: Knorm(budget=0),
    ],
)
def test_wrong_settings_are_told(wrong):
    with pytest.raises(UserError) as told:
        wrong()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("value", "amount", "unit"),
    [(256, 256, "tokens"), (0.25, 0.25, "share"), (1.0, 1, "share"), ("4MB", 4e6, "bytes"), ("1.5 KiB", 1536, "bytes")],
)
def test_budgets_are_read_and_written(value, amount, unit):
    budget = Budget.parse(value)
    assert (budget.amount, budget.unit) == (amount, unit)
    if unit != "bytes":
        assert str(budget) == f"{value:g}"
    else:
        assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize("value", [0, -3, 0.0, 1.5, "many", "4", "0B", "MB"])
def test_what_is_no_budget_is_told(value):
    with pytest.raises(UserError, match="budget="):
        Budget.parse(value)


def test_entries_of_a_budget():
    room = {"entry_bytes": 100, "fixed_bytes": 40, "layers": 2}
    assert Budget.parse(64).entries(1000, **room) == 64
    assert Budget.parse(0.25).entries(1001, **room) == 250
    assert Budget.parse("2000B").entries(1000, **room) == 9
