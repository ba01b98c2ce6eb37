"""Run by test_compiled.py."""

import pytest
import torch
import torch._dynamo
from transformers import Dinov2Config, Dinov2ForImageClassification, ViTConfig, ViTForImageClassification

from mintage.reduce import AveragePool, ClassAttention, PiToMe, RandomDrop, SelfSlimmed, Sparsifiner, ToMe

METHODS = (ToMe, PiToMe, RandomDrop, ClassAttention, AveragePool, SelfSlimmed, Sparsifiner)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
@torch.no_grad()
def test_one_graph_that_serves_every_forward(method):
    torch._dynamo.reset()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, **sizes)).eval()
    pixels = torch.randn(2, 3, 16, 16)
    plain = model(pixels).logits
    with method.tiny()(model) as session:
        wanted, tokens = model(pixels).logits, list(session.tokens)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(pixels).logits, wanted)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for _ in range(2):
                torch.testing.assert_close(compiled(pixels.flip(0)).logits, wanted.flip(0))
        assert session.tokens == tokens
        assert tokens[-1] < tokens[0] or session.reducer.attends
    assert torch.equal(model(pixels).logits, plain)


@torch.no_grad()
def test_a_model_that_is_compiled_already_is_served():
    torch._dynamo.reset()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 2, "num_labels": 5}
    model = Dinov2ForImageClassification(Dinov2Config(image_size=16, patch_size=4, **sizes)).eval()
    pixels = torch.randn(2, 3, 16, 16)
    plain = model(pixels).logits
    with ToMe.tiny()(model):
        wanted = model(pixels).logits
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(pixels).logits, plain)
    with ToMe.tiny()(compiled) as session:
        torch.testing.assert_close(compiled(pixels).logits, wanted)
        assert session.tokens == [17, 13, 9, 5]
    torch.testing.assert_close(compiled(pixels).logits, plain)


@pytest.mark.parametrize("method", [ToMe, SelfSlimmed])
@torch.no_grad()
def test_a_reduced_model_is_exported(method):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, **sizes)).eval()
    pixels = torch.randn(2, 3, 16, 16)
    with method.tiny()(model):
        wanted = model(pixels).logits
        exported = torch.export.export(model, (pixels,))
    torch.testing.assert_close(exported.module()(pixels).logits, wanted)
    torch.testing.assert_close(exported.module()(pixels.flip(0)).logits, wanted.flip(0))
