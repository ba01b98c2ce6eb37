import pytest
import torch
from safetensors.torch import save_file

from mintage.errors import UserError
from mintage.weights import read_weights, write_weights

FORM, AGAIN = "mintage test 1", "make it with mintage train test"


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "deep" / "made.safetensors"
    parameter = torch.nn.Parameter(torch.randn(3, 4)).T  # neither a leaf nor contiguous
    write_weights(path, FORM, {"a": parameter, "n": torch.tensor([1, 2])}, {"command": "it"})
    tensors, notes = read_weights(path, FORM, AGAIN)
    assert notes == {"command": "it"}
    assert torch.equal(tensors["a"], parameter)
    assert tensors["n"].tolist() == [1, 2]
    assert not tensors["a"].requires_grad


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "made.safetensors"
    write_weights(path, FORM, {"a": torch.ones(1)}, {})
    with pytest.raises(TypeError):
        write_weights(path, FORM, {"a": torch.zeros(1)}, {"steps": 3})  # type: ignore[dict-item]
    assert read_weights(path, FORM, AGAIN).tensors["a"].item() == 1
    assert [file.name for file in tmp_path.iterdir()] == ["made.safetensors"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "cannot read"),
        (lambda path: path.write_bytes(b"\x80\x04not tensors"), "cannot read"),
        (lambda path: path.write_bytes(b""), "cannot read"),
        (lambda path: save_file({"a": torch.ones(1)}, path), "is 'no format', expected 'mintage test 1'"),
        (lambda path: write_weights(path, "other 2", {}, {}), "is 'other 2', expected 'mintage test 1'"),
        (lambda path: write_weights(path, FORM, {"b": torch.tensor([torch.nan])}, {}), "b is not finite"),
    ],
)
def test_bad_files_are_refused_in_one_line(make, said, tmp_path):
    path = tmp_path / "made.safetensors"
    make(path)
    with pytest.raises(UserError) as caught:
        read_weights(path, FORM, AGAIN)
    message = str(caught.value)
    assert said in message
    assert str(path) in message
    assert "\n" not in message
    assert message.endswith(AGAIN)
