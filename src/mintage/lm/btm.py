"""Branch-Train-Merge: language models of single domains, mixed by who would have written the text so far (2208.03306).

Experts are branched from one seed, trained apart, each on its own domain, and merged without a gradient between them:
an `ExpertForest` mixes their probabilities by the posterior of their domains, or averages their weights. A
forest is a folder with ``forest.json`` and an ordinary model folder for each expert, which the others never touch.

Deviations: none in the mixture (the authors' released scorer looks back one token only; here ``history=1``). Position 0
of a text has no prediction, as everywhere in transformers: its token is context.

Longer than a method should be, since reading, writing and the folder are one thing's three faces. Not here: training
(`mintage.lm.training.btm`), the mixture's arithmetic (`mintage.lm.core.mixture`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from mintage.errors import UserError, did_you_mean
from mintage.files import parse_json, replace_file, replace_folder
from mintage.lm.core.mixture import log_posterior, mixed, prior_of, running_prior, top_k_prior, weighted_average
from mintage.lm.core.sampling import Sampling
from mintage.models import cache_of, fetched, tiny_causal_lm, with_cache
from mintage.progress import quiet

__all__ = ["ExpertForest"]

_FORM = "mintage-forest-1"


class ExpertForest:
    """Experts by the name of their domain.

    Parameters
    ----------
    experts
        Causal language models with one vocabulary.
    prior
        How likely each domain is before anything was read, by name; None is uniform.
    tokenizer
        The one that all experts share, if texts are to be read.

    Raises
    ------
    UserError
        There is no expert, vocabularies differ, or the prior is no distribution over the experts.
    """

    def __init__(
        self, experts: Mapping[str, Any], prior: Mapping[str, float] | None = None, tokenizer: Any = None
    ) -> None:
        self.experts: dict[str, Any] = {}
        self.tokenizer = tokenizer
        for name, model in experts.items():
            self.add(name, model)
        if not self.experts:
            raise UserError("a forest needs at least one expert; pass {'domain': model}")
        self.weights = self._weights(prior)

    @classmethod
    def tiny(cls) -> ExpertForest:
        """Make a forest of three small models, the same at every call."""
        return cls({f"domain {seed}": tiny_causal_lm(seed=seed) for seed in (1, 2, 3)}, prior=None)

    def _weights(self, prior: Mapping[str, float] | None) -> Float[Tensor, " experts"]:
        if prior is None:
            return prior_of(None, len(self.experts))
        for name in [*prior, *self.experts]:
            if name not in self.experts or name not in prior:
                raise UserError(f"the prior and the experts part at {name!r}; {did_you_mean(name, self.experts)}")
        return prior_of([float(prior[name]) for name in self.experts], len(self.experts))

    @property
    def prior(self) -> dict[str, float]:
        """The prior by name."""
        return dict(zip(self.experts, self.weights.tolist(), strict=True))

    @prior.setter
    def prior(self, prior: Mapping[str, float] | None) -> None:
        self.weights = self._weights(prior)

    # -- experts come and go --------------------------------------------------------------------------------------

    def add(self, name: str, model: Any) -> None:
        """Add an expert; the prior becomes uniform again.

        Raises
        ------
        UserError
            The name is taken, is no name of a folder, or the model has another vocabulary.
        """
        if not name or name != Path(name).name or name.startswith("."):
            raise UserError(f"{name!r} cannot be the name of an expert; pass letters, e.g. 'code'")
        if name in self.experts:
            raise UserError(f"there is an expert {name!r} already; remove it first, or pass another name")
        for other, held in self.experts.items():
            if held.config.vocab_size != model.config.vocab_size:
                mine, theirs = model.config.vocab_size, held.config.vocab_size
                raise UserError(f"{name!r} has {mine} tokens and {other!r} {theirs}: their texts cannot be mixed")
        self.experts[name] = model.eval()
        self.weights = prior_of(None, len(self.experts))

    def remove(self, name: str) -> Any:
        """Take an expert out and return it; the prior of the others becomes uniform again."""
        if name not in self.experts:
            raise UserError(f"there is no expert {name!r}; {did_you_mean(name, self.experts)}")
        if len(self.experts) == 1:
            raise UserError(f"{name!r} is the last expert; a forest needs one")
        model = self.experts.pop(name)
        self.weights = prior_of(None, len(self.experts))
        return model

    def top_k(self, k: int) -> ExpertForest:
        """Return the forest of the k likeliest experts, which alone are run."""
        kept = dict(zip(self.experts, top_k_prior(self.weights, k).tolist(), strict=True))
        kept = {name: weight for name, weight in kept.items() if weight}
        return ExpertForest({name: self.experts[name] for name in kept}, kept, self.tokenizer)

    # -- reading --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def logprobs(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Int[Tensor, "batch tokens"] | None = None,
        starts: Bool[Tensor, "batch tokens"] | None = None,
        *,
        history: int | None = None,
    ) -> tuple[Float[Tensor, "batch tokens vocabulary"], Float[Tensor, "experts batch tokens"]]:
        """Return log-probabilities of every next token, and the experts' log weights in them.

        Parameters
        ----------
        input_ids, attention_mask
            Texts, filled at their ends.
        starts
            First tokens of documents: behind them the posterior is the prior again.
        history
            See `log_posterior`.
        """
        own = [self._read(model, input_ids, attention_mask) for model in self._run()]
        by_expert = torch.stack(own)
        next_ids = input_ids[:, 1:].expand(len(own), -1, -1)[..., None]
        token = by_expert[:, :, :-1].gather(-1, next_ids)[..., 0]
        columns = None if starts is None else starts[:, :-1]
        weights = log_posterior(token, self.weights[self.weights > 0], columns, history=history)
        return mixed(by_expert, weights[..., None]), weights

    def _run(self) -> list[Any]:
        """Return the experts that count."""
        return [m for m, weight in zip(self.experts.values(), self.weights.tolist(), strict=True) if weight]

    @staticmethod
    def _read(model: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
        return model(input_ids=ids, attention_mask=mask).logits.double().log_softmax(-1)

    def nll(self, input_ids: Tensor, attention_mask: Tensor | None = None, **how: Any) -> Float[Tensor, " batch"]:
        """Return nats of every text behind its first token."""
        logprobs, _ = self.logprobs(input_ids, attention_mask, **how)
        token = logprobs[:, :-1].gather(-1, input_ids[:, 1:, None])[..., 0]
        return -(token if attention_mask is None else token * attention_mask[:, 1:]).sum(1)

    def posterior(self, input_ids: Tensor, **how: Any) -> Float[Tensor, "batch tokens experts"]:
        """Return who wrote it, behind every token; experts with prior 0 are left out."""
        return self.logprobs(input_ids, **how)[1].exp().permute(1, 2, 0)

    def estimate_prior(self, blocks: Iterable[Int[Tensor, "batch tokens"]], decay: float = 0.3) -> dict[str, float]:
        """Set the prior from texts of a domain, block by block (the cached prior, section 2.3), and return it."""
        self.weights = prior_of(None, len(self.experts))
        found = [self.posterior(block)[:, -1].mean(0) for block in blocks]
        if not found:
            raise UserError("there is no block of text to estimate a prior from; pass at least one")
        self.weights = prior_of(running_prior(torch.stack(found), decay)[-1].tolist(), len(self.experts))
        return self.prior

    # -- one model ------------------------------------------------------------------------------------------------

    def average(self, weights: Mapping[str, float] | None = None) -> Any:
        """Return one model whose weights are the experts' average; by default weighted by the prior."""
        shares = self.weights if weights is None else self._weights(weights)
        models = list(self.experts.values())
        merged = type(models[0])(models[0].config).to(models[0].dtype)
        merged.load_state_dict(weighted_average([model.state_dict() for model in models], shares))
        return merged.eval()

    # -- writing --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, input_ids: Int[Tensor, "1 tokens"], **sampling: Any) -> Int[Tensor, "1 longer"]:
        """Write behind a text with a cache for every expert; who writes is weighed anew at every token.

        Parameters
        ----------
        input_ids
            One text of at least one token.
        **sampling
            Fields of `Sampling`; ``max_new_tokens`` counts tokens. An end-of-text token of the experts ends it.
        """
        how = Sampling.of(sampling)
        if input_ids.shape[0] != 1 or not input_ids.shape[1]:
            raise UserError(f"a forest writes behind one text of some tokens, not {tuple(input_ids.shape)}")
        choose, models, ends = how.chooser(), self._run(), _ends(next(iter(self.experts.values())))
        caches = [DynamicCache(config=model.config) for model in models]
        weights, fresh, ids = self.weights[self.weights > 0].log()[:, None, None], input_ids, input_ids
        last: Tensor | None = None
        for _ in range(how.max_new_tokens):
            own = []
            for number, model in enumerate(models):
                out = model(input_ids=fresh, use_cache=True, **with_cache(model, caches[number]))
                caches[number] = cache_of(out)
                own.append(out.logits.double().log_softmax(-1))
            by_expert = torch.stack(own)
            told = by_expert if last is None else torch.cat([last, by_expert], 2)
            known = ids[:, ids.shape[1] - told.shape[2] + 1 :].expand(len(own), -1, -1)[..., None]
            weights = weights + told[:, :, :-1].gather(-1, known).sum(2)
            weights = weights - weights.logsumexp(0)
            last = by_expert[:, :, -1:]
            new = choose(mixed(last[:, 0, 0], weights[:, 0]))
            fresh = torch.tensor([[new]], device=ids.device)
            ids = torch.cat([ids, fresh], 1)
            if new in ends:
                break
        return ids

    # -- files ----------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path, notes: Mapping[str, str] | None = None) -> None:
        """Write ``forest.json`` and the experts that are not there yet; folders of experts that left stay as they are.

        Raises
        ------
        UserError
            `folder` holds something else.
        """
        place = Path(folder)
        if place.is_dir() and any(place.iterdir()) and not (place / "forest.json").exists():
            raise UserError(f"{place} holds other files; pass a new folder")
        for name, model in self.experts.items():
            if not (place / name).exists():
                with replace_folder(place / name) as expert, quiet():
                    model.save_pretrained(expert)
                    if self.tokenizer is not None:
                        self.tokenizer.save_pretrained(expert)
        with replace_file(place / "forest.json") as file:
            said = {"format": _FORM, "prior": self.prior, "notes": dict(notes or {})}
            file.write_text(json.dumps(said, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> ExpertForest:
        """Load what `save` wrote.

        Raises
        ------
        UserError
            It is damaged, or an expert is missing.
        """
        path = Path(folder) / "forest.json"
        if not path.is_file():
            raise UserError(f"{folder} holds no forest; make one with mintage train btm")
        said = parse_json(path.read_text(encoding="utf-8"), str(path), "make the forest again")
        prior = said.get("prior") if isinstance(said, dict) else None
        if not isinstance(prior, dict) or said.get("format") != _FORM:
            raise UserError(f"{path} is no {_FORM!r}; make the forest again")
        names: Sequence[str] = list(prior)
        places = {name: Path(folder) / name for name in names}
        for name, place in places.items():
            if not place.is_dir():
                raise UserError(f"{folder} lacks the expert {name!r}; train it again, or take its name out of {path}")
        experts = {name: fetched(AutoModelForCausalLM, place, "experts are folders") for name, place in places.items()}
        first = places[names[0]]
        has_tokenizer = (first / "tokenizer.json").exists()
        tokenizer = fetched(AutoTokenizer, first, "experts are folders") if has_tokenizer else None
        return cls(experts, prior, tokenizer)


def _ends(model: Any) -> set[int]:
    end = model.generation_config.eos_token_id
    return set() if end is None else {end} if isinstance(end, int) else set(end)
