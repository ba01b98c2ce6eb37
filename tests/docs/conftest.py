"""A desk to try the pages at: what a reader brings, and what is not shipped, made up and small."""

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from toys_retrofit import save_word_model

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "my_tokens"
PROMPTS = [f"Tell me about tides, rivers and number {number}." for number in range(3)]
GERMAN = "Die Wasser-Straße führt zur Wasserstraße am Fluss. Das Haus-Dach deckt das Hausdach.\n" * 40


@pytest.fixture(scope="session")
def desk(tmp_path_factory):
    """A folder with all files that commands of the pages name; its ``data`` stands for what is not shipped."""
    desk = tmp_path_factory.mktemp("desk")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}  # what the native step can run
    for seed, name in enumerate(("my-model", "small")):
        save_word_model(desk / name, seed=seed, **sizes)
        (desk / name / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    prompts = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS)
    for name in ("mine.jsonl", "yours.jsonl"):
        (desk / name).write_text(prompts)
    for folder in ("corpus", "notes", "src", "docs", "tests"):
        (desk / folder).mkdir()
    for name in (
        "notes/a.txt",
        "src/a.py",
        "docs/a.md",
        "tests/a.py",
        "german.txt",
        "chemistry.txt",
        "mine.txt",
        "corpus/a.txt",
    ):
        (desk / name).write_text(GERMAN, encoding="utf-8")
    bases = "".join(random.Random(0).choices("ACGT", k=5000))
    (desk / "genomes").mkdir()
    (desk / "genomes" / "one.fa").write_text(f">one\n{bases}\n")
    _write_byt5(desk / "byt5-small")
    _write_tokenizers(desk / "lists")
    _write_classifier(desk / "my-vit", ("cat", "dog"), layers=16)
    _write_classifier(desk / "facebook" / "deit-small-patch16-224", ("cat", "dog"), layers=2)
    for folder in ("photos", "folder"):
        for number in range(12):
            path = desk / folder / ("cat", "dog")[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_jpeg(number))
    _write_unshipped(desk / "data")
    return desk


@pytest.fixture
def example_installed(monkeypatch, tmp_path):
    """The package of the guide, as ``pip install -e`` leaves it."""
    from mintage import catalog

    info = tmp_path / "my_tokens-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-tokens\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[mintage.methods]\nlast-successor = my_tokens:ROW\n")
    for folder in (tmp_path, EXAMPLE):
        monkeypatch.syspath_prepend(str(folder))
    catalog._discover.cache_clear()
    yield
    catalog._discover.cache_clear()


def _jpeg(seed, side=32):
    from PIL import Image

    made = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(made, "JPEG")
    return made.getvalue()


def _write_npz(path, count, *, side=32, **arrays):
    strings = [_jpeg(seed, side) for seed in range(count)]
    offsets = np.cumsum([0, *map(len, strings)])
    np.savez(path, jpeg=np.frombuffer(b"".join(strings), np.uint8), offsets=offsets, **arrays)


def _write_classifier(folder, labels, *, layers):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    sizes = {"hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(image_size=32, patch_size=4, id2label=dict(enumerate(labels)), **sizes)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def _write_byt5(folder):
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 16, "num_layers": 5, "num_decoder_layers": 1}
    T5ForConditionalGeneration(T5Config(vocab_size=384, **sizes)).save_pretrained(folder)


def _write_tokenizers(folder):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    texts = {"gpt4o": GERMAN, "claude": " ".join(PROMPTS) * 20}
    for name, text in texts.items():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        letters = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=letters, show_progress=False)
        tokenizer.train_from_iterator([text], trainer)
        (folder / name).mkdir(parents=True)
        tokenizer.save(str(folder / name / "tokenizer.json"))


def _write_unshipped(folder):
    """Write files in the places of CIFAR-10, the ImageNet sample and the ViT-S/14."""
    from safetensors.torch import save_file
    from transformers import Dinov2Config, Dinov2Model

    from mintage.data.images import CIFAR10

    folder.mkdir()
    for name, count, tested in (("cifar10_jpeg.npz", 60, 20), ("cifar10_train_rest_jpeg.npz", 20, 0)):
        told = {"labels": np.arange(count) % 10, "is_test": np.arange(count) < tested, "classes": np.array(CIFAR10)}
        _write_npz(folder / name, count, **told)
    _write_npz(folder / "imagenet_sample_224_jpeg.npz", 4, side=224, labels=np.arange(4))
    config = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14)
    tensors = {name: t.half().contiguous() for name, t in Dinov2Model(config).state_dict().items()}
    save_file(tensors, folder / "vit_s14_dinov2_saliency_fp16.safetensors")
