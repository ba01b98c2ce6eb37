"""MrT5: a gate in ByT5's encoder deletes bytes whose content its neighbours have taken up (arXiv 2410.20771).

A `T5ForConditionalGeneration` whose encoder scores every byte before block `delete_gate_layer`. In training deletion is
*soft*: the gate is added to the scores of a byte as a key, in all later blocks and in the decoder. Otherwise it is
*hard*: later blocks and the decoder read shorter rows, by the bytes' original distances. Names of weights and of the
configuration are the authors', so theirs load; so does any T5 or ByT5, with a fresh gate.

    model = MrT5.from_pretrained("byt5-folder", delete_gate_layer=3)
    model.generate(input_ids=ids, max_new_tokens=64)          # deletes hard

Not here: training (`mintage.lm.training.mrt5`), merging of several bytes into one state, the authors' log-sigmoid gate
and rivals that pool.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoConfig, AutoModelForSeq2SeqLM, T5ForConditionalGeneration
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils.generic import can_return_tuple

from mintage.errors import Notice, UserError
from mintage.lm.core.deleting_encoder import DeletingEncoder, InitialisedAsT5, ShortenedStates
from mintage.lm.core.deletion import DeleteGate, deletion_rate, gate_loss
from mintage.lm.core.mrt5_config import MrT5Config
from mintage.lm.core.softmax1 import EAGER1, SDPA1
from mintage.models import KeptModel

__all__ = ["MrT5", "MrT5Config", "MrT5Output"]

_SOFTMAX1 = {None: SDPA1, "sdpa": SDPA1, SDPA1: SDPA1, "eager": EAGER1, EAGER1: EAGER1}


@dataclass
class MrT5Output(Seq2SeqLMOutput):
    """T5's output and what was deleted.

    Parameters
    ----------
    cross_entropy
        The loss without weights of gate and scores.
    gate
        Of every byte, shape (batch, bytes).
    gate_loss, deletion_rate
        Mean gate of the bytes; share of them whose gate is below the threshold.
    kept_index
        Original positions of the states that hard deletion left, shape (batch, N').
    """

    cross_entropy: Tensor | None = None
    gate: Tensor | None = None
    gate_loss: Tensor | None = None
    deletion_rate: Tensor | None = None
    kept_index: Tensor | None = None


class MrT5(KeptModel, InitialisedAsT5, T5ForConditionalGeneration):
    """ByT5 that deletes; what transformers can do with a T5 it can do with this."""

    config_class = MrT5Config
    config: MrT5Config

    def __init__(self, config: MrT5Config) -> None:
        super().__init__(config)
        self.encoder = DeletingEncoder(cast(MrT5Config, self.encoder.config))
        self.post_init()

    @classmethod
    def tiny(cls) -> MrT5:
        """Make a small model with random weights, the same at every call, that keeps some bytes and deletes others."""
        config = MrT5Config(
            vocab_size=384, d_model=32, d_kv=8, num_heads=4, d_ff=48, num_layers=3, num_decoder_layers=2,
            feed_forward_proj="gated-gelu", dropout_rate=0.0, delete_gate_layer=1,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = cls(config).eval()
        assert model.delete_gate is not None
        with torch.no_grad():
            model.delete_gate.feed_forward.weight.mul_(4)
        return model

    @property
    def delete_gate(self) -> DeleteGate | None:
        """The learnt gate."""
        return getattr(self.encoder.block[self.config.delete_gate_layer], "delete_gate", None)

    @classmethod
    def from_pretrained(cls, name: str | Path, *args: Any, **settings: Any) -> Any:
        """Load an MrT5, or a T5 or ByT5, which gets a fresh gate; see `KeptModel` and transformers.

        Fields of `MrT5Config` may be given, e.g. ``delete_gate_layer=2``; a fresh gate stands a quarter up by default.

        Raises
        ------
        UserError
            It is another model, damaged, lacks weights, or its configuration does not hold together.
        """
        try:
            found, _ = MrT5Config.get_config_dict(name)
        except Exception as error:
            raise UserError(f"cannot load {name}: {str(error).strip().partition(chr(10))[0]}") from error
        if found.get("model_type") not in ("mrt5", "t5"):
            raise UserError(f"{name} is a {found.get('model_type') or 'model of no kind'}; pass a T5, ByT5 or MrT5")
        if found["model_type"] == "t5":
            settings.setdefault("delete_gate_layer", max(found.get("num_layers", 6) // 4, 1))
        return super().from_pretrained(name, *args, **settings)

    @classmethod
    def check_loaded(cls, name: str | Path, model: Any, info: Mapping[str, Any]) -> None:
        """Refuse what lacks weights; the gate of a T5 is fresh."""
        found, _ = MrT5Config.get_config_dict(name)
        has_gate = found["model_type"] == "mrt5" and found.get("deletion_type") == "scaled_sigmoid"
        missing = [key for key in info["missing_keys"] if has_gate or ".delete_gate." not in key]
        super().check_loaded(name, model, {"missing_keys": missing})
        if unused := sorted(info["unexpected_keys"]):
            warnings.warn(f"{name} holds weights that MrT5 does not use, e.g. {unused[0]}", Notice, stacklevel=3)

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """Return softmax1's twin of the attention that was asked for, where the configuration has it."""
        if not self.config.use_softmax1:
            return super().get_correct_attn_implementation(requested_attention, is_init_check)
        if requested_attention not in _SOFTMAX1:
            raise UserError(f"softmax1 has no {requested_attention!r}; pass sdpa or eager, or use_softmax1=False")
        return _SOFTMAX1[requested_attention]

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "batch bytes"] | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Int[Tensor, "batch written"] | None = None,
        encoder_outputs: Any = None,
        labels: Int[Tensor, "batch written"] | None = None,
        hard: bool | None = None,
        gate_weight: float | int = 0.0,
        **kwargs: Any,
    ) -> MrT5Output:
        """Read and write as T5 does; the loss, in training, is cross entropy + alpha L_G + beta L_S.

        Parameters
        ----------
        attention_mask
            0 for padding; default: ids of padding are.
        hard
            Whether deletion is hard; default: not in training (but for ``hard_delete_train_prob`` of the batches).
        gate_weight
            alpha, the weight of the mean gate.
        **kwargs
            As T5's.

        Raises
        ------
        UserError
            Every byte of the batch is deleted, or a mask does not fit.
        """
        beta = self.config.scores_loss_coeff if self.training and labels is not None else 0.0
        penalties: list[Tensor] | None = [] if beta else None
        embeds = kwargs.pop("inputs_embeds", None)
        if encoder_outputs is None:
            shown = {name: kwargs[name] for name in ("output_attentions", "output_hidden_states") if name in kwargs}
            encoder_outputs = self.encoder(input_ids, attention_mask, embeds, hard, penalties, **shown)
        cross = encoder_outputs.cross_mask if isinstance(encoder_outputs, ShortenedStates) else attention_mask
        kwargs |= {} if penalties is None else {"penalties": penalties}
        given = {"attention_mask": cross, "decoder_input_ids": decoder_input_ids, "labels": labels, "return_dict": True}
        out: Any = super().forward(encoder_outputs=cast(Any, encoder_outputs), **given, **kwargs)
        found: dict[str, Any] = {"cross_entropy": out.loss}
        gate, padding = (cast(Any, getattr(encoder_outputs, name, None)) for name in ("gate", "padding"))
        if gate is not None:
            found |= {"gate": gate, "kept_index": encoder_outputs.kept_index, "gate_loss": gate_loss(gate, padding)}
            found["deletion_rate"] = deletion_rate(gate, padding, self.config.threshold)
            if self.training and labels is not None:
                out.loss = out.loss + gate_weight * found["gate_loss"]
        if penalties:
            out.loss = out.loss + beta * torch.stack(penalties).mean()
        return MrT5Output(**out, **found)


AutoConfig.register("mrt5", MrT5Config, exist_ok=True)
AutoModelForSeq2SeqLM.register(MrT5Config, MrT5, exist_ok=True)
