"""The compiled step: equal to the eager one, kept between processes, refused where it cannot serve."""

import shutil

import pytest
import torch

from mintage.draft import Plain, TokenRecycling, generate
from mintage.draft.core.compiled import CompiledTarget, step_path
from mintage.draft.core.latency import latency_curve
from mintage.draft.core.target import Target
from mintage.draft.core.tree import TokenTree, Topology
from mintage.errors import UserError
from mintage.models import tiny_causal_lm

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on PATH")
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
TREE = TokenTree(tokens=torch.tensor([3, 4, 5, 6, 1]), topology=Topology((-1, 0, 0, 1, 2)))


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINTAGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def model(own_cache):
    return tiny_causal_lm()


@pytest.fixture(scope="module")
def target(model):
    return CompiledTarget(model, 6)


@needs_compiler
@torch.no_grad()
def test_trees_score_as_in_eager_mode_before_and_after_a_commit(model, target):
    seen = []
    for scorer in (Target(model), target):
        cache = scorer.new_cache(1, 40)
        scorer.prefill(IDS, [8], cache)
        first = scorer.score([TREE], cache)[0].clone()
        cache.commit([[0, 2, 4]])
        second = scorer.score([TREE], cache)[0].clone()
        cache.commit([[0]])
        wide = TokenTree(tokens=torch.arange(9), topology=Topology.chain(8))  # more than the step holds
        seen.append((first, second, scorer.score([wide], cache)[0].clone(), torch.tensor(cache.lengths)))
    for eager, compiled in zip(*seen, strict=True):
        torch.testing.assert_close(eager, compiled, atol=1e-4, rtol=1e-4)


@needs_compiler
@pytest.mark.parametrize("drafter", [Plain(), TokenRecycling.tiny()], ids=["plain", "recycling"])
def test_greedy_output_is_that_of_the_eager_loop(model, target, drafter):
    for prompt in (IDS, IDS[:, :1], IDS.flip(1)):
        eager = generate(model, prompt, Plain(), max_new_tokens=40)
        compiled = generate(model, prompt, drafter, max_new_tokens=40, compile=6)
        assert torch.equal(eager.sequences, compiled.sequences)


@needs_compiler
def test_a_batch_takes_the_ordinary_way(model, target):
    pair = torch.cat([IDS, IDS.flip(1)])
    both = generate(model, pair, Plain(), max_new_tokens=12, compile=6).sequences
    assert torch.equal(both, generate(model, pair, Plain(), max_new_tokens=12).sequences)


@needs_compiler
def test_the_package_is_kept_for_its_owner_and_found_again(model, target, monkeypatch):
    path = step_path(target, 6)
    assert path.exists()
    assert path.stat().st_mode & 0o077 == 0
    monkeypatch.setattr("mintage.draft.core.compiled._compile", lambda *_: pytest.fail("compiled again"))
    again = tiny_causal_lm()  # another object with the same weights
    generate(again, IDS, Plain(), max_new_tokens=2, compile=6)


@needs_compiler
@torch.no_grad()
def test_changed_weights_are_another_package(model, target):
    before = step_path(target, 6)
    other = tiny_causal_lm()
    next(other.parameters()).mul_(1.5)
    assert step_path(Target(other), 6) != before


@needs_compiler
def test_a_damaged_package_is_told(target, tmp_path):
    from mintage.draft.core.compiled import _load

    broken = tmp_path / "step.pt2"
    broken.write_bytes(step_path(target, 6).read_bytes()[:1000])
    with pytest.raises(UserError, match="delete it"):
        _load(broken)


def test_what_cannot_be_compiled_is_refused_in_one_line(monkeypatch):
    with pytest.raises(UserError, match="at least 1"):
        generate(tiny_causal_lm(), IDS, Plain(), compile=-1)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"C\+\+ compiler"):
        CompiledTarget(tiny_causal_lm(seed=5), 3)


@needs_compiler
def test_the_latency_curve_is_its_own(model, target):
    curve = latency_curve(target)
    assert {6, 7} <= set(curve.sizes)
    assert latency_curve(Target(model)) != curve
