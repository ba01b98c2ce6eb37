"""The hypernetwork: equal to the authors', row by row, and bound to its model."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mintage.errors import UserError
from mintage.models import tiny_causal_lm
from mintage.retrofit.core.embeddings import Parts, PartsTransfer
from mintage.retrofit.core.hypernetwork import Hypernetwork, HypernetworkShape, load_hypernetwork, scaler, surface_forms
from mintage.retrofit.core.token_bytes import TokenBytes
from mintage.retrofit.core.transfer import transfer
from mintage.retrofit.zett import Zett
from mintage.testing.retrofit import _reader, _tokenizer
from mintage.testing.settings import without_shape_checks

VECTORS = Path(__file__).parents[1] / "vectors" / "zett"


@pytest.fixture(scope="module")
def held():
    return np.load(VECTORS / "hypernet_forward.npz")


def _authors(held):
    width, hidden, inner, layers, heads, length, size, fallback, untied, pad = map(int, held["config"])
    weights = {name[2:]: torch.from_numpy(held[name]) for name in held.files if name.startswith("w.")}
    net = Hypernetwork.from_official(weights, vocabulary=size, heads=heads, length=length)
    assert asdict(net.shape) == {
        "vocabulary": size,
        "width": width,
        "tied": not untied,
        "hidden": hidden,
        "inner": inner,
        "layers": layers,
        "heads": heads,
        "length": length,
        "fallback": fallback,
        "residual": "none",
    }
    surface = torch.from_numpy(held["surface_forms"])
    surface = torch.where(surface == pad, net.pad, surface)
    return net, surface, torch.from_numpy(held["source_embeddings"])


@pytest.fixture(scope="module")
def source():
    lm = _reader(tie_word_embeddings=True)
    return Parts(lm.model, TokenBytes(lm.tokenizer))


def _net(source, seed=0, **settings):
    torch.manual_seed(seed)
    sizes = {"vocabulary": len(source.input), "width": 32, "hidden": 16, "inner": 16, "layers": 2, "heads": 2}
    shape = HypernetworkShape(**sizes | settings)
    net = Hypernetwork(shape)
    for head in (net.output_projection, net.output_projection_out):
        if head is not None:
            torch.nn.init.normal_(head[1].weight, std=0.1)
    return net.eval().requires_grad_(False)


def test_equals_the_authors_network(held):
    net, surface, embeddings = _authors(held)
    with torch.no_grad():
        made = net(surface, embeddings)
    for mine, theirs in zip(made, ("pred_in", "pred_out", "pred_bias"), strict=True):
        assert np.abs(mine.numpy() - held[theirs]).max() < 1e-4, theirs


def test_padding_and_other_tokens_change_nothing(held):
    net, surface, embeddings = _authors(held)
    wider = torch.cat([surface, torch.full((len(surface), 2), net.pad)], 1)
    with torch.no_grad():
        whole = net(surface, embeddings)
        assert torch.allclose(net(wider, embeddings).input, whole.input, atol=1e-6)
        for row in range(len(surface)):
            alone = net(surface[row : row + 1], embeddings)
            assert torch.allclose(alone.output[0], whole.output[row], atol=1e-6)


@pytest.mark.parametrize(("tied", "layers", "heads"), [(True, 1, 1), (True, 3, 4), (False, 2, 8), (False, 1, 2)])
def test_any_shape_in_groups_equals_padded_with_a_mask(tied, layers, heads):
    """Tokens are read in groups of as many parts; the authors read all of them padded, with an attention mask."""
    torch.manual_seed(0)
    shape = HypernetworkShape(
        vocabulary=30,
        width=12,
        tied=tied,
        hidden=16,
        inner=24,
        layers=layers,
        heads=heads,
        length=5,
        fallback=2,
        residual="none",
    )
    net, read = Hypernetwork(shape).eval(), torch.randn(30, 12 * (1 if tied else 2))
    surface = torch.full((20, 5), 32)
    for row in range(20):
        count = 1 + row % 5
        surface[row, :count] = torch.randint(0, 32, (count,))
    with torch.no_grad():
        made = net(surface, read)
        beyond = (surface >= 30)[..., None]
        x = torch.where(beyond, net.fallback_embeddings((surface - 30).clamp(0, 1)), read[surface.clamp_max(29)])
        states = net.model(
            inputs_embeds=net.input_projection(x),
            attention_mask=(surface != 32).long(),
            position_ids=torch.arange(5).expand(20, 5),
        ).last_hidden_state[:, 0]
        assert torch.allclose(made.input, net.output_projection(states), atol=1e-5)
        head = net.output_projection if tied else net.output_projection_out
        assert torch.allclose(made.output, head(states), atol=1e-5)


def test_surface_forms_are_cut_and_padded():
    made = surface_forms([[3], [1, 2, 3, 4], []], 3, pad=9, empty=8)
    assert made.tolist() == [[3, 9, 9], [1, 2, 3], [8, 9, 9]]


def test_scaler_gives_mean_and_deviation():
    held = np.load(VECTORS / "heuristics.npz")
    factor, offset = scaler(torch.from_numpy(held["rescale_x"]), torch.from_numpy(held["rescale_target"]))
    assert np.allclose(factor, held["rescale_w"], atol=1e-8)
    assert np.allclose(offset, held["rescale_b"], atol=1e-8)


def test_an_untrained_network_is_the_mean_of_parts(source):
    tokens = [b"words", b"a", b"wo"]
    assert torch.allclose(Zett.tiny().rows(source, tokens).input, PartsTransfer().rows(source, tokens).input, atol=1e-6)


def test_only_the_first_parts_are_read(source):
    net = _net(source, length=4)
    rows = Zett(net=net).rows(source, [b"abcd", b"abcdefgh"])
    assert torch.allclose(rows.input[0], rows.input[1], atol=1e-6)


def test_a_file_gives_the_network_back(source, tmp_path):
    net = _net(source)
    net.bind(source, {"model": "tiny"}).save(tmp_path / "net.safetensors")
    again = load_hypernetwork(tmp_path / "net.safetensors", source)
    assert asdict(again.shape) == asdict(net.shape)
    one, other = (Zett(net=n).rows(source, [b"words", b"x"]).input for n in (net, again))
    assert torch.allclose(one, other, atol=5e-3)
    method = Zett(weights=str(tmp_path / "net.safetensors")).fitted(source, [], [])
    assert torch.equal(method.rows(source, [b"words"]).input, Zett(net=again).rows(source, [b"words"]).input)


def test_another_models_file_is_refused(source, tmp_path):
    path = tmp_path / "net.safetensors"
    _net(source).bind(source, {"model": "tiny"}).save(path)
    other = Parts(tiny_causal_lm(vocab_size=257, tie_word_embeddings=True, seed=1), source.vocabulary)
    with pytest.raises(UserError, match=r"\(for tiny\) were trained for other weights"):
        load_hypernetwork(path, other)
    small = Parts(tiny_causal_lm(vocab_size=300, tie_word_embeddings=True), TokenBytes(_tokenizer([])))
    with pytest.raises(UserError, match="other embeddings"):
        Zett(net=_net(source)).fitted(small, [], [])


def test_damaged_files_are_refused_in_one_line(source, tmp_path):
    path = tmp_path / "net.safetensors"
    with pytest.raises(UserError, match="does not exist"):
        load_hypernetwork(path)
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot read"):
        load_hypernetwork(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="expected 'mintage hypernetwork 2'"):
        load_hypernetwork(path)
    _net(source).bind(source, {}).save(path)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["bias_projection.bias"] = torch.tensor([float("nan")])
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(UserError, match="not finite"):
        load_hypernetwork(path)
    with pytest.raises(UserError, match="multiple of heads"):
        HypernetworkShape(vocabulary=9, width=8, hidden=10, heads=4)
    with without_shape_checks(), pytest.raises(UserError, match="residual='mode' is not one of mean, none"):
        HypernetworkShape(vocabulary=9, width=8, residual="mode")


def _published(source, **more):
    """Weights as the authors' class saves them, of a network for `source`, and their config.json."""
    net = _net(source, hidden=128, inner=32, heads=2, residual="none")
    held = {name: value.clone() for name, value in net.state_dict().items()}
    longer = torch.zeros(514, 128)
    longer[: net.shape.length + 2] = held["model.embeddings.position_embeddings.weight"]
    held |= {"model.embeddings.position_embeddings.weight": longer, "model.embeddings.position_ids": torch.arange(514)}
    held |= {"model.embeddings.word_embeddings.weight": torch.zeros(2, 128), **more}
    config = {"original_vocab_size": len(source.input), "hn_surface_maxlen": 7, "hn_num_attention_heads": 2}
    return net, held, config


