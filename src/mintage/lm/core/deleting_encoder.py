"""T5's encoder with a gate in front of one of its blocks, and the two ways to delete what the gate says.

Not here: gates and compaction (`mintage.lm.core.deletion`), the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.t5.modeling_t5 import T5PreTrainedModel, T5Stack
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from mintage.errors import UserError
from mintage.lm.core.deletion import DeleteGate, GateScore, fixed_gate, hard_delete, random_gate
from mintage.lm.core.mrt5_config import MrT5Config

__all__ = ["DeletingEncoder", "InitialisedAsT5", "ShortenedStates"]


@dataclass
class ShortenedStates(BaseModelOutput):
    """States of an encoder, and what hides some of them from the decoder: a mask of the kept, or the gate itself."""

    cross_mask: Tensor | None = None
    gate: Tensor | None = None
    padding: Tensor | None = None
    kept_index: Tensor | None = None


class InitialisedAsT5(T5PreTrainedModel):
    """A T5 whose fresh weights are drawn as T5's are.

    transformers initialises classes that are not its own otherwise: modules without weights of their own, such as T5's
    attention, are passed over, and their parts keep a deviation of 1 (findings/transformers-t5-subclass-init.sh).
    """

    def _initialize_weights(self, module: Any, is_custom_code: bool = False) -> None:
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        super()._init_weights(module)
        if isinstance(module, GateScore):  # through transformers' functions, which leave loaded weights alone
            init.xavier_uniform_(module.weight)
            init.constant_(module.bias, module.start)


class DeletingEncoder(InitialisedAsT5, T5Stack):
    """T5's encoder with a gate in front of one of its blocks."""

    config: MrT5Config

    def __init__(self, config: MrT5Config) -> None:
        super().__init__(config)
        if config.deletion_type == "scaled_sigmoid":
            self.block[config.delete_gate_layer].delete_gate = DeleteGate(
                config.d_model,
                config.sigmoid_mask_scale,
                config.layer_norm_epsilon,
                norm=config.gate_layer_norm,
                gumbel=config.use_gumbel_noise,
                start=config.gate_bias,
            )

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Int[Tensor, "batch bytes"] | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Float[Tensor, "batch bytes width"] | None = None,
        hard: bool | None = None,
        penalties: list[Tensor] | None = None,
        **kwargs: Any,
    ) -> ShortenedStates:
        """See `MrT5.forward`; `penalties` takes those of the scores behind the gate."""
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("pass input_ids or inputs_embeds, one of the two")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        padding = self._padding(input_ids, attention_mask, hidden)
        cross = (~padding).long()
        mask = create_bidirectional_mask(self.config, hidden, cross)
        hidden, bias, gate, index = self.dropout(hidden), None, None, None
        for number, block in enumerate(self.block):
            if number == self.config.delete_gate_layer and self.config.deletion_type != "none":
                gate, lowest = self._gate(block, hidden, input_ids, padding), torch.finfo(hidden.dtype).min
                if self._is_hard(hard, gate):
                    kept = hard_delete(hidden, gate, self.config.threshold, bias, padding)
                    # what is nothing is zero, and stays so where a row keeps nothing: no batch changes it
                    hidden, index, cross = kept.hidden * kept.mask[..., None], kept.index, kept.mask.long()
                    # in the bias once, and not in a mask that every block adds to it
                    bias, mask = cast(Tensor, kept.bias).masked_fill(~kept.mask[:, None, None], lowest), None
                else:
                    mask = cross = gate.to(hidden.dtype).masked_fill(padding, lowest)[:, None, None]
                if penalties is not None:
                    kwargs["penalties"] = penalties
            hidden, bias, *_ = block(hidden, mask, bias, **kwargs)
        hidden = self.dropout(self.final_layer_norm(hidden))
        return ShortenedStates(last_hidden_state=hidden, cross_mask=cross, gate=gate, padding=padding, kept_index=index)

    def _padding(self, ids: Tensor | None, mask: Tensor | None, hidden: Tensor) -> Bool[Tensor, "batch bytes"]:
        """Say what is padding: 0 in the mask, or ids of it where there is no mask."""
        if mask is None:
            return torch.zeros(hidden.shape[:2], dtype=torch.bool) if ids is None else ids == self.config.pad_token_id
        if mask.shape != hidden.shape[:2]:
            raise UserError(f"attention_mask has shape {tuple(mask.shape)}; pass one of {tuple(hidden.shape[:2])}")
        return mask == 0

    def _gate(self, block: Any, hidden: Tensor, ids: Tensor | None, padding: Tensor) -> Float[Tensor, "batch bytes"]:
        its = self.config
        if its.deletion_type == "scaled_sigmoid":
            return block.delete_gate(hidden, padding)[0]
        if its.deletion_type == "random":
            return random_gate(padding, its.random_deletion_probability, its.sigmoid_mask_scale)
        if ids is None:
            raise UserError("the fixed gate reads separators; pass input_ids, not inputs_embeds")
        return fixed_gate(ids, padding, its.fixed_deletion_amount, its.sigmoid_mask_scale)

    def _is_hard(self, asked: bool | None, gate: Tensor) -> bool:
        """Say how to delete; a batch of the training that would keep nothing is deleted softly."""
        if asked is None and self.training:
            drawn = float(torch.rand(())) < self.config.hard_delete_train_prob
            return drawn and bool((gate > self.config.threshold).any())
        return True if asked is None else asked
