"""Models of one seed that a study of experts compares, trained when asked for, and what each makes of texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM

from mintage.bench.lm.trained import trained_folder
from mintage.data import texts
from mintage.lm.btm import ExpertForest
from mintage.lm.core.small_llama import small_llama
from mintage.lm.core.token_windows import TokenRecipe, token_windows, window_mark
from mintage.lm.training.expert import Expert, ExpertTraining
from mintage.models import fetched
from mintage.progress import Progress

__all__ = ["SYSTEMS", "DomainTexts", "GrownModels", "domain_texts"]

_ROWS = 8
"""Windows that are read together."""


class DomainTexts(NamedTuple):
    """Texts of a domain: to learn from (none of a new one), to find a prior by, and to judge by."""

    learn: list[str]
    tune: list[str]
    judge: list[str]


def _parted(every: Iterable[str], judge: Iterable[str] | None = None, *, new: bool = False) -> DomainTexts:
    """Part texts; without others to judge by, every tenth is kept for it."""
    own = [str(text) for text in every]
    tune = own[5::10]
    held = own[::10] if judge is None else [str(text) for text in judge]
    left = [text for number, text in enumerate(own) if number % 10 != 5 and (judge is not None or number % 10)]
    return DomainTexts([] if new else left, tune, held)


def domain_texts() -> dict[str, DomainTexts]:
    """Return four domains to learn from, and two new ones."""
    german = [line for text in texts("genesis", "train", domain="de") for line in str(text).splitlines() if line]
    return {
        "code": _parted(texts("python-library", "train"), texts("python-library", "held-out")),
        "articles": _parted(texts("wikitext2", "train"), texts("wikitext2", "held-out")),
        "problems": _parted(texts("gsm8k", "train"), texts("gsm8k", "held-out")),
        "German": _parted([*german, *texts("tatoeba", "train", domain="deu")]),
        "speeches (new)": _parted(texts("speeches", "train"), new=True),
        "humaneval (new)": _parted(texts("humaneval", "held-out"), new=True),
    }


@dataclass
class GrownModels:
    """Models of one seed.

    Parameters
    ----------
    plan
        Steps and sizes: `seed_steps` steps of the seed and `branch_steps` of every expert; the dense model takes as
        many as all of them together, experts without a seed share them.
    sizes
        Width, layers, and tokens of the vocabulary.
    measured
        Windows of a domain that are judged by, at most.
    texts
        Domains; those with nothing to learn from are new.
    models
        Folder that keeps what is trained.
    progress
        ``progress(stage, done, of)``.
    """

    plan: ExpertTraining
    sizes: Mapping[str, int]
    measured: int
    texts: Mapping[str, DomainTexts]
    models: Path
    progress: Progress
    held: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        every = [text for parts in self.texts.values() for text in parts.learn]
        sizes = (self.sizes["vocabulary"], self.sizes["width"], self.sizes["layers"])
        self.begin: Callable[[], Any] = lambda: small_llama(every, *sizes, self.plan.seed)[0]
        self.tokenizer = small_llama(every, *sizes, self.plan.seed)[1]
        self.letters = np.array([len(part) for part in self._tokens()])  # a byte is a letter of byte-level BPE
        size = self.plan.window
        learnt = {name: parts.learn for name, parts in self.texts.items() if parts.learn}
        self.learn = {name: token_windows(self.tokenizer, own, size) for name, own in learnt.items()}
        self.tune = {name: self._some(parts.tune) for name, parts in self.texts.items()}
        self.judge = {name: self._some(parts.judge) for name, parts in self.texts.items()}
        self.union: Int[np.ndarray, "windows size"] = np.concatenate(list(self.learn.values()))

    def _tokens(self) -> list[str]:
        return [str(self.tokenizer.convert_ids_to_tokens(number)) for number in range(len(self.tokenizer))]

    def _some(self, own: list[str]) -> Int[Tensor, "windows size"]:
        windows = token_windows(self.tokenizer, own, self.plan.window)
        return torch.from_numpy(windows[:: max(len(windows) // self.measured, 1)][: self.measured])

    # -- models -------------------------------------------------------------------------------------------------------

    def trained(self, part: str, windows: NDArray[np.int64], before: int, steps: int, begin: Callable[[], Any]) -> Any:
        """Return a model, trained if it is not there: `steps` behind `before` that are over."""
        if part not in self.held:
            now = {"seed_steps": before, "branch_steps": steps} if part != "seed" else {}
            size = "x".join(str(number) for number in self.sizes.values())
            plan = ExpertTraining(**{**vars(self.plan), "texts": (part,), "model": f"llama {size}", **now})

            def fit(work: Any) -> Expert:
                recipe = TokenRecipe(begin(), windows, plan.rows, plan.seed)
                work.stage(part, recipe, plan.settings(steps, before), unit=plan.rows, of="windows")
                return Expert(recipe.module.eval(), self.tokenizer, window_mark(windows))

            mark = f"{window_mark(self.union)} {window_mark(windows)}"
            place, _ = trained_folder(plan, mark, fit, self.models, self.progress)
            self.held[part] = fetched(AutoModelForCausalLM, place, "what is trained is a folder").eval()
        return self.held[part]

    @property
    def whole(self) -> int:
        """Steps of everything together."""
        return self.plan.seed_steps + len(self.learn) * self.plan.branch_steps

    def seed_model(self) -> Any:
        """Return what experts begin as."""
        return self.trained("seed", self.union, 0, self.plan.seed_steps, self.begin)

    def branched(self, part: str, windows: NDArray[np.int64]) -> Any:
        """Return an expert of the seed."""
        begin = lambda: fetched(AutoModelForCausalLM, self._place_of_seed(), "the seed is a folder")  # noqa: E731
        return self.trained(part, windows, self.plan.seed_steps, self.plan.branch_steps, begin)

    def _place_of_seed(self) -> Path:
        return Path(self.seed_model().config._name_or_path)

    def forest(self, kind: str) -> ExpertForest:
        """Return experts: of ``domains``, of ``random`` parts of them, or of domains without a ``seed``."""
        if f"forest {kind}" not in self.held:
            count = len(self.learn)
            if kind == "random":
                order = np.random.default_rng(self.plan.seed).permutation(len(self.union))
                parts = {f"part {n}": self.union[order[n::count]] for n in range(count)}
            else:
                parts = self.learn
            if kind == "seedless":
                steps = self.whole // count
                made = {n: self.trained(f"{n}, no seed", own, 0, steps, self.begin) for n, own in parts.items()}
            else:
                made = {name: self.branched(name, own) for name, own in parts.items()}
            self.held[f"forest {kind}"] = ExpertForest(made, tokenizer=self.tokenizer)
        return self.held[f"forest {kind}"]

    def tuned(self, domain: str, kind: str = "domains") -> ExpertForest:
        """Return the experts with a prior found on other texts of a domain (the paper's cached prior)."""
        found = ExpertForest(self.forest(kind).experts, tokenizer=self.tokenizer)
        found.estimate_prior(self.tune[domain].split(_ROWS))
        return found

    def dense(self) -> Any:
        """Return one model of all domains, at as many tokens."""
        return self.trained("dense", self.union, 0, self.whole, self.begin)

    def conditioned(self) -> Any:
        """Return one model of all domains that is told which one it reads by a token before the text."""
        first = len(self.tokenizer)
        tagged = [
            np.concatenate([np.full((len(own), 1), first + number), own[:, :-1]], 1)
            for number, own in enumerate(self.learn.values())
        ]

        def begin() -> Any:
            model = self.begin()
            model.resize_token_embeddings(first + len(tagged), mean_resizing=False)
            return model

        return self.trained("conditioned", np.concatenate(tagged), 0, self.whole, begin)

    # -- reading ------------------------------------------------------------------------------------------------------

    def bits(self, system: Callable[[GrownModels, Tensor, str], Tensor], domain: str) -> Float[np.ndarray, " windows"]:
        """Return the bits per byte of every window of a domain, behind its first token."""
        ids = self.judge[domain]
        nats = torch.cat([system(self, some, domain) for some in ids.split(_ROWS)])
        return nats.double().numpy() / math.log(2) / self.letters[ids[:, 1:].numpy()].sum(1)


def _uniform(grown: GrownModels, ids: Tensor, domain: str) -> Tensor:
    own = [ExpertForest({"one": model}).logprobs(ids)[0] for model in grown.forest("domains").experts.values()]
    mixed = torch.stack(own).logsumexp(0) - math.log(len(own))
    return -mixed[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].sum(1)


def _one(model: Any, ids: Tensor) -> Tensor:
    return ExpertForest({"one": model}).nll(ids)


def _likeliest(grown: GrownModels, ids: Tensor, domain: str) -> Tensor:
    return grown.tuned(domain).top_k(1).nll(ids)


def _conditioned(grown: GrownModels, ids: Tensor, domain: str) -> Tensor:
    """Read behind the token of the domain, or of a new one behind that of the first."""
    names = list(grown.learn)
    number = names.index(domain) if domain in names else 0
    tag = ids.new_full((len(ids), 1), len(grown.tokenizer) + number)
    model = grown.conditioned()
    both = torch.cat([tag, ids], 1)
    with torch.no_grad():
        log = model(input_ids=both).logits[:, 1:-1].double().log_softmax(-1)
    return -log.gather(-1, ids[:, 1:, None])[..., 0].sum(1)


SYSTEMS: dict[str, Callable[[GrownModels, Tensor, str], Tensor]] = {
    "posterior ensemble": lambda grown, ids, domain: grown.forest("domains").nll(ids),
    "dense": lambda grown, ids, domain: _one(grown.dense(), ids),
    "domain-conditioned": _conditioned,
    "uniform ensemble": _uniform,
    "likeliest expert": _likeliest,
    "weighted average": lambda grown, ids, domain: _one(grown.tuned(domain).average(), ids),
    "uniform average": lambda grown, ids, domain: _one(grown.forest("domains").average(), ids),
    "random split": lambda grown, ids, domain: grown.forest("random").nll(ids),
    "no seed, posterior ensemble": lambda grown, ids, domain: grown.forest("seedless").nll(ids),
    "no seed, uniform average": lambda grown, ids, domain: _one(grown.forest("seedless").average(), ids),
}
"""What is compared, by name: nats of windows of a domain."""
