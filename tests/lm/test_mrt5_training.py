"""What MrT5 is trained on, that its training goes on after a kill bit for bit, and what its command refuses."""

import json
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from mintage.errors import UserError
from mintage.lm.core.deletion import PIController
from mintage.lm.core.rewriting import rewrite
from mintage.lm.core.sampling import Sampling
from mintage.lm.core.seq2seq_tasks import PrefixTask, SpanTask, VowelTask, judge_rows, noise_spans
from mintage.lm.core.windows import Windows, byte_windows, hold_out
from mintage.lm.mrt5 import MrT5
from mintage.lm.training.mrt5 import MrT5Training
from mintage.lm.training.mrt5_recipe import SteeredDeletion
from mintage.train.training import Work

TEXT = "The sea has tides, because the moon pulls the water; das Meer auch, früh und spät.\n" * 40
SMALL = {"width": 16, "layers": 2, "decoder_layers": 1, "heads": 2, "steps": 6, "rows": 3, "window": 48, "warmup": 2}


def training(**settings):
    return MrT5Training(**SMALL | settings)


@pytest.fixture(autouse=True)
def _own_room(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def windows():
    return hold_out(byte_windows([TEXT], 64))


# -- tasks -------------------------------------------------------------------------------------------------------------


def text_of(ids):
    return bytes(int(i) - 3 for i in ids if i > 2)


def test_letters_are_written_without_their_vowels():
    batch = VowelTask(40).batch(3, 8, seed=1)
    assert batch["input_ids"].shape == (8, 40)
    for read, written, counted in zip(batch["input_ids"], batch["labels"], batch["counted"], strict=True):
        letters = text_of(read[:-1])
        assert letters.isalpha()
        assert read[-1] == 1
        kept = bytes(c for c in letters if c not in b"aeiouAEIOU")
        ids = written[written >= 0].tolist()
        assert text_of(ids[:-1]) == kept
        assert ids[-1] == 1
        assert counted.tolist() == [i < len(kept) for i in range(len(counted))]
    share = np.mean([np.isin(VowelTask(64).row(n, 0)[0] - 3, list(b"aeiouAEIOU")).mean() for n in range(300)])
    assert share == pytest.approx(10 / 52 * 63 / 64, abs=0.01)


def test_rows_of_letters_grow_and_held_out_ones_are_whole():
    task = VowelTask(40, grow=100)
    sizes = [len(task.row(number, 0)[0]) for number in (0, 50, 99, 100, 500)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-2], sizes[-1]) == (8, 40, 40)
    assert task.held_out(4, 4)[0]["input_ids"].shape == (4, 40)


def test_a_span_task_can_be_put_together_again(windows):
    """What is read, with every mark replaced by what is written behind it, is the window."""
    task = SpanTask(windows, density=0.25, span=5.0)
    for number in (0, 7, -1):
        read, written, counted = task.row(number, seed=2)
        window = task.window(number, seed=2)
        assert read[-1] == written[-1] == 1
        spans = {}
        for mark, own in zip(written[:-1], counted[:-1], strict=True):
            if own:
                spans[[*spans][-1]].append(mark - 3)
            else:
                spans[mark] = []
        assert list(spans) == [258 - i for i in range(len(spans))]
        made = [b for i in read[:-1] for b in (spans[i] if i in spans else [i - 3])]
        assert made == window.tolist()
        assert counted.sum() == round(0.25 * 64)


@pytest.mark.parametrize(("size", "density", "span"), [(1024, 0.15, 20), (64, 0.15, 20), (10, 0.5, 1), (2, 0.15, 3)])
def test_spans_have_the_density_and_number_that_t5_gives_them(size, density, span):
    for seed in range(20):
        gone = noise_spans(size, density, float(span), np.random.default_rng(seed))
        assert len(gone) == size
        assert gone.sum() == min(max(round(size * density), 1), size - 1)
        assert not gone[0]
        begins = (gone & ~np.append(False, gone[:-1])).sum()
        assert begins == max(round(min(gone.sum(), size - gone.sum()) / span), 1)


