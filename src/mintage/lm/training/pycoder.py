"""Train a language model of code that learns token types along (PyCoder), and the baselines that it has to beat."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from mintage.data import texts
from mintage.data.code import distinct, python_files
from mintage.errors import Notice, UserError
from mintage.lm.core.code_accuracy import right_tokens
from mintage.lm.core.code_windows import typed_windows, unpythonic, without_comments
from mintage.lm.core.small_llama import small_llama
from mintage.lm.core.token_types import LABELS
from mintage.lm.pycoder import PyCoder, Sharing
from mintage.lm.training.typed_recipe import TypedRecipe
from mintage.models import load_causal_lm
from mintage.options import option
from mintage.train import Settings
from mintage.train.training import Training, Work

__all__ = ["PyCoderTraining"]

_HELD_OUT = 20  # every so many-th file is not learnt from
_MEASURED = 20  # of those are measured at the end


@dataclass(frozen=True, kw_only=True)
class PyCoderTraining(Training):
    """Train a model of code that learns the types of tokens along.

    Any causal language model goes on from where it is; without one a small Llama with a tokenizer of the code is made.
    What is written is an ordinary model folder: types are not needed to complete code. A killed run goes on.
    """

    name: ClassVar[str] = "pycoder"
    suffix: ClassVar[str] = ""
    examples: ClassVar[tuple[str, ...]] = (
        "mintage train pycoder --code src/ --steps 300 -o my-coder",
        "mintage train pycoder --model FOLDER --code src/ -o my-coder",
    )
    after: ClassVar[str] = "mintage generate --code src/main.py:12 --model FOLDER"

    code: tuple[str, ...] = option((), "Python files or folders; repeat. None: Python's own library.", repeat=True)
    model: str | None = option(None, "What to go on from: a folder, smollm2, or a hub id. Default: a small Llama.")
    sharing: Sharing = option("hard", "How types are learnt; none is the baseline without them.")
    weight: float = option(
        0.9, "Of the code's loss, for hard sharing and the head; the types' is the rest.", least=0, most=1
    )
    labels: Literal["lexer", "ast", "shuffled"] = option("lexer", "The types; shuffled ones are a control.")
    comments: bool = option(True, "Learn comments and docstrings, too.")
    steps: int = option(1000, "Optimiser steps on code.", least=1)
    type_steps: int = option(0, "Steps on types alone before them (intermediate); 0: as many as on code.", least=0)
    rows: int = option(8, "Windows per step.", least=1)
    window: int = option(256, "Tokens of a window; the paper's is 1,024.", least=2)
    lr: float | None = option(None, "Peak learning rate; default 8e-5 for a model that is there, else 1e-3.", above=0)
    warmup: int = option(20, "Steps of linear warm-up.", least=0)
    width: int = option(128, "Of the small Llama.", least=8)
    layers: int = option(4, "Of the small Llama.", least=1)
    vocabulary: int = option(4096, "Tokens of its tokenizer.", least=256, most=1_000_000)
    bf16: bool = option(False, "Compute in bfloat16 where torch can; faster with AMX or on a GPU.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sharing == "none" and self.labels != "lexer":
            raise UserError(f"labels={self.labels!r}, but sharing='none' learns no types; leave one of them out")
        if self.type_steps and self.sharing != "intermediate":
            raise UserError(f"type_steps={self.type_steps} are for sharing='intermediate', not {self.sharing!r}")

    def check_out(self, path: Path) -> None:
        """Refuse to take the place of anything but a model that was written before."""
        if path.is_dir() and any(path.iterdir()) and not (path / "config.json").exists():
            raise UserError(f"{path} holds other files; pass a new folder")
        super().check_out(path / "config.json" if path.is_dir() else path)

    def learn(self, work: Work) -> PyCoder:
        """Read the code, train, and measure on files held out."""
        return self.fit(self.sources(), work)

    def sources(self) -> list[str]:
        """Return the files to learn from, without near-duplicates."""
        if not self.code:
            found = list(texts("python-code", "train"))
        else:
            files = python_files(*self.code)
            _tell(files.left_out)
            odd = {
                path: f"{path}, line {why[0]} {why[1]}"
                for path, text in files.texts.items()
                if (why := unpythonic(text))
            }
            _tell(odd, "learnt as they are")
            every = list(files.texts.values())
            found = [text for text, keep in zip(every, distinct(every), strict=True) if keep]
        return found if self.comments else [without_comments(text) for text in found]

    def fit(self, sources: list[str], work: Work) -> PyCoder:
        """Train on files that are there."""
        held = sources[_HELD_OUT // 2 :: _HELD_OUT][:_MEASURED]
        learnt = [text for number, text in enumerate(sources) if number % _HELD_OUT != _HELD_OUT // 2]
        model, tokenizer = self._begin(learnt)
        labels = LABELS["ast" if self.labels == "ast" else "lexer"]
        windows = typed_windows(tokenizer, learnt, self.window, labels)
        if self.labels == "shuffled":
            windows = windows.shuffled(self.seed)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed % 2**63)
            coder = PyCoder(model, tokenizer, sharing=self.sharing, weight=self.weight, names=labels.names)
        if self.sharing == "intermediate":
            self._stage("types", TypedRecipe(coder, windows, self.rows, self.seed, weight=0), self.type_steps, work)
        self._stage("code", TypedRecipe(coder, windows, self.rows, self.seed), self.steps, work)
        coder.eval()
        if held:
            right = [right_tokens(coder.model, tokenizer, text, self.window) for text in held]
            coder.model.config.held_out_token_accuracy = float(np.concatenate(right).mean())
        return coder

    def _stage(self, name: str, recipe: TypedRecipe, steps: int, work: Work) -> None:
        settings = replace(self._settings(), steps=steps or self.steps)
        settings = replace(settings, warmup=min(self.warmup, settings.steps))
        work.stage(name, recipe, settings, unit=self.rows * self.window, of="tokens")

    def _settings(self) -> Settings:
        rate = self.lr or (1e-3 if self.model is None else 8e-5)
        decay = {"weight_decay": 0.1, "betas": (0.9, 0.95)} if self.model is None else {"weight_decay": 0.01}
        return Settings(steps=self.steps, lr=rate, final_lr=0.1, bf16=self.bf16, seed=self.seed, **decay)

    def _begin(self, sources: list[str]) -> tuple[Any, Any]:
        if self.model is not None:
            lm = load_causal_lm(self.model, dtype="float32", device=self.device)
            return lm.model, lm.tokenizer
        return small_llama(sources, self.vocabulary, self.width, self.layers, self.seed)

    def summary(self, made: PyCoder) -> str:
        """Return how many tokens of files held out are right."""
        size = sum(p.numel() for p in made.model.parameters()) / 1e6
        share = getattr(made.model.config, "held_out_token_accuracy", None)
        told = "" if share is None else f"{share:.1%} of the tokens right in files held out, "
        return f"{told}{size:.2f} M parameters"


def _tell(reasons: dict[str, str], how: str = "left out") -> None:
    if reasons:
        more = f" ({len(reasons)} files are {how})" if len(reasons) > 1 else f" ({how})"
        warnings.warn(f"{next(iter(reasons.values()))}{more}", Notice, stacklevel=3)
