"""HAT's connectors against an independent reference in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mintage.errors import UserError
from mintage.lm.core.connectors import DecoderConnector, EncoderConnector

VECTORS = Path(__file__).parents[1] / "vectors" / "hat"


@pytest.fixture(params=["connectors", "single_byte_word"])
def case(request):
    return {
        key: torch.from_numpy(np.asarray(value)) for key, value in np.load(VECTORS / f"{request.param}.npz").items()
    }


def sizes(case):
    narrow, width = case["byte_states"].shape[1], case["latent_query"].shape[0]
    return narrow, width, int(case["heads"]), int(case["kv_heads"])


def encoder(case, **changed):
    made = EncoderConnector(
        *sizes(case), head_norm=bool(case["qk_norm"]), eps=float(case["eps"]), theta=float(case["rope_theta"])
    ).double()
    held = {f"{name}.weight": case[f"enc_{name}"] for name in "qkvo"} | {"latent": case["latent_query"]}
    if case["qk_norm"]:
        held |= {"query_norm.weight": case["enc_nq"], "key_norm.weight": case["enc_nk"]}
    made.load_state_dict(held | changed)
    return made


def pooled(made, states, lengths):
    places = torch.arange(len(states)), torch.arange(len(lengths))
    return made(states, lengths, *places)


def test_words_are_pooled_as_the_reference_does(case):
    found = pooled(encoder(case), case["byte_states"], case["word_lengths"])
    assert torch.allclose(found, case["word_embeddings"], atol=1e-6)


def test_what_is_said_of_words_reaches_their_bytes_as_the_reference_does(case):
    made = DecoderConnector(*sizes(case), eps=float(case["eps"])).double()
    made.load_state_dict({"v.weight": case["dec_v"], "o.weight": case["dec_o"], "norm.weight": case["kv_norm"]})
    said = torch.cat([case["first_word_embedding"][None], case["backbone_out"][:-1]])
    assert torch.equal(said, case["predictive_embeddings"])
    lengths = case["word_lengths"]
    found = made(case["byte_states"], said, torch.arange(len(lengths)).repeat_interleave(lengths))
    assert torch.allclose(found, case["decoder_states"], atol=1e-6)


@pytest.mark.parametrize(("key_heads", "head_norm"), [(4, False), (2, True), (1, True)])
def test_pooling_is_attention_of_torch_word_by_word(key_heads, head_norm):
    torch.manual_seed(0)
    made = EncoderConnector(12, 16, 4, key_heads, head_norm).double()
    torch.nn.init.normal_(made.latent)
    states, lengths = torch.randn(9, 12, dtype=torch.double), torch.tensor([2, 1, 6])
    found = pooled(made, states, lengths)

    def turned(x, place):  # as complex numbers: pairs turn by place / theta^(2i/size)
        angle = place * 10_000.0 ** (-torch.arange(2, dtype=torch.double) / 2)
        z = torch.complex(x[..., :2], x[..., 2:]) * torch.polar(torch.ones(2, dtype=torch.double), angle)
        return torch.cat([z.real, z.imag], -1)

    start = 0
    for number, length in enumerate(lengths.tolist()):
        mine = range(start, start + length)
        query = turned(made.query_norm(made.q(made.latent).view(4, 4)), number)
        keys = torch.stack([turned(made.key_norm(made.k(states[i]).view(-1, 4)), i) for i in mine], 1)
        values = torch.stack([made.v(states[i]).view(-1, 4) for i in mine], 1)
        keys, values = (x.repeat_interleave(4 // key_heads, 0) for x in (keys, values))
        out = torch.nn.functional.scaled_dot_product_attention(query[:, None], keys, values)
        assert torch.allclose(found[number], made.o(out.flatten()), atol=1e-9)
        start += length


def test_a_word_is_pooled_from_its_own_bytes_and_no_scores_are_too_high():
    torch.manual_seed(0)
    made = EncoderConnector(12, 16, 4, 2).double()
    torch.nn.init.normal_(made.latent, std=1e4)
    states, lengths = torch.randn(5, 12, dtype=torch.double), torch.tensor([2, 3])
    before = pooled(made, states, lengths)
    states[3] += 1
    after = pooled(made, states, lengths)
    assert before.isfinite().all()
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


@pytest.mark.parametrize("kind", [EncoderConnector, DecoderConnector])
def test_heads_that_do_not_divide_are_told(kind):
    for wrong in ((12, 16, 3, 1), (12, 12, 4, 4), (12, 16, 4, 3)):
        with pytest.raises(UserError) as told:
            kind(*wrong)
        assert "\n" not in str(told.value)
