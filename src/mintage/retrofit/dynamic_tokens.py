"""Dynamic tokenization: subwords that are neighbours again and again within a batch become one token, there and then.

Merging is byte-pair encoding over the tokens of a batch, started anew for every batch: count adjacent pairs, join the
most frequent one everywhere, repeat. The joined tokens are not in the vocabulary; an `EmbeddingTransfer` (a composer
of their parts, or zett's hypernetwork) makes their input embeddings, and the unchanged model runs on a shorter
sequence.

Use::

    dynamic = DynamicTokens(reduction=0.5)(load_causal_lm())
    dynamic.generate(["Die Donaudampfschifffahrtsgesellschaft"], max_new_tokens=20)
    model.generate(**dynamic.embed(texts))  # the same by hand

Over 200 lines: a model that reads merged tokens has the verbs of any model. Not here: merging (`core.merging`,
`core.dynamic_tokenizer`); making embeddings (`core.composer`, `core.embeddings`); tokens of the model's *answers*,
which are the original ones (`core.large_vocabulary` writes in longer ones); training of adapters, for which
the authors draw another reduction for every batch (pass it to `embed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.errors import UserError
from mintage.models import cache_of, with_cache
from mintage.options import check_fields, option
from mintage.retrofit.core.dynamic_tokenizer import DynamicBatch, DynamicTokenizer, Token
from mintage.retrofit.core.embedding_table import table_for
from mintage.retrofit.core.embeddings import Parts, Provider
from mintage.retrofit.core.merging import Boundary
from mintage.retrofit.core.next_token import with_croppable_cache

__all__ = ["DynamicModel", "DynamicTokens", "Prefilled"]


@dataclass(frozen=True, kw_only=True)
class DynamicTokens:
    """Merge tokens batch by batch; `DynamicTokens(...)(lm)` gives a `DynamicModel`.

    Who makes embeddings: ``composer`` (trained, shipped for SmolLM2-135M-Instruct), ``mean``, ``sum``, ``first``,
    ``last``, ``zett``, the file of a composer, or an `EmbeddingTransfer`; ``auto`` takes the composer where one was
    made for the model, else the mean. (The authors predict the embeddings of tokens in the vocabulary, too, with a
    hypernetwork that was trained to: ``originals=False``.)
    """

    boundary: Boundary = option("pretokens", "What a merged token may not cross; sentence is nothing.")
    reduction: float | int | None = option(0.5, "Share of what can be saved; 1 joins all.", least=0, most=1)
    n_merges: int | None = option(None, "Instead: the number of merges per batch.", least=0)
    provider: str | Provider = option("auto", "What makes embeddings.")
    originals: bool = option(True, "Keep the embeddings of tokens that are in the vocabulary.")
    cache: int = option(5000, "Rows of predicted embeddings that are kept; the least recently used go first.", least=1)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, model: Any, tokenizer: Any = None) -> DynamicModel:
        """Let a model read merged tokens; the model itself stays as it is.

        Parameters
        ----------
        model
            A `mintage.models.CausalLM`, or a model of transformers: a causal LM or an encoder.
        tokenizer
            Its fast tokenizer, where `model` does not bring it.
        """
        return DynamicModel(self, model, tokenizer)

    @property
    def amount(self) -> dict[str, Any]:
        """How much to merge, as `DynamicTokenizer.encode_batch` takes it."""
        return {"reduction": self.reduction} if self.n_merges is None else {"n_merges": self.n_merges}

    @classmethod
    def tiny(cls) -> DynamicTokens:
        """Make an instance for the laws."""
        return cls(provider="mean", cache=64)


class Prefilled(NamedTuple):
    """A prompt that was read: go on with ``model(next_id, **with_cache(model, read.cache), attention_mask=...)``.

    Attributes
    ----------
    logits
        Of the next original token, [texts, vocabulary].
    cache, attention_mask
        What the model keeps of it.
    batch
        How it was merged.
    """

    logits: Float[Tensor, "texts vocabulary"]
    cache: Any
    attention_mask: Int[Tensor, "texts tokens"]
    batch: DynamicBatch


class DynamicModel:
    """A model behind a tokenizer that merges; made by `DynamicTokens`.

    Texts go in merged; answers come out in the original vocabulary.

    Attributes
    ----------
    model, tokenizer
        As given.
    merger
        The `DynamicTokenizer`.
    table
        The `EmbeddingTable`.

    Raises
    ------
    UserError
        The tokenizer's tokens cannot be read as bytes, or the provider does not go with the model.
    """

    def __init__(self, method: DynamicTokens, model: Any, tokenizer: Any = None) -> None:
        if tokenizer is None:
            model, tokenizer = getattr(model, "model", model), getattr(model, "tokenizer", None)
        if tokenizer is None:
            raise UserError("no tokenizer; pass a CausalLM, or the model and its tokenizer")
        self.method, self.model, self.tokenizer = method, model, tokenizer
        self.merger = DynamicTokenizer(tokenizer, method.boundary)
        self._embedding = model.get_input_embeddings()
        source = Parts(model, self.merger.vocabulary)
        from mintage.retrofit import make_provider  # who makes embeddings is found by name, not read here

        self.provider = make_provider(method.provider, source)
        self.table = table_for(model, self.provider, source, method.cache)

    # -- texts to embeddings --

    @torch.no_grad()
    def embed(
        self,
        texts: Sequence[str] | DynamicBatch,
        *,
        max_length: int | None = None,
        special_tokens: bool = True,
        **amount: Any,
    ) -> dict[str, Tensor]:
        """Return ``inputs_embeds`` and ``attention_mask``, for the model or its ``generate``.

        Causal models are padded on the left, encoders on the right.

        Parameters
        ----------
        texts
            A batch of texts, or what `DynamicTokenizer` made of one.
        max_length
            Cut every text after this many original tokens.
        special_tokens
            Whether the tokenizer adds its special tokens.
        **amount
            ``reduction``, ``n_merges`` or ``merges`` for this batch, instead of the method's.
        """
        batch = texts
        if not isinstance(batch, DynamicBatch):
            batch = self.merger.encode_batch(
                batch, max_length=max_length, special_tokens=special_tokens, **(amount or self.method.amount)
            )
        if not all(batch.tokens):
            raise UserError("a text of the batch has no tokens; leave empty texts out")
        rows = self._rows(batch.unique)
        width = max(map(len, batch.tokens))
        left = not self._is_encoder
        places = torch.zeros(len(batch.tokens), width, dtype=torch.long)
        mask = torch.zeros_like(places)
        for text, tokens in enumerate(batch.tokens):
            where = slice(width - len(tokens), None) if left else slice(len(tokens))
            places[text, where], mask[text, where] = torch.tensor(tokens), 1
        return {"inputs_embeds": rows[places.to(rows.device)], "attention_mask": mask.to(rows.device)}

    def _rows(self, unique: Sequence[Token]) -> Float[Tensor, "tokens width"]:
        """Embeddings of the distinct tokens of a batch."""
        weight = self._embedding.weight
        kept = [t.id is not None and (self.method.originals or not t.surface) for t in unique]
        rows = weight.new_empty(len(unique), weight.shape[1])
        old = [place for place, keeps in enumerate(kept) if keeps]
        new = [place for place, keeps in enumerate(kept) if not keeps]
        if old:
            rows[old] = self._embedding(torch.tensor([unique[place].id for place in old], device=weight.device))
        if new:
            rows[new] = self.table.rows[self.table.places([unique[place].surface for place in new])]
        return rows

    @property
    def _is_encoder(self) -> bool:
        return self.model.get_output_embeddings() is None

    # -- causal models --

    @torch.no_grad()
    def prefill(self, texts: Sequence[str] | DynamicBatch, **settings: Any) -> Prefilled:
        """Read prompts in merged tokens.

        Raises
        ------
        UserError
            The model is an encoder.
        """
        self._must_be_causal("prefill")
        batch = texts if isinstance(texts, DynamicBatch) else self._encode(texts, settings)
        inputs, cache = self.embed(batch), with_croppable_cache(self.model)
        out = self.model(**inputs, **_positions(inputs), **cache, use_cache=True, logits_to_keep=1)
        return Prefilled(out.logits[:, -1], cache_of(out), inputs["attention_mask"], batch)

    @torch.no_grad()
    def generate(self, texts: Sequence[str] | DynamicBatch, **settings: Any) -> list[str]:
        """Read prompts in merged tokens and answer in original ones.

        Parameters
        ----------
        texts
            Prompts as they are, or what `DynamicTokenizer.merge_ids` made of a chat template's tokens.
        **settings
            Those of `embed`, and those of the model's ``generate``, e.g. ``max_new_tokens``.
        """
        self._must_be_causal("generate")
        batch = texts if isinstance(texts, DynamicBatch) else self._encode(texts, settings)
        out = self.model.generate(**self.embed(batch), **settings)
        return self.tokenizer.batch_decode(out, skip_special_tokens=True)

    @torch.no_grad()
    def logprobs(self, prompt: str, answers: Sequence[str], **settings: Any) -> list[float]:
        """Return the log-probability of each answer, in original tokens, after a prompt in merged ones.

        Raises
        ------
        UserError
            An answer has no tokens, or the model is an encoder.
        """
        read = self.prefill([prompt], **settings)
        first, found = read.logits[0].float().log_softmax(-1), []
        for answer in answers:
            ids = self.tokenizer(answer, add_special_tokens=False, return_tensors="pt")["input_ids"].to(first.device)
            if not ids.numel():
                raise UserError("an answer is empty; pass some text for each")
            found.append(float(first[ids[0, 0]]))
            if ids.shape[1] > 1:
                rest = self._after(read, ids[:, :-1]).float().log_softmax(-1)
                found[-1] += float(rest.gather(-1, ids[0, 1:, None]).sum())
        return found

    def _after(self, read: Prefilled, ids: Int[Tensor, "1 tokens"]) -> Float[Tensor, "tokens vocabulary"]:
        """Logits behind each token of an answer; what was read of the prompt stays as it is."""
        if not with_croppable_cache(self.model):
            rows = torch.cat([self.embed(read.batch)["inputs_embeds"], self._embedding(ids)], 1)
            return self.model(inputs_embeds=rows, use_cache=False, logits_to_keep=ids.shape[1]).logits[0]
        out = self.model(ids, **with_cache(self.model, read.cache), use_cache=True)
        read.cache.crop(-ids.shape[1])
        return out.logits[0]

    # -- encoders --

    @torch.no_grad()
    def encode(self, texts: Sequence[str], *, batch_size: int = 32, **settings: Any) -> Float[Tensor, "texts width"]:
        """Return the mean of each text's last hidden states, of length 1, as sentence encoders do.

        Batches are taken in the order given: what is merged depends on it.
        """
        if isinstance(texts, str) or not len(texts):
            raise UserError("a batch is a list of at least one text; pass [text]")
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}; pass at least 1, e.g. 32")
        batches = (texts[first : first + batch_size] for first in range(0, len(texts), batch_size))
        return torch.cat([self.pooled(self._encode(batch, dict(settings))) for batch in batches])

    @torch.no_grad()
    def pooled(self, batch: DynamicBatch) -> Float[Tensor, "texts width"]:
        """Return what `encode` does, for a batch that is merged already."""
        inputs = self.embed(batch)
        positions = {} if self._is_encoder else _positions(inputs)
        states = self.model.base_model(**inputs, **positions).last_hidden_state
        mask = inputs["attention_mask"][..., None].to(states)
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)

    # -- parts --

    def _encode(self, texts: Sequence[str], settings: dict[str, Any]) -> DynamicBatch:
        """Merge texts; settings of merging are taken out of `settings`."""
        amount = {k: settings.pop(k) for k in ("reduction", "n_merges", "merges") if k in settings}
        rest = {k: settings.pop(k) for k in ("max_length", "special_tokens") if k in settings}
        return self.merger.encode_batch(texts, **(amount or self.method.amount), **rest)

    def _must_be_causal(self, what: str) -> None:
        if self._is_encoder:
            raise UserError(f"{type(self.model).__name__} is an encoder, it cannot {what}; use encode(texts)")


def _positions(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Positions that padding on the left does not move."""
    return {"position_ids": (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)}
