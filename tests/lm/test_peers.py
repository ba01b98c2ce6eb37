"""Models over patches that a small model of bytes finds, ours and transformers' own: patches, two trainings in one."""

import sys

import pytest
import torch

from mintage import catalog
from mintage.bench.lm.joint import usual
from mintage.errors import UserError
from mintage.lm.baselines import EntropyPatches
from mintage.lm.blt import Blt, BltPeerConfig
from mintage.lm.core.folder import load_byte_lm
from mintage.lm.core.sampling import Sampling
from mintage.lm.hnet import HNet, HNetConfig
from mintage.lm.training.peers import BltTraining, HNetTraining
from mintage.lm.training.segment_baselines import EntropyPatchesTraining
from mintage.train import loop
from mintage.train.training import Work

TEXT = "The moon pulls the water of the sea, and the sea follows the moon; twice a day there are tides. " * 60
SMALL = {"width": 32, "layers": 1, "heads": 2, "small_width": 16, "small_layers": 1, "small_heads": 2}
TRAININGS = {
    "entropy-patches": EntropyPatchesTraining(window=64, rows=4, small_steps=4, steps=4, byte_layers=1, **SMALL),
    "blt": BltTraining(window=64, rows=4, small_steps=4, steps=4, decoder_layers=1, hashes=50, **SMALL),
}


@pytest.fixture(params=TRAININGS)
def training(request, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    made = TRAININGS[request.param]
    return type(made)(**{**vars(made), "texts": (str(tmp_path / "text.txt"),)})


@pytest.mark.parametrize("killed", ["between the stages", "in the second stage"])
def test_a_training_of_two_stages_that_was_killed_ends_with_the_same_weights(training, killed, tmp_path, monkeypatch):
    whole = training.run(tmp_path / "whole", tmp_path / "a")
    steps, stage = loop._Run.take_step, Work.stage
    taken = []

    def stop_at_sixth(run):
        if len(taken) == 6:
            run.save()
            raise KeyboardInterrupt
        taken.append(run.step)
        steps(run)

    def stop_at_second(work, name, *rest, **more):
        if name == "training":
            raise KeyboardInterrupt
        return stage(work, name, *rest, **more)

    with monkeypatch.context() as patched:
        if killed == "between the stages":
            patched.setattr(Work, "stage", stop_at_second)
        else:
            patched.setattr(loop._Run, "take_step", stop_at_sixth)
        with pytest.raises(KeyboardInterrupt):
            training.run(tmp_path / "resumed", tmp_path / "b")
    assert not (tmp_path / "resumed").exists()
    trained = []
    monkeypatch.setattr(loop._Run, "take_step", lambda run: (trained.append(run.step), steps(run)))
    resumed = training.run(tmp_path / "resumed", tmp_path / "b")
    assert len(trained) == {"between the stages": 4, "in the second stage": 2}[killed]  # nothing is trained again
    assert resumed.config.threshold == whole.config.threshold
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    assert load_byte_lm(tmp_path / "resumed").score(b"the tides") == whole.score(b"the tides")


def test_the_asked_share_of_bytes_ends_patches(training, tmp_path):
    made = training.run(tmp_path / "model", tmp_path / "work")
    windows = training.corpus().train
    cuts = [len(made.cuts(row.tobytes())) for row in windows[:40]]
    assert sum(cuts) / 40 / 64 == pytest.approx(training.share, abs=0.07)


@pytest.mark.parametrize("kind", [EntropyPatches, Blt])
def test_patches_begin_where_the_byte_before_leaves_doubt(kind):
    model = kind.tiny()
    text = b"The moon pulls the water of the sea."
    doubt = model.entropy(torch.tensor([list(text)]))[0] > model.config.threshold
    assert 0 < doubt.sum() < len(text)
    assert model.cuts(text) == [0, *(place + 1 for place in doubt[:-1].nonzero()[:, 0].tolist())]


def test_chunks_are_trained_and_written_as_they_are_read(tmp_path):
    pytest.importorskip("h_net_dynamic_chunking")
    (tmp_path / "text.txt").write_text(TEXT)
    sizes = {"width": 16, "layers": 1, "heads": 2, "window": 64, "rows": 4, "lr": 5e-3, "warmup": 2}
    training = HNetTraining(texts=(str(tmp_path / "text.txt"),), steps=2, chunk=4.0, **sizes)
    made = training.run(tmp_path / "model", tmp_path / "work")
    text = TEXT[:60].encode()
    assert "bits per byte" in training.summary(made)
    assert 1 < len(made.cuts(text)) <= len(text)
    written = made.write(text, Sampling(max_new_tokens=6))
    assert written == load_byte_lm(tmp_path / "model").write(text, Sampling(max_new_tokens=6), use_cache=False)


def test_a_peer_whose_package_is_not_there_is_told_and_not_compared(monkeypatch):
    monkeypatch.setitem(sys.modules, "h_net_dynamic_chunking", None)
    with pytest.raises(UserError, match=r"pip install 'mintage\[lm\]'"):
        HNet(HNetConfig())
    row = catalog.find("h-net", "lm")
    assert row.status == "ready"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not row.installed
    assert "h-net" not in usual()


def test_a_peer_that_cannot_be_made_is_told():
    with pytest.raises(UserError, match=r"chunk=1\.0 .* above 1"):
        HNetConfig(chunk=1.0)
    with pytest.raises(UserError, match="no even multiple of 4 heads"):
        Blt(BltPeerConfig(width=36))
    with pytest.raises(UserError, match="hashes=0"):
        BltPeerConfig(hashes=0)


def test_the_bench_compares_the_peers_that_are_installed():
    assert {"blt", "entropy-patches", "hat", "byte-transformer"} <= set(usual())
