"""Branch-Train-Merge: a seed on all domains, then an expert of each, side by side and apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int
from transformers import AutoModelForCausalLM, AutoTokenizer

from mintage.data import Corpus
from mintage.errors import UserError
from mintage.lm.btm import ExpertForest
from mintage.lm.core.small_llama import small_llama
from mintage.lm.core.token_windows import TokenRecipe, token_windows, window_mark
from mintage.lm.core.workers import run_all
from mintage.lm.training.expert import Branching, Expert
from mintage.models import fetched, load_causal_lm
from mintage.options import option
from mintage.train.training import Work

__all__ = ["ForestTraining"]


@dataclass(frozen=True, kw_only=True)
class ForestTraining(Branching):
    """Train a forest: a seed on all domains, then experts of each, side by side, without exchanging anything.

    Without a model the seed begins as a small Llama with a BPE tokenizer of all texts. A killed run goes on, and a
    worker that dies is started again.
    """

    name: ClassVar[str] = "btm"
    suffix: ClassVar[str] = ""
    examples: ClassVar[tuple[str, ...]] = (
        "mintage train btm --domain code=src/ --domain prose=books/ --workers 2 -o forest",
        "mintage train btm --domain law=law.txt --domain chat=chat.txt --model smollm2 --seed-steps 0 -o forest",
    )
    after: ClassVar[str] = 'mintage generate "def area(" --model FOREST --raw'

    domain: tuple[str, ...] = option((), "name=file or folder; repeat for every domain.", repeat=True)
    model: str | None = option(None, "What the seed begins as: smollm2, a folder, or a hub id. Default: a small Llama.")
    workers: int = option(2, "Experts that are trained side by side.", least=1)
    cluster: str | None = option(None, "Train on a Ray cluster: auto, local, or its address. Default: processes.")
    width: int = option(128, "Of the small Llama.", least=8)
    layers: int = option(4, "Of the small Llama.", least=1)
    vocabulary: int = option(2048, "Tokens of its tokenizer.", least=256, most=1_000_000)

    def domains(self) -> dict[str, str]:
        """Return the domains by name.

        Raises
        ------
        UserError
            There is none, one is not NAME=PATH, or a name comes twice.
        """
        found: dict[str, str] = {}
        for given in self.domain:
            name, equals, path = given.partition("=")
            if not (name and equals and path):
                raise UserError(f"domain={given!r} is not NAME=PATH; write e.g. code=src/")
            if name in found:
                raise UserError(f"the domain {name!r} is given twice; name the other one differently")
            found[name] = path
        if not found:
            raise UserError("a forest needs domains; pass e.g. --domain code=src/ --domain prose=books/")
        return found

    def check_out(self, path: Path) -> None:
        """Refuse to take the place of anything but a forest."""
        if path.is_dir() and any(path.iterdir()) and not (path / "forest.json").exists():
            raise UserError(f"{path} holds other files; pass a new folder")
        super().check_out(path / "forest.json" if path.is_dir() else path)

    def learn(self, work: Work) -> ExpertForest:
        """Train the seed, then the experts by processes of their own."""
        domains = self.domains()
        texts = {name: Corpus(path) for name, path in domains.items()}
        seed = work.folder / "seed"
        if not (seed / "config.json").exists():
            self._seed(texts, work).save(seed, {})
        places = {name: work.folder / "experts" / name for name in domains}
        commands = {
            name: self._command(domains[name], seed, place) for name, place in places.items() if not place.exists()
        }
        if commands:
            run_all(commands, self.workers, cluster=self.cluster, told=work.told("experts"))
        experts = {name: fetched(AutoModelForCausalLM, place, "experts are folders") for name, place in places.items()}
        return ExpertForest(experts, tokenizer=fetched(AutoTokenizer, seed, "the seed is a folder"))

    def _command(self, path: str, seed: Path, place: Path) -> list[str]:
        names = ("seed_steps", "branch_steps", "rows", "window", "lr", "warmup", "seed", "device")
        told = [part for name in names for part in (f"--{name.replace('_', '-')}", str(getattr(self, name)))]
        where = ["--model", str(seed.absolute()), "-o", str(place.absolute()), "--work", f"{place.absolute()}.work"]
        return ["train", "expert", str(Path(path).absolute()), *where, *told]

    def _seed(self, texts: Mapping[str, Corpus], work: Work) -> Expert:
        """Train on the union of all domains, as many windows of each as it has."""
        model, tokenizer = self._begin(texts)
        windows: Int[np.ndarray, "windows size"] = np.concatenate(
            [token_windows(tokenizer, corpus, self.window) for corpus in texts.values()]
        )
        if self.seed_steps:
            recipe = TokenRecipe(model, windows, self.rows, self.seed)
            work.stage("seed", recipe, self.settings(self.seed_steps), unit=self.rows, of="windows")
        return Expert(model.eval(), tokenizer, window_mark(windows))

    def _begin(self, texts: Mapping[str, Corpus]) -> tuple[Any, Any]:
        if self.model is not None:
            lm = load_causal_lm(self.model, dtype="float32", device=self.device)
            return lm.model, lm.tokenizer
        every = (text for corpus in texts.values() for text in corpus)
        return small_llama(every, self.vocabulary, self.width, self.layers, self.seed)

    def summary(self, made: ExpertForest) -> str:
        """Return who is in the forest."""
        size = sum(p.numel() for p in next(iter(made.experts.values())).parameters()) / 1e6
        return f"{len(made.experts)} experts of {size:.2f} M parameters: {', '.join(made.experts)}"
