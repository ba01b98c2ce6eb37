"""What is asked of the loop, as transformers itself prepares it; what cannot be drafted is refused by name.

`mintage.draft.generate` and ``model.generate(custom_generate=drafter)`` both end here: transformers merges the call
with the model's generation config and makes the logits processors and stopping criteria, so that none is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import EosTokenCriteria, GenerationConfig, MaxLengthCriteria, StoppingCriteriaList, StopStringCriteria

from mintage.draft.core.warp import Warp
from mintage.errors import UserError
from mintage.models import cache_of

__all__ = ["FIRST", "TYPES", "Request", "as_batch", "callers_streamer", "ids_of", "prepare"]

_EXTRAS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_OTHER_WAYS = ("prompt_lookup_num_tokens", "assistant_early_exit", "dola_layers", "penalty_alpha")
"""Other ways to decode; each would have to be left out."""

FIRST = ("pixel_", "image_", "video_", "vision_", "input_features", "audio_", "patches_", "num_local_patches")
FIRST += ("high_res_pixel", "interpolate_pos_encoding", "inputs_embeds", "mm_encoder_outputs")
"""How inputs begin that only the first forward takes: pictures, sounds, embeddings in the place of ids."""

TYPES = ("token_type_ids", "mm_token_type_ids")
_KNOWN = ("attention_mask", "past_key_values", "cache", "position_ids", "logits_to_keep", "use_cache", "return_dict")
_KNOWN += ("synced_gpus",)


@dataclass
class Request:
    """One call.

    Attributes
    ----------
    model
        Unwrapped.
    ids
        What plain decoding shows to processors and criteria, [B, P]; P is 0 where only embeddings were given.
    kept
        Which inputs are real, [B, L]; the others are padding.
    first
        What only the first forward takes: pictures, embeddings in the place of ids.
    warp, ends, criteria, new, pad
        How tokens are chosen, end tokens, other stopping criteria, most new tokens, what fills shorter rows.
    """

    model: Any
    ids: Tensor
    kept: Tensor
    warp: Warp
    new: int
    ends: set[int] = field(default_factory=set)
    criteria: Sequence[Any] = ()
    pad: int = 0
    first: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        model_kwargs: Mapping[str, Any],
    ) -> Request:
        """Take over what ``model.generate`` hands to its decoding methods.

        Raises
        ------
        UserError
            Something in it cannot be drafted.
        """
        _refuse(model, generation_config)
        past = cache_of(model_kwargs)
        if past is not None and past.get_seq_length():
            name = "cache" if "cache" in model_kwargs else "past_key_values"
            raise UserError(f"{name} holds tokens already; a drafter starts from the whole prompt")
        ends: set[int] = set()
        others, longest = [], generation_config.max_length
        for criterion in stopping_criteria:
            if isinstance(criterion, EosTokenCriteria):
                ends |= set(criterion.eos_token_id.flatten().tolist())
            elif isinstance(criterion, MaxLengthCriteria):
                longest = criterion.max_length  # the user's own takes the place of the configuration's
            else:
                others.append(criterion)
        pad = getattr(generation_config, "_pad_token_tensor", None)
        pad = generation_config.pad_token_id if pad is None else int(pad)
        return cls(
            model=model,
            ids=input_ids,
            kept=_kept(input_ids, model_kwargs),
            warp=Warp.from_processors(logits_processor, do_sample=bool(generation_config.do_sample)),
            new=max(longest - input_ids.shape[1], 1),  # plain decoding looks at lengths after a token only
            ends=ends,
            criteria=others,
            pad=pad if pad is not None else min(ends, default=0),
            first=_first(model, input_ids, model_kwargs),
        )

    @property
    def lengths(self) -> list[int]:
        """Real inputs per row."""
        return self.kept.sum(1).tolist()


def _refuse(model: Any, config: GenerationConfig) -> None:
    if model.training and (why := _unsteady(model)):
        raise UserError(f"{type(model).__name__} is in training mode, with {why}; call model.eval() first")
    if config.num_beams not in (None, 1):
        raise UserError(f"num_beams={config.num_beams} cannot be drafted; use num_beams=1")
    for name in _EXTRAS:
        if getattr(config, name, None):
            raise UserError(f"{name}=True cannot be used with a drafter; generate without it")
    for name in _OTHER_WAYS:
        if value := getattr(config, name, None):
            raise UserError(f"{name}={value!r} is another way to decode than a drafter; pass one of them")
    mode = config.get_generation_mode(None).value
    if mode not in ("greedy_search", "sample"):
        raise UserError(f"the settings ask for {mode.replace('_', ' ')}, which cannot be drafted; generate without it")


def _unsteady(model: Any) -> str:
    """Why forwards in training mode are not those of evaluation; empty if they are."""
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return "gradient checkpointing, which keeps no cache"
    settings = model.config.get_text_config(decoder=True).to_dict().items()
    noise = [n for n, v in settings if ("drop" in n or "jitter" in n) and isinstance(v, int | float) and v > 0]
    noise += ["a dropout" for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.p > 0]
    return f"{noise[0]}, so that two forwards differ" if noise else ""


def _kept(ids: Tensor, given: Mapping[str, Any]) -> Tensor:
    """Say which inputs are real."""
    inputs = ids if given.get("inputs_embeds") is None else given["inputs_embeds"]
    mask = given.get("attention_mask")
    kept = torch.ones(inputs.shape[:2], dtype=torch.bool, device=ids.device)
    if mask is not None:
        kept = mask.to(ids.device).bool()
        if kept.shape != inputs.shape[:2]:
            raise UserError(f"attention_mask has shape {tuple(kept.shape)}, the inputs {tuple(inputs.shape[:2])}")
    if (places := given.get("position_ids")) is not None:
        usual = (kept.long().cumsum(-1) - 1).clamp_min(0)
        if places.shape[-1] != usual.shape[-1] or ((places.to(usual.device) != usual) & kept).any():
            raise UserError(
                "position_ids other than those of text, as for pictures in two dimensions, cannot be drafted; "
                "generate without a drafter"
            )
    return kept


def _first(model: Any, ids: Tensor, given: Mapping[str, Any]) -> dict[str, Any]:
    """Pick out what only the first forward takes, and refuse what every forward would need."""
    given = {name: value for name, value in given.items() if value is not None and name not in _KNOWN}
    first = {name: value for name, value in given.items() if name.startswith(FIRST)}
    if model.config.sub_configs:  # of pictures; beside text alone they are zeros, and say nothing later
        first |= {name: given[name] for name in TYPES if name in given and not given[name][..., -1].any()}
    for name in given.keys() - first.keys():
        raise UserError(
            f"{name}= cannot be drafted: every forward of {type(model).__name__} would need it; leave it out"
        )
    return first


# -- from mintage's own call -------------------------------------------------------------------------------------------


def as_batch(
    inputs: Any, attention_mask: Any, device: torch.device
) -> tuple[Tensor | None, Tensor | None, dict[str, Any]]:
    """Turn ids as people hold them into a tensor and a mask: lists, arrays, what tokenizers or processors return.

    Raises
    ------
    UserError
        They are no rows of integers of one length.
    """
    more: dict[str, Any] = {}
    if isinstance(inputs, Mapping):  # BatchEncoding, BatchFeature
        more = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        attention_mask = inputs.get("attention_mask") if attention_mask is None else attention_mask
        inputs = inputs.get("input_ids")
    ids, mask = _tensor("input_ids", inputs, device), _tensor("attention_mask", attention_mask, device)
    if ids is not None and mask is not None and mask.shape != ids.shape:
        raise UserError(f"attention_mask has shape {tuple(mask.shape)}, input_ids {tuple(ids.shape)}")
    return ids, mask, more


def _tensor(name: str, value: Any, device: torch.device) -> Tensor | None:
    if value is None:
        return None
    try:
        found = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{name} is no rows of numbers of one length; pad them, and pass an attention_mask") from None
    if found.ndim != 2:
        raise UserError(f"{name} has shape {tuple(found.shape)}; expected (batch, length)")
    if name == "input_ids" and found.numel() and (found.is_floating_point() or found.dtype == torch.bool):
        raise UserError(f"input_ids holds {found.dtype}; expected token ids, i.e. integers")
    return found.to(device, torch.long) if name == "input_ids" else found.to(device)


def ids_of(name: str, value: Any) -> list[int]:
    """Turn an end or padding id as people hold it (a number of any kind, several, a tensor) into a list."""
    try:
        found = torch.as_tensor(value).flatten()
        if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool or not len(found):
            raise TypeError
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{name}={value!r} is no token id; pass a number or several") from None
    return found.tolist()


def prepare(model: Any, ids: Tensor | None, settings: dict[str, Any]) -> Request:
    """Have ``model.generate`` prepare a call, without decoding.

    Raises
    ------
    UserError
        It refuses the settings, or they cannot be drafted.
    """
    name, taken = type(model).__name__, {}
    for option in ("custom_generate", "assistant_model", "synced_gpus", "assistant_tokenizer"):
        if settings.get(option) is not None:
            raise UserError(f"{option}= does not go with a drafter, which is the way to decode; leave it out")
    if settings.get("token_healing") or getattr(model.generation_config, "token_healing", False):
        raise UserError("token_healing=True cannot be drafted; heal first: model.heal_tokens(ids, tokenizer)")
    settings = _with_stop_strings(model, settings)

    def take(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor:
        taken["all"] = (input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs)
        return input_ids

    try:
        model.generate(ids, custom_generate=take, **settings)
        arguments = taken["all"]
    except UserError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{name} cannot generate so: {reason}") from error
    return Request.of(model, *arguments)


def _with_stop_strings(model: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Make the criterion of stop strings; transformers loses the tokenizer where a function decodes."""
    settings = dict(settings)
    tokenizer, asked = settings.pop("tokenizer", None), settings.get("generation_config")
    strings = settings.pop("stop_strings", None) or getattr(asked, "stop_strings", None)
    strings = strings or getattr(model.generation_config, "stop_strings", None)
    if not strings:
        return settings
    if tokenizer is None:
        raise UserError(f"stop_strings={strings!r} needs the tokenizer; pass tokenizer=")
    criterion = StopStringCriteria(tokenizer, strings)
    criteria = StoppingCriteriaList([*(settings.get("stopping_criteria") or ()), criterion])
    return settings | {"stop_strings": None, "stopping_criteria": criteria}


def callers_streamer(given: Any) -> tuple[Any, bool]:
    """Return the streamer of a drafter called by ``model.generate``, and whether it still lacks the prompt.

    transformers (5.20 to 5.24) puts the prompt into its `streamer` and then does not hand it to the function that
    decodes; without tokens and an end, whoever reads it would wait forever. A streamer `given` to the function itself
    (``functools.partial(drafter, streamer=...)``) has not had the prompt.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "generate" and frame.f_globals.get("__name__") == "transformers.generation.utils":
            own = frame.f_locals.get("streamer")
            return (own, False) if own is not None else (given, given is not None)
        frame = frame.f_back  # type: ignore[assignment]
    return given, False