def test_published_weights_are_taken_as_they_are(source):
    net, held, config = _published(source)
    tokens = [b"some", b"a", b"words and more"]
    want = Zett(net=net).rows(source, tokens).input
    for given in ((held,), (held, config)):
        made = Zett.from_official(*given).fitted(source, tokens, [])
        assert torch.allclose(made.rows(source, tokens).input, want, atol=1e-6)
        assert made.length == 7
    lm = _reader(tie_word_embeddings=True)
    assert transfer(lm.model, lm.tokenizer, _tokenizer([]), Zett.from_official(held)).report["tokens"] == 257
    with pytest.raises(UserError, match="when the model is known"):
        Zett.from_official(held).rows(source, tokens)


def test_one_published_head_for_input_and_output_is_two_here(held):
    net, surface, embeddings = _authors(held)
    weights = {name: value for name, value in net.state_dict().items() if "projection_out" not in name}
    for name in ("weight", "bias"):
        weights[f"output_projection.1.{name}"] = torch.cat([weights[f"output_projection.1.{name}"]] * 2)
    made = Hypernetwork.from_official(weights, vocabulary=20, heads=2, length=5)
    with torch.no_grad():
        both, before = made(surface, embeddings), net(surface, embeddings)
    assert torch.allclose(both.input, before.input)
    assert torch.allclose(
        (both.output - made.out_scaler.b) / made.out_scaler.w, (both.input - made.scaler.b) / made.scaler.w, atol=1e-4
    )


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda held: held.update({"lang_embeddings.weight": torch.zeros(26, 128)}), r"e\.g\. lang_embeddings\.weight"),
        (lambda held: held.pop("input_projection.1.ln.weight"), r"e\.g\. input_projection\.1\.ln\.weight"),
        (lambda held: held.pop("fallback_embeddings.weight"), "no weights of the authors' hypernetwork"),
        (lambda held: held.clear(), "no weights of the authors' hypernetwork"),
        (lambda held: held.update({"output_projection.0.dense1.weight": torch.zeros(32, 896)}), "output_projection"),
    ],
)
def test_published_weights_of_another_kind_are_one_line(source, spoil, told):
    _, held, _ = _published(source)
    spoil(held)
    with pytest.raises(UserError, match=told) as caught:
        Zett.from_official(held).fitted(source, [b"a"], [])
    assert "\n" not in str(caught.value)


def test_published_weights_of_another_model_are_told(source):
    _, held, config = _published(source)
    with pytest.raises(UserError, match="was made for other embeddings"):
        Zett.from_official(held, {**config, "original_vocab_size": 99}).fitted(source, [b"a"], [])