def test_a_prefix_task_reads_the_first_half_and_writes_the_second(windows):
    read, written, counted = PrefixTask(windows).row(0, seed=0)
    assert text_of(read[:-1]) + text_of(written) == bytes(PrefixTask(windows).window(0, 0))
    assert counted.all()


def test_every_window_comes_once_an_epoch_and_none_that_is_held_out(windows):
    task = PrefixTask(windows)
    count = len(windows.train)
    numbered = Windows(np.arange(count * 64, dtype=np.int64).astype(np.uint8).reshape(count, 64), windows.held_out)
    task = PrefixTask(numbered)
    first = [bytes(task.window(n, 3)) for n in range(count)]
    assert sorted(first) == sorted(map(bytes, numbered.train))
    assert [bytes(task.window(n + count, 3)) for n in range(count)] != first
    batches = task.held_out(5, 2)
    assert [len(batch["input_ids"]) for batch in batches] == [2, 2, 1]


def test_windows_with_more_spans_than_marks_are_refused():
    with pytest.raises(UserError, match="more than 100 spans"):
        SpanTask(Windows(np.zeros((2, 20_000), np.uint8), np.zeros((1, 20_000), np.uint8)))


def test_rows_are_judged_as_greedy_decoding_writes_them(windows):
    model = MrT5.tiny()
    found = judge_rows(model, VowelTask(12).held_out(6, 3))
    assert found.size.sum() == sum(batch["counted"].sum() for batch in VowelTask(12).held_out(6, 3))
    assert (found.bits > 0).all()
    assert 0 < found.deleted.sum() < found.read.sum()
    (batch,) = VowelTask(12).held_out(2, 2)
    written = model.generate(batch["input_ids"], max_new_tokens=3)[:, 1:]
    batch["labels"] = torch.where(torch.arange(3) < 3, written, -100)
    batch["counted"] = torch.ones_like(batch["labels"], dtype=torch.bool)
    assert judge_rows(model, [batch]).right.tolist() == [1, 1]
    batch["labels"][1, 2] += 1
    assert judge_rows(model, [batch]).right.tolist() == [1, 0]


