"""Modelled speed-ups, by hand."""

import pytest

from mintage.bench.draft.rows import drafting_seconds, modelled_speed_up, offloaded, on_this_machine, streamed_bytes
from mintage.bench.draft.run import Answer, Measurement
from mintage.draft.core.latency import LatencyCurve
from mintage.draft.core.loop import Stats
from mintage.models import tiny_causal_lm

CURVE = on_this_machine(LatencyCurve((1, 11), (1.0, 2.0)))


def measured(**stats):
    return Measurement([Answer((), 1.0, Stats(**stats))])


def test_a_forward_costs_what_the_curve_says_at_its_mean_number_of_nodes():
    assert drafting_seconds(Stats(rounds=4, tree_nodes=24), CURVE, None) == pytest.approx(4 * 1.5)


def test_a_draft_forward_costs_its_own_mean_without_the_prompt():
    stats = Stats(prompt_tokens=100, rounds=2, tree_nodes=2, draft_forwards=4, draft_tokens=124)
    assert drafting_seconds(stats, CURVE, CURVE) == pytest.approx(2 * 1.0 + 4 * 1.5)
    assert drafting_seconds(stats, CURVE, lambda tokens: 0.0) == pytest.approx(2.0)


def test_two_tokens_per_free_draft_are_twice_as_fast_where_a_forward_is_flat():
    flat = offloaded(16_000_000_000, 16e9)
    assert flat(1) == flat(64) == 1
    drafted = measured(new_tokens=20, rounds=10, tree_nodes=640)
    assert modelled_speed_up(drafted, flat, None).value == pytest.approx(2)
    assert modelled_speed_up(drafted, CURVE, None).value < 1  # 64 nodes are dear on this machine


def test_plain_decoding_is_its_own_measure():
    plain = measured(new_tokens=20, rounds=20, tree_nodes=20)
    for forward in (CURVE, offloaded(1000, 1.0)):
        assert modelled_speed_up(plain, forward, None).value == pytest.approx(1)


@pytest.mark.parametrize("tied", [True, False])
def test_an_untied_input_table_is_read_one_row_at_a_time(tied):
    model = tiny_causal_lm(tie_word_embeddings=tied)
    weights = {id(p): p.numel() * 4 for p in model.parameters()}
    table = model.get_input_embeddings().weight
    expected = sum(weights.values()) - (0 if tied else (table.shape[0] - 1) * table.shape[1] * 4)
    assert streamed_bytes(model) == expected
