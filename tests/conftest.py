import ast
import os
import pkgutil
import re

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_configure(config):
    """Check tensor shapes at run time, in tests only: annotations of the library become assertions.

    Not in `mintage.measure`: it checks rows itself, and its tests hand it wrong types to see what it says.
    """
    from jaxtyping import install_import_hook

    import mintage

    _leave_inner_functions_alone()
    rooms = [f"mintage.{room.name}" for room in pkgutil.iter_modules(mintage.__path__) if room.name != "measure"]
    config.stash[_hook] = install_import_hook(rooms, "beartype.beartype")
    config.stash[_hook].__enter__()


def _leave_inner_functions_alone():
    """Check no functions inside functions: they would be compiled anew at every call, milliseconds in every round."""
    try:
        from jaxtyping._import_hook import JaxtypingTransformer
    except ImportError:  # another version keeps it elsewhere; tests are slower then, no less strict
        return
    visit = JaxtypingTransformer.visit_FunctionDef

    def visit_outer(self, node):
        inner = any(isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef) for parent in self._parents)
        return node if inner else visit(self, node)

    JaxtypingTransformer.visit_FunctionDef = visit_outer


def pytest_unconfigure(config):
    config.stash[_hook].__exit__(None, None, None)


OLDEST = re.compile(
    r"test_laws\.py::test_\w+\[(token-recycling|prompt-lookup|snapkv|double-sparsity|tome|sparsifiner|fvt|exact-bytes|"
    r"dynamic-tokens|bpe|needle-threading|number-tokens|word-pool|hat|mrt5|magnet|lexinvariant|btm|blt)-|"
    r"test_smollm2\.py::test_(inside|a_ragged)|lm/test_(training|joint|mrt5_training)\.py"
)
"""What ``make oldest`` runs: the laws of methods of every job that touch transformers, and the embedded model; of lm
what is trained, too."""


def pytest_collection_modifyitems(items):
    """Mark what the oldest transformers is tried on, and refuse a test whose name holds a memory address.

    The workers of xdist would collect different tests.
    """
    for item in items:
        if OLDEST.search(item.nodeid):
            item.add_marker("oldest")
    named = [item.nodeid for item in items if re.search(r" at 0x[0-9a-f]{6,}", item.nodeid)]
    if named:
        raise pytest.UsageError(f"a test is named after a memory address; give its parameters ids: {named[0]}")


_hook = pytest.StashKey()


_CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def as_users_call():
    """Without the checks of types that tests switch on: what a user is told of a wrong argument."""
    from mintage.testing.settings import without_shape_checks

    with without_shape_checks():
        yield


@pytest.fixture(scope="session")
def save_tiny_model():
    """Save a random two-layer Llama over bytes, with its tokenizer, as any Hugging Face folder; float32."""

    def save(folder, *, chat=True, seed=0, positions=4096, **settings):
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        from mintage.models import tiny_causal_lm

        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        inner = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.decoder = decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")
        tokenizer.chat_template = _CHAT if chat else None
        tokenizer.save_pretrained(folder)
        model = tiny_causal_lm(seed=seed, vocab_size=len(tokenizer), max_position_embeddings=positions, **settings)
        model.save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture(scope="session")
def tiny_folder(save_tiny_model, tmp_path_factory):
    """Path of a tiny model with a chat template; some seconds faster to load than the embedded one."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
