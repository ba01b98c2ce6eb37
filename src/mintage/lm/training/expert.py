"""One expert of Branch-Train-Merge: a copy of a seed goes on with the text of one domain.

The learning rate of an expert goes on where the seed's ended and falls to the same end; its optimiser begins afresh,
where the paper's goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mintage.data import Corpus
from mintage.errors import UserError
from mintage.files import replace_folder
from mintage.lm.core.token_windows import TokenRecipe, token_windows, window_mark
from mintage.models import load_causal_lm
from mintage.options import option
from mintage.progress import quiet
from mintage.train import Settings
from mintage.train.training import Training, Work

__all__ = ["Branching", "Expert", "ExpertTraining"]


@dataclass(frozen=True, kw_only=True)
class Branching(Training):
    """What a seed and its experts share: one schedule, which an expert enters where the seed left it."""

    seed_steps: int = option(200, "Steps of the seed, on all domains.", least=0)
    branch_steps: int = option(200, "Steps of every expert, on its own domain.", least=1)
    rows: int = option(8, "Windows per step.", least=1)
    window: int = option(128, "Tokens of a window.", least=2)
    lr: float = option(1e-3, "Peak learning rate; cosine to a tenth.", above=0)
    warmup: int = option(20, "Steps of linear warm-up, of the seed (or of experts without one).", least=0)

    def settings(self, steps: int, before: int = 0) -> Settings:
        """Return a part of the schedule: `steps` behind `before` that are over."""
        whole = Settings(steps=self.seed_steps + self.branch_steps, lr=self.lr, warmup=self.warmup, final_lr=0.1)
        first, last = whole.lr_at(before), whole.lr_at(before + steps)
        return Settings(
            steps=steps,
            lr=first if before else self.lr,
            warmup=0 if before else min(self.warmup, steps),
            final_lr=min(last / (first if before else self.lr), 1.0),
            weight_decay=0.1,
            betas=(0.9, 0.95),
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class ExpertTraining(Branching):
    """Train one expert: a copy of a seed goes on with the text of one domain."""

    name: ClassVar[str] = "expert"
    suffix: ClassVar[str] = ""
    examples: ClassVar[tuple[str, ...]] = ("mintage train expert code/ --model forest.work/seed -o code-expert",)
    after: ClassVar[str] = "ExpertForest.load(FOREST).add('code', model)"

    texts: tuple[str, ...] = option((), "Text files or folders of the domain.", argument=True)
    model: str = option("smollm2", "The seed: smollm2 (embedded), a folder, or a hub id.")

    def check_out(self, path: Path) -> None:
        """Refuse to take the place of anything but a model that was written before."""
        if path.is_dir() and any(path.iterdir()) and not (path / "config.json").exists():
            raise UserError(f"{path} holds other files; pass a new folder")
        super().check_out(path / "config.json" if path.is_dir() else path)

    def learn(self, work: Work) -> Expert:
        """Branch, train on one domain."""
        if not self.texts:
            raise UserError("an expert needs the text of its domain; name at least one file or folder")
        lm = load_causal_lm(self.model, dtype="float32", device=self.device)
        windows = token_windows(lm.tokenizer, Corpus(*self.texts), self.window)
        recipe = TokenRecipe(lm.model, windows, self.rows, self.seed)
        work.stage("expert", recipe, self.settings(self.branch_steps, self.seed_steps), unit=self.rows, of="windows")
        return Expert(lm.model.eval(), lm.tokenizer, window_mark(windows))


class Expert:
    """A trained model with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, text: str) -> None:
        self.model, self.tokenizer, self.text = model, tokenizer, text

    def save(self, path: str | Path, notes: Mapping[str, str]) -> None:
        """Write an ordinary model folder; what it learnt from stands in its configuration."""
        self.model.config.mintage_notes = {**notes, "text": self.text}
        with replace_folder(path) as folder, quiet():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
