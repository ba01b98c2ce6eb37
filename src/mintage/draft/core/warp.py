"""From logits to the distribution that is sampled: temperature, top-k, top-p and penalties, as in transformers.

The warpers are transformers' own. Those that look only at the scores are applied to the target and to the draft model
alike. Penalties depend on the tokens before, so on the path to a node; they are applied per node, to the target only
(any draft distribution is verified exactly).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import logits_process as hf

from mintage.errors import UserError

__all__ = ["Warp", "draw"]

_WARPERS = (
    hf.TemperatureLogitsWarper,
    hf.TopKLogitsWarper,
    hf.TopPLogitsWarper,
    hf.MinPLogitsWarper,
    hf.TypicalLogitsWarper,
    hf.EpsilonLogitsWarper,
    hf.EtaLogitsWarper,
    hf.TopHLogitsWarper,
    hf.LogitNormalization,
)
"""Functions of the scores alone."""

_PENALTIES = (
    hf.RepetitionPenaltyLogitsProcessor,
    hf.NoRepeatNGramLogitsProcessor,
    hf.NoBadWordsLogitsProcessor,
    hf.SequenceBiasLogitsProcessor,
    hf.MinLengthLogitsProcessor,
    hf.MinNewTokensLengthLogitsProcessor,
    hf.SuppressTokensLogitsProcessor,
    hf.SuppressTokensAtBeginLogitsProcessor,
    hf.ForcedBOSTokenLogitsProcessor,
    hf.ForcedEOSTokenLogitsProcessor,
    hf.ExponentialDecayLengthPenalty,
    hf.InfNanRemoveLogitsProcessor,
    hf.WatermarkLogitsProcessor,
)
"""Pure functions of the tokens before and the scores."""

_BY_ROW = (
    hf.PrefixConstrainedLogitsProcessor,
    hf.EncoderRepetitionPenaltyLogitsProcessor,
    hf.EncoderNoRepeatNGramLogitsProcessor,
)
"""Pure, too, but they know the rows of the batch by their numbers."""

_OPTIONS = {
    "UnbatchedClassifierFreeGuidanceLogitsProcessor": "guidance_scale",
    "SynthIDTextWatermarkLogitsProcessor": "watermarking_config",
}


@dataclass(frozen=True, kw_only=True)
class Warp:
    """How the next token is chosen.

    Parameters
    ----------
    temperature
        0 chooses the most likely token; above 0 samples from ``softmax(logits / temperature)``.
    top_k, top_p
        Truncations applied after the temperature, in this order; 0 and 1 switch them off.
    repetition_penalty
        Divides (multiplies) the positive (negative) logits of tokens already in the sequence; 1 switches it off.

    Raises
    ------
    UserError
        A value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    warpers: tuple[LogitsProcessor, ...] = field(default=(), init=False)
    penalties: tuple[LogitsProcessor, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UserError(
                f"temperature={self.temperature} is negative; pass 0 for greedy decoding, e.g. 0.7 to sample"
            )
        if 0 < self.temperature < 1e-6:
            raise UserError(f"temperature={self.temperature:g} overflows; pass 0 to be greedy, or at least 1e-06")
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k} is negative; pass 0 to switch it off, e.g. 50 to keep 50 tokens")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} is outside (0, 1]; pass the probability mass to keep, e.g. 0.9")
        if not self.repetition_penalty > 0:
            raise UserError(f"repetition_penalty={self.repetition_penalty} is not positive; 1 switches it off")
        warpers: list[LogitsProcessor] = []
        if self.temperature not in (0, 1):
            warpers.append(hf.TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            warpers.append(hf.TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            warpers.append(hf.TopPLogitsWarper(self.top_p))
        object.__setattr__(self, "warpers", tuple(warpers))
        if self.repetition_penalty != 1:
            penalty = hf.RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty))
            object.__setattr__(self, "penalties", (penalty,))

    @classmethod
    def from_processors(cls, processors: LogitsProcessorList, *, do_sample: bool) -> Warp:
        """Take over what transformers prepared inside ``model.generate``.

        Raises
        ------
        UserError
            A processor is not known to be a pure function of its arguments; a tree would feed it unlived pasts.
        """
        warp = cls(temperature=1.0 if do_sample else 0.0)
        for processor in processors:
            if type(processor) not in (*_WARPERS, *_PENALTIES, *_BY_ROW):
                name = type(processor).__name__
                option = f" ({_OPTIONS[name]})" if name in _OPTIONS else ""
                raise UserError(
                    f"{name}{option} cannot be used with a draft tree; remove it, or generate without a drafter"
                )
        # Whatever stands before a penalty goes with it, so that the order is kept. Greedy decoding has nothing to warp.
        last = max((i for i, p in enumerate(processors, 1) if not do_sample or type(p) not in _WARPERS), default=0)
        object.__setattr__(warp, "penalties", tuple(processors[:last]))
        object.__setattr__(warp, "warpers", tuple(processors[last:]))
        return warp

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0

    def probabilities(self, logits: Float[Tensor, "*batch vocabulary"]) -> Float[Tensor, "*batch vocabulary"]:
        """Return the distribution that is sampled, from logits of any model; float32, or float64 if the logits are.

        Greedy decoding has no distribution of its own; here its warpers are none and this is the plain softmax.
        """
        scores = logits.reshape(-1, logits.shape[-1])
        if scores.dtype != torch.float64:
            scores = scores.float()
        for warper in self.warpers:
            scores = warper(None, scores)  # type: ignore[arg-type]  # these never look at the ids
        return scores.softmax(-1).view(logits.shape)

    def penalise(
        self,
        ids: Int[Tensor, "nodes length"],
        logits: Float[Tensor, "nodes vocabulary"],
        row: int = 0,
        rows: int = 1,
    ) -> Float[Tensor, "nodes vocabulary"]:
        """Apply the penalties to the logits that follow `ids`, all of them continuations of one `row` of the batch.

        A processor that tells rows apart is shown a batch of as many `rows`, as in plain decoding.
        """
        scores = logits if logits.dtype == torch.float64 else logits.float()
        for penalty in self.penalties:
            if isinstance(penalty, _BY_ROW):
                shown = [penalty(i.expand(rows, -1), s.repeat(rows, 1))[row] for i, s in zip(ids, scores, strict=True)]
                scores = torch.stack(shown)
                continue
            if isinstance(ignored := getattr(penalty, "prompt_ignore_length", None), Tensor):  # one number a row
                penalty = copy.copy(penalty)
                penalty.prompt_ignore_length = int(ignored[row])  # type: ignore[attr-defined]
            scores = penalty(ids, scores)  # type: ignore[arg-type]
        return scores


def draw(probs: Float[Tensor, " vocabulary"], generator: torch.Generator | None) -> int:
    """Draw one token by inverse CDF: the first whose cumulative mass exceeds a uniform number times the total.

    Zero-probability tokens are never drawn. About ten times cheaper than `torch.multinomial` at 50k tokens on a CPU.
    """
    mass = probs.double().cumsum(-1)
    uniform = torch.rand((), dtype=torch.float64, device=probs.device, generator=generator)
    token = int(torch.searchsorted(mass, uniform * mass[-1], right=True))
    return min(token, int(torch.searchsorted(mass, mass[-1])))
