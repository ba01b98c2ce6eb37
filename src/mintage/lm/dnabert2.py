"""DNABERT-2: a BERT of DNA over BPE tokens, with ALiBi in place of position embeddings (arXiv 2306.15006).

The encoder that ships with the published checkpoint (MosaicBERT's), in plain torch: its weights load by name, without
remote code and without its flash attention, which fails in current Triton. Reads rows of any length.

    model = DNABERT2ForMaskedLM.from_pretrained("DNABERT-2-117M")        # a folder, or an id of the hub
    states = model.bert(**tokenizer("ACGTTGCA", return_tensors="pt")).last_hidden_state

Reading the other strand gives other states: train on both (`mintage train dnabert2 --reverse 0.5`). For some tasks
k-mers or single bases are better than BPE; compare (`mintage bench dnabert2`).

Not here: layers (`mintage.lm.core.alibi_encoder`), tokens (`mintage.lm.core.dna_tokens`), training
(`mintage.lm.training.dnabert2`, `...dna_classifier`), attention weights as an output.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification
from transformers.utils.generic import can_return_tuple

from mintage.errors import UserError
from mintage.lm.core.alibi_encoder import AlibiEncoder, DNABERT2Config, DNAEmbeddings, MaskedLMHead, Pooler
from mintage.lm.core.dna_pretrained import DNAOutput, DNAPreTrained, check_ids

__all__ = ["DNABERT2", "DNABERT2Config", "DNABERT2ForMaskedLM", "DNABERT2ForSequenceClassification"]


class DNABERT2(DNAPreTrained):
    """The encoder, with a pooler where it is to classify."""

    told_when_fresh = False

    def __init__(self, config: DNABERT2Config, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = DNAEmbeddings(config)
        self.encoder = AlibiEncoder(config)
        self.pooler = Pooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of tokens."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the table of tokens."""
        self.embeddings.word_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Int[Tensor, "batch length"] | None = None,
        inputs_embeds: Float[Tensor, "batch length width"] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> DNAOutput:
        """Read rows.

        Parameters
        ----------
        input_ids, inputs_embeds
            Tokens, or vectors in place of them.
        attention_mask
            1 for tokens, 0 for filling, wherever it is; default all tokens.
        token_type_ids
            Segments; default 0.

        Raises
        ------
        UserError
            Ids, mask or segments do not fit, or attention weights are asked for: they are never made.
        """
        if output_attentions:
            raise UserError("attention weights are never made here; leave output_attentions out")
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("pass input_ids or inputs_embeds, and not both")
        if input_ids is not None:
            check_ids(input_ids, self.config.vocab_size, "token")
            inputs_embeds = self.embeddings.word_embeddings(input_ids)
        assert inputs_embeds is not None
        shape = inputs_embeds.shape[:2]
        mask = torch.ones(shape, device=inputs_embeds.device) if attention_mask is None else attention_mask
        for name, given in (("attention_mask", mask), ("token_type_ids", token_type_ids)):
            if given is not None and given.shape != shape:
                raise UserError(f"{name} has shape {tuple(given.shape)}, the rows have {tuple(shape)}")
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise UserError("attention_mask holds other values than 0 and 1")
        if token_type_ids is not None:
            check_ids(token_type_ids, self.config.type_vocab_size, "segment")
        tokens = mask == 1
        every = bool(output_hidden_states or self.config.output_hidden_states)
        states = self.encoder(self.embeddings(inputs_embeds, token_type_ids), tokens, every)
        pooled = None if self.pooler is None else self.pooler(states[-1], tokens)
        return DNAOutput(
            last_hidden_state=states[-1], pooler_output=pooled, hidden_states=tuple(states) if every else None
        )


class DNABERT2ForMaskedLM(DNAPreTrained):
    """Predicts what masked tokens were."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"
    }

    def __init__(self, config: DNABERT2Config) -> None:
        super().__init__(config)
        self.bert = DNABERT2(config, add_pooling_layer=False)
        self.cls = MaskedLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return the layer that is tied to the table of tokens."""
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Replace it."""
        self.cls.predictions.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Tensor | None = None,
        labels: Int[Tensor, "batch length"] | None = None,
        labelled_only: bool = False,
        **kwargs: Any,
    ) -> DNAOutput:
        """Read rows; the loss is the mean over tokens whose label is not -100.

        Parameters
        ----------
        labelled_only
            Give the logits of labelled tokens alone, shape (labelled, vocabulary): a tenth of the work.
        **kwargs
            As `DNABERT2.forward`'s.
        """
        out: Any = self.bert(input_ids, attention_mask, **kwargs)
        states = out.last_hidden_state
        if labels is not None:
            chosen = labels != -100
            if not bool(chosen.any()):
                raise UserError("no token has a label; mask some")
            check_ids(labels[chosen], self.config.vocab_size, "label")
            if labelled_only:
                states, labels = states[chosen], labels[chosen]
        logits = self.cls(states)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())
        return DNAOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)


class DNABERT2ForSequenceClassification(DNAPreTrained):
    """Tells to which class a sequence belongs."""

    def __init__(self, config: DNABERT2Config) -> None:
        super().__init__(config)
        self.bert = DNABERT2(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Tensor | None = None,
        labels: Int[Tensor, " batch"] | None = None,
        **kwargs: Any,
    ) -> DNAOutput:
        """Read rows; the loss is the mean cross entropy of their classes. `kwargs` are `DNABERT2.forward`'s."""
        out: Any = self.bert(input_ids, attention_mask, **kwargs)
        logits = self.classifier(self.dropout(out.pooler_output))
        if labels is not None:
            check_ids(labels, self.classifier.out_features, "class")
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return DNAOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)


AutoConfig.register("dnabert2", DNABERT2Config, exist_ok=True)
for auto, made in (
    (AutoModel, DNABERT2),
    (AutoModelForMaskedLM, DNABERT2ForMaskedLM),
    (AutoModelForSequenceClassification, DNABERT2ForSequenceClassification),
):
    auto.register(DNABERT2Config, made, exist_ok=True)