# -- the training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["vowels", "spans", "prefix"])
def test_the_command_writes_a_model_that_auto_classes_load(task, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    texts = () if task == "vowels" else ("text.txt",)
    made = training(task=task, texts=texts)
    trained = made.run("out", command="mintage train mrt5")
    assert "of the bytes deleted" in made.summary(trained)
    loaded = AutoModelForSeq2SeqLM.from_pretrained("out")
    assert type(loaded) is MrT5
    assert loaded.config.notes["command"] == "mintage train mrt5"
    assert loaded.config.held_out == trained.config.held_out
    assert 0 < loaded.config.held_out["bits_per_byte"] < 20
    rows = [json.loads(line) for line in Path(".mintage/mrt5/training/log.jsonl").read_text().splitlines()]
    assert {"cross_entropy", "deleted", "alpha"} <= rows[-1].keys()


def test_what_was_trained_writes_from_the_command_line(capfd, monkeypatch):
    from mintage.cli import main

    MrT5.tiny().save("model", {})
    wanted = rewrite(MrT5.from_pretrained("model"), "The sea", Sampling(max_new_tokens=6))
    for options in ([], ["-t", "0.9", "--seed", "3"], ["-t", "0.9", "--seed", "3"]):
        arguments = ["mintage", "generate", "The sea", "--model", "model", "-n", "6", *options]
        monkeypatch.setattr(sys, "argv", arguments)
        with suppress(SystemExit):
            main()
        found = capfd.readouterr()
        assert "bytes/s" in found.err, found.err
        assert options or found.out == wanted.decode(errors="replace") + "\n"
    with pytest.raises(UserError, match="max_new_tokens=0"):
        rewrite(MrT5.tiny(), b"a", Sampling(max_new_tokens=0))
    drawn = [rewrite(MrT5.tiny(), b"\xff a", Sampling(do_sample=True, seed=s, max_new_tokens=9)) for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("hard", [0.0, 0.5], ids=["soft", "sometimes hard"])
def test_a_killed_training_goes_on_bit_for_bit(hard, tmp_path, monkeypatch):
    made = training(task="vowels", steps=8, hard=hard, ki=1e-2, delay=2)
    whole = made.learn(Work(tmp_path / "whole"))
    from mintage.lm.training import mrt5

    settings = replace(made.loop_settings(), save_every=3)
    monkeypatch.setattr(mrt5.MrT5Training, "loop_settings", lambda self: settings)

    def killed(stage, done, of):
        if done == 5 * 3 * 48:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.learn(Work(tmp_path / "killed", progress=killed))
    again = made.learn(Work(tmp_path / "killed"))
    for (name, wanted), found in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(wanted, found), name
    assert whole.config.held_out == again.config.held_out


def test_a_gate_loss_waits_for_its_delay():
    model, controller = MrT5.tiny().train(), PIController(0.5)
    steered = SteeredDeletion(model, controller, 0.0, delay=2)
    batch = VowelTask(16).batch(0, 2, 0)
    alphas = [steered(batch["input_ids"], batch["labels"])[1]["alpha"] for _ in range(5)]
    assert alphas[:3] == [0, 0, 0]  # the third counts with the weight from before the controller's first step
    assert controller.integral.item() != 0
    fixed = SteeredDeletion(model, None, 0.25, delay=1)
    assert [fixed(batch["input_ids"], batch["labels"])[1]["alpha"] for _ in range(3)] == [0, 0.25, 0.25]


@pytest.mark.parametrize("gate", ["random", "fixed", "none"])
def test_rivals_train_alike(gate, tmp_path):
    made = training(task="vowels", gate=gate, deletion=0.4)
    found = made.learn(Work(tmp_path))
    assert found.config.deletion_type == gate
    assert (found.config.held_out["deleted"] > 0) == (gate != "none")
    mine = training(task="vowels").build().state_dict()
    assert [name for name in mine if name not in found.state_dict()] == [
        f"encoder.block.1.delete_gate.{part}"
        for part in ("layer_norm.weight", "feed_forward.weight", "feed_forward.bias")
    ]


def test_training_goes_on_from_a_byt5_folder(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 384, "d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 32, "num_layers": 8}
    T5ForConditionalGeneration(T5Config(**sizes, num_decoder_layers=1)).save_pretrained("byt5")
    made = MrT5Training(task="vowels", model="byt5", steps=2, rows=2, window=16)
    found = made.run("out")
    assert found.config.delete_gate_layer == 2
    assert found.config.scores_loss_coeff == 0
    again = MrT5Training(task="vowels", model="out", steps=2, rows=2, window=16, deletion=0.7).run("more", "work")
    assert len(again.encoder.block) == 8


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"deletion": 1.0}, r"deletion=1.0 is out of range; pass a number in \(0, 1\)"),
        ({"deletion": 0.0}, "deletion=0.0 is out of range"),
        ({"gate": "learnt"}, "gate='learnt' is not one of"),
        ({"model": "byt5"}, "width=16, but byt5 has its own sizes"),
        ({"task": "vowels", "texts": ("a.txt",)}, "reads no text; leave out a.txt"),
        ({"delay": 6}, "delay=6 leaves none of the 6 steps"),
        ({"window": 4}, "window=4 is out of range"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_are_one_line(settings, said, as_users_call):
    with pytest.raises(UserError, match=said):
        training(**settings)


def test_what_cannot_be_trained_is_one_line(tmp_path):
    with pytest.raises(UserError, match="delete_gate_layer=2 is no block"):
        training(task="vowels", gate_layer=2).run("out")
    with pytest.raises(UserError, match="heads=3 does not divide width=16"):
        training(task="vowels", heads=3).run("out")
    Path("text.txt").write_text("short")
    with pytest.raises(UserError, match="less than one window"):
        training(texts=("text.txt",)).run("out")
    Path("other").mkdir()
    Path("other/file").write_text("")
    with pytest.raises(UserError, match="holds other files"):
        training(task="vowels").run("other")
    with pytest.raises(UserError, match="cannot load nowhere"):
        MrT5Training(task="vowels", model="nowhere").run("out")
