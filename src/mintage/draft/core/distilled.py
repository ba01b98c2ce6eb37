"""A small draft model cut from its target: a few blocks of its own, the target's embeddings, a head of frequent tokens.

The embeddings are the target's own tensor, and the head is the target's rows of a few thousand tokens: the whole head
would cost a two-block model more than its blocks. Every other token gets the logit -inf, probability 0, so it is never
drafted; verification keeps the target's distribution all the same. To everyone else it is an ordinary Hugging Face
causal LM with the target's vocabulary: to this job's drafters as to ``model.generate(..., assistant_model=...)``.

Not here: how it is taught (`mintage.draft.training.distilled`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from mintage.errors import UserError
from mintage.models import EMBEDDED, CausalLM, load_causal_lm, rounded_copy
from mintage.weights import Artefact, shipped

__all__ = [
    "DistilledDrafter",
    "DraftModel",
    "FrequentTokenHead",
    "cut_drafter",
    "describe_shapes",
    "load_draft_model",
    "load_drafter",
    "shipped_drafter",
]

CUTTABLE = ("llama", "mistral", "qwen2", "qwen3")
"""Values of ``config.model_type`` whose models are ``model.layers``, ``model.norm`` and ``lm_head``, and no more."""

_FORMAT = "mintage drafter 2"
_SHIPPED_FOR = (EMBEDDED, "HuggingFaceTB/SmolLM2-135M-Instruct")


class FrequentTokenHead(nn.Module):
    """Output layer that knows some tokens: their logits are the table's, all others are -inf.

    Parameters
    ----------
    table
        The target's output embeddings; kept as `weight`, shared.
    tokens
        Ids of the tokens it knows.
    """

    def __init__(self, table: nn.Parameter, tokens: Int[Tensor, " known"]) -> None:
        super().__init__()
        self.weight = table
        tokens = tokens.to(table.device, torch.long)
        self.tokens: Tensor
        self.rows: Tensor
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("rows", table.detach()[tokens], persistent=False)  # in one piece, to be read fast

    def forward(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch vocabulary"]:
        """Return logits over the whole vocabulary."""
        known = nn.functional.linear(hidden, self.rows)
        logits = known.new_full((*known.shape[:-1], self.weight.shape[0]), -torch.inf)
        return logits.index_copy_(-1, self.tokens, known)


def describe_shapes(model: Any) -> str:
    """Name the shapes that a drafter must share with its target."""
    config = model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    return (
        f"{config.model_type}, {config.num_hidden_layers} layers, width {config.hidden_size}, "
        f"{heads} heads, {getattr(config, 'num_key_value_heads', heads)} key-value heads, "
        f"MLP {config.intermediate_size}, vocabulary {config.vocab_size}"
    )


def cut_drafter(model: Any, layers: Sequence[int], tokens: Int[Tensor, " known"]) -> PreTrainedModel:
    """Copy some blocks of `model` into a model of their own; embeddings are shared, the target stays as it is.

    Parameters
    ----------
    model
        The target.
    layers
        Which blocks, in order; negative numbers count from the end.
    tokens
        Ids that the head knows, each once.

    Raises
    ------
    UserError
        The target is of another kind of architecture, has no such block, or a token is not in its vocabulary.
    """
    _check_kind(model)
    inner, head = model.model, model.get_output_embeddings()
    depth, vocabulary = len(inner.layers), head.weight.shape[0]
    if not layers or any(not -depth <= layer < depth for layer in layers):
        raise UserError(f"layers={list(layers)}: name at least one of the target's {depth} blocks, e.g. 0 and -1")
    if (
        not len(tokens)
        or len(tokens.unique()) < len(tokens)
        or not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary
    ):
        raise UserError(f"the head's tokens must be different ids below {vocabulary}; make the drafter again")
    shared = {id(p): p for part in (model.get_input_embeddings(), head) for p in part.parameters()}
    drafter: Any = copy.deepcopy(model, memo={**shared, id(inner.layers): nn.ModuleList()})
    for number, layer in enumerate(layers):
        block: Any = copy.deepcopy(inner.layers[layer])
        block.self_attn.layer_idx = number
        drafter.model.layers.append(block)
    drafter.config.num_hidden_layers = len(layers)
    if kinds := getattr(drafter.config, "layer_types", None):
        drafter.config.layer_types = [kinds[layer] for layer in layers]
    drafter.lm_head = FrequentTokenHead(head.weight, tokens)
    return drafter.eval()


def _check_kind(model: Any) -> None:
    if model.config.model_type not in CUTTABLE:
        raise UserError(f"a drafter cannot be cut from {type(model).__name__}; supported: {', '.join(CUTTABLE)}")


# -- files ---------------------------------------------------------------------------------------------------------


def shipped_drafter() -> Path:
    """Return the drafter that ships with mintage, for the embedded model."""
    return shipped("drafter", EMBEDDED)


@dataclass(frozen=True)
class DistilledDrafter:
    """A drafter from `cut_drafter`, what it was cut from, and how it was taught."""

    model: PreTrainedModel
    target: CausalLM
    notes: Mapping[str, str] = field(default_factory=dict)

    def save(self, path: str | Path, notes: Mapping[str, str] | None = None) -> None:
        """Write its own tensors in bfloat16: blocks, last norm and the list of tokens; not the embeddings."""
        model: Any = self.model
        tensors = {name: t.to(torch.bfloat16) for name, t in _own_tensors(model).items()}
        tensors["tokens"] = model.lm_head.tokens.to(torch.int32)
        sizes = {"target": self.target.name, "shapes": describe_shapes(self.target.model)}
        Artefact(tensors, sizes, notes={**self.notes, **(notes or {})}).save(path, _FORMAT)


def _own_tensors(drafter: Any) -> dict[str, Tensor]:
    own = {f"layers.{name}": t for name, t in drafter.model.layers.state_dict(keep_vars=True).items()}
    return own | {f"norm.{name}": t for name, t in drafter.model.norm.state_dict(keep_vars=True).items()}


def load_drafter(target: CausalLM, path: str | Path | None = None) -> PreTrainedModel:
    """Load a drafter for `target`, in its dtype and on its device; embeddings are the target's own tensors.

    Parameters
    ----------
    target
        The model to draft for.
    path
        File of `DistilledDrafter.save`; default: the one that ships with mintage, for the embedded model.

    Raises
    ------
    UserError
        The file is missing, damaged or no drafter, or was made for another model.
    """
    path = shipped_drafter() if path is None else Path(path)
    _check_kind(target.model)
    again = f"mintage train drafter --out {path}"
    artefact = Artefact.load(path, _FORMAT, again)
    wanted, mine = artefact.sizes.get("shapes"), describe_shapes(target.model)
    if wanted != mine:
        raise UserError(
            f"{path} drafts for {artefact.sizes.get('target')} ({wanted}), not for {target.name} ({mine}); "
            "make another with mintage train drafter"
        )
    tensors = dict(artefact.tensors)
    tokens = tensors.pop("tokens", torch.zeros(0))
    per_block = len(target.model.model.layers[0].state_dict())
    count = sum(name.startswith("layers.") for name in tensors) // per_block
    if tokens.dtype != torch.int32 or tokens.ndim != 1 or not 1 <= count <= len(target.model.model.layers):
        raise UserError(f"{path} lacks blocks or the list of its tokens; make it with: {again}")
    try:
        drafter: Any = cut_drafter(target.model, range(count), tokens)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    own = _own_tensors(drafter)
    if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in tensors.items()}:
        raise UserError(f"{path} holds other tensors than a drafter for {target.name}; make it again")
    for name, tensor in tensors.items():
        own[name].data.copy_(tensor)
    return drafter


# -- which draft model ---------------------------------------------------------------------------------------------


class DraftModel(NamedTuple):
    """A draft model, and what to call it in a table."""

    model: PreTrainedModel
    label: str


def load_draft_model(spec: str | None, target: CausalLM) -> DraftModel:
    """Load what ``--draft-model`` names, in the target's dtype and on its device.

    Parameters
    ----------
    spec
        A drafter's ``.safetensors`` file; ``"rounded"`` or ``"rounded:BITS"`` for a copy of the target with rounded
        weights (4 bits); else a folder or hub id. None: the shipped drafter for the embedded model, a rounded copy for
        any other.
    target
        The model to draft for.

    Raises
    ------
    UserError
        Nothing of that name can be loaded, or it was made for another model.
    """
    if spec is None:
        spec = str(shipped_drafter()) if target.name in _SHIPPED_FOR and shipped_drafter().exists() else "rounded"
    if spec == str(shipped_drafter()):
        return DraftModel(load_drafter(target), "shipped drafter")
    if spec == "rounded" or spec.startswith("rounded:"):
        bits = spec.removeprefix("rounded").removeprefix(":") or "4"
        if not bits.isdigit():
            raise UserError(f"--draft-model {spec!r}: expected rounded:BITS, e.g. rounded:4")
        return DraftModel(rounded_copy(target.model, bits=int(bits)), f"{bits}-bit-rounded copy")
    if spec.endswith(".safetensors"):
        return DraftModel(load_drafter(target, spec), spec)
    model = load_causal_lm(spec, dtype=target.model.dtype, device=target.model.device).model
    return DraftModel(model, spec)
