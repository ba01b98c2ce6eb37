"""``mintage retrofit`` and ``mintage train zett`` as a user meets them."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mintage.models import load_causal_lm


@pytest.fixture(autouse=True)
def _own_room(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def target(tmp_path):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({n: i for i, n in enumerate([*letters, "th", "the"])}, [("t", "h"), ("th", "e")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.save(str(tmp_path / "tokenizer.json"))
    return "tokenizer.json"


def test_transfer_writes_an_ordinary_folder(mintage, target, tiny_folder, tmp_path):
    status, out, _ = mintage(
        "retrofit", "transfer", "--model", tiny_folder, "--tokenizer", target, "--method", "fvt", "-o", "new"
    )
    assert status == 0
    assert "259 tokens" in out
    assert "256 copied" in out
    lm = load_causal_lm(str(tmp_path / "new"))
    assert lm.model.config.vocab_size == len(lm.tokenizer) == 259
    assert len(lm.tokenizer("the")["input_ids"]) == 1
    status, _, err = mintage(
        "retrofit", "transfer", "--model", tiny_folder, "--tokenizer", target, "--method", "fvt", "-o", "new"
    )
    assert status == 2
    assert "new is not empty" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--method", "focus"), "pass texts of the new kind"),
        (("--method", "token-recycling"), "token-recycling"),
        (("--method", "zett"), "were trained for|does not exist"),
        (("--method", "zett:weights=nowhere.safetensors"), "nowhere.safetensors does not exist"),
    ],
)
def test_mistakes_are_one_line(mintage, target, tiny_folder, arguments, told):
    import re

    status, _, err = mintage(
        "retrofit", "transfer", "--model", tiny_folder, "--tokenizer", target, "-o", "new", *arguments
    )
    assert status == 2
    assert re.search(told, err)
    assert err.count("mintage:") == 1


def test_train_zett_writes_a_hypernetwork_that_transfer_takes(mintage, target, save_tiny_model, tmp_path):
    from transformers import AutoTokenizer

    folder = save_tiny_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "<pad>"
    tokenizer.save_pretrained(folder)
    (tmp_path / "text.txt").write_text("the cat and the hat and the other thing\n" * 20, encoding="utf-8")
    common = ("--steps", 2, "--rows", 2, "--tokens", 24, "--size", 300, "--hidden", 32)
    status, out, err = mintage("train", "zett", "text.txt", "--model", folder, "-o", "net.safetensors", *common)
    assert status == 0, err
    assert "wrote net.safetensors" in out
    spec = "zett:weights=net.safetensors"
    status, out, err = mintage(
        "retrofit", "transfer", "--model", folder, "--tokenizer", target, "--method", spec, "-o", "new"
    )
    assert status == 0, err
    assert "wrote new" in out
