import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mintage.errors import UserError
from mintage.saliency import SaliencyDecoder, fold, load_saliency


def test_a_map_is_an_image_between_0_and_1():
    made = load_saliency()(torch.randn(2, 256, 384))
    assert made.shape == (2, 224, 224)
    assert 0 <= made.min() < made.max() <= 1
    assert load_saliency()(torch.randn(1, 64, 384), 112).shape == (1, 112, 112)


def test_the_shipped_decoder_sees_where_a_patch_lies():
    """What differs in one patch differs in the map around it, and nowhere far from it."""
    decoder, patches = load_saliency(), torch.zeros(1, 256, 384)
    other = patches.clone()
    other[0, 3 * 16 + 12] += torch.randn(384, generator=torch.Generator().manual_seed(0))
    moved = (decoder(other) - decoder(patches))[0].abs()
    row, column = divmod(int(moved.argmax()), 224)
    assert (row // 14, column // 14) == pytest.approx((3, 12), abs=1)
    assert moved[100:].max() == 0


def test_folding_a_norm_changes_nothing():
    torch.manual_seed(0)
    convolution, norm = nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1), nn.BatchNorm2d(5).eval()
    for held in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        held.data.uniform_(0.5, 2)
    x = torch.randn(2, 3, 4, 4)
    wanted = norm(convolution(x))
    weight, bias = fold(convolution.weight, convolution.bias, norm.state_dict())
    got = nn.functional.conv_transpose2d(x, weight, bias, stride=2, padding=1)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_what_is_no_decoder_is_told(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        load_saliency(tmp_path / "none.safetensors")
    save_file(SaliencyDecoder((8, 4, 4, 2)).state_dict(), tmp_path / "small.safetensors")
    with pytest.raises(UserError, match="other tensors than the saliency decoder"):
        load_saliency(tmp_path / "small.safetensors")
    with pytest.raises(UserError, match="no square grid"):
        load_saliency()(torch.zeros(1, 10, 384))
