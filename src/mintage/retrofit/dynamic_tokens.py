"""Dynamic tokenization: subwords that are neighbours again and again within a batch become one token, there and then.

Merging is byte-pair encoding over the tokens of a batch, started anew for every batch: count adjacent pairs, join the
most frequent one everywhere, repeat. The joined tokens are not in the vocabulary; an `EmbeddingTransfer` (a composer
of their parts, or zett's hypernetwork) makes their input embeddings, and the unchanged model runs on a shorter
sequence.

Use::

    dynamic = DynamicTokens(reduction=0.5)(load_causal_lm())
    dynamic.generate(["Die Donaudampfschifffahrtsgesellschaft"], max_new_tokens=20)
    model.generate(**dynamic.embed(texts))  # the same by hand

Not here: making embeddings (`core.composer`, `core.transfer`); tokens of the model's *answers*,
which are the original ones (`core.large_vocabulary` writes in longer ones); training of adapters, for which
the authors draw another reduction for every batch (pass it to `embed`).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.errors import UserError
from mintage.retrofit.core.composer import Parts, Provider, make_provider
from mintage.retrofit.core.merging import Boundary, DynamicBatch, DynamicTokenizer, Token

__all__ = ["DynamicModel", "DynamicTokens", "EmbeddingTable", "Prefilled", "table_for"]


# -- embeddings --------------------------------------------------------------------------------------------------------


class EmbeddingTable:
    """Rows of tokens, made when first needed, in a matrix of fixed size from which the least recently used go first.

    Parameters
    ----------
    make
        The rows of tokens given as bytes, [tokens, width]; a row may not depend on the others asked for with it.
    width
        Of a row.
    capacity
        Rows held; at least the distinct new tokens of a batch.

    Attributes
    ----------
    made, seconds
        Rows made so far, and the time that took.
    """

    def __init__(
        self,
        make: Callable[[Sequence[bytes]], Float[Tensor, "tokens width"]],
        width: int,
        capacity: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if capacity < 1:
            raise UserError(f"cache={capacity} rows; pass at least 1, e.g. 5000")
        self.rows = torch.zeros(capacity, width, dtype=dtype, device=device)
        self._make = make
        self._places: OrderedDict[bytes, int] = OrderedDict()  # the least recently used first
        self.made, self.seconds = 0, 0.0

    def __contains__(self, token: bytes) -> bool:
        return token in self._places

    def forget(self) -> None:
        """Drop all rows."""
        self._places.clear()

    def places(self, tokens: Sequence[bytes]) -> Int[Tensor, " tokens"]:
        """Return where in `rows` the tokens of a batch stand, making those that are missing.

        Raises
        ------
        UserError
            The batch has more distinct tokens than there are rows.
        """
        wanted, capacity = dict.fromkeys(tokens), len(self.rows)
        if len(wanted) > capacity:
            raise UserError(f"cache={capacity} rows, but this batch has {len(wanted)} new tokens; pass a larger cache")
        missing = []
        for token in wanted:  # what the batch needs moves to the end, out of reach
            if token in self._places:
                self._places.move_to_end(token)
            else:
                missing.append(token)
        if missing:
            began = time.perf_counter()
            rows = self._make(missing)
            free = range(len(self._places), min(len(self._places) + len(missing), capacity))
            taken = [*free, *(self._places.popitem(last=False)[1] for _ in range(len(missing) - len(free)))]
            self.rows[taken] = rows.to(self.rows)
            self._places.update(zip(missing, taken, strict=True))
            self.made += len(missing)
            self.seconds += time.perf_counter() - began
        return torch.tensor([self._places[token] for token in tokens], dtype=torch.long, device=self.rows.device)


def table_for(model: Any, provider: Provider, source: Parts, capacity: int) -> EmbeddingTable:
    """Make a table of the input embeddings that a provider makes for a model."""
    embedding = model.get_input_embeddings()
    scale = float(getattr(embedding, "embed_scale", 1.0))  # Gemma scales what it looks up
    weight = embedding.weight

    def make(tokens: Sequence[bytes]) -> Tensor:
        return provider.rows(source, tokens).input.to(weight) * scale

    return EmbeddingTable(make, weight.shape[1], capacity, dtype=weight.dtype, device=weight.device)


# -- a model that reads merged tokens ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DynamicTokens:
    """Merge tokens batch by batch; `DynamicTokens(...)(lm)` gives a `DynamicModel`.

    Parameters
    ----------
    boundary
        What a merged token may not cross: ``pretokens`` (words as the pre-tokenizer cuts them), ``word`` (white
        space), ``word_hyphen``, ``sentence`` (nothing).
    reduction
        Share of what can be saved at this boundary; 1 is about one token per word.
    n_merges
        Instead: the number of merges per batch.
    provider
        What makes embeddings: ``composer`` (trained, shipped for SmolLM2-135M-Instruct), ``mean``, ``sum``, ``first``,
        ``last``, ``zett``, the file of a composer, or an `EmbeddingTransfer`; ``auto`` takes the composer where one
        was made for the model, else the mean of the parts.
    originals
        Keep the embeddings of tokens that are in the vocabulary. (The authors predict these, too, with a hypernetwork
        that was trained to.)
    cache
        Rows of predicted embeddings that are kept, the least recently used go first.
    """

    boundary: Boundary = "pretokens"
    reduction: float | int | None = 0.5
    n_merges: int | None = None
    provider: str | Provider = "auto"
    originals: bool = True
    cache: int = 5000

    def __post_init__(self) -> None:
        if self.reduction is not None and not 0 <= self.reduction <= 1:
            raise UserError(f"reduction={self.reduction} is outside [0, 1]; 1 joins all that may be joined, 0 nothing")
        if self.n_merges is not None and self.n_merges < 0:
            raise UserError(f"n_merges={self.n_merges} is negative; pass 0 for the base tokenization, or more")
        if self.cache < 1:
            raise UserError(f"cache={self.cache} rows; pass at least 1, e.g. 5000")

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
    """A prompt that was read: go on with ``model(input_ids=next_id, past_key_values=..., attention_mask=...)``.

    Attributes
    ----------
    logits
        Of the next original token, [texts, vocabulary].
    past_key_values, attention_mask
        What the model keeps of it.
    batch
        How it was merged.
    """

    logits: Float[Tensor, "texts vocabulary"]
    past_key_values: Any
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
        inputs = self.embed(batch)
        out = self.model(**inputs, **_positions(inputs), use_cache=True, logits_to_keep=1)
        return Prefilled(out.logits[:, -1], out.past_key_values, inputs["attention_mask"], batch)

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
            total = first[ids[0, 0]]
            if ids.shape[1] > 1:
                rest = self.model(ids[:, :-1], past_key_values=read.past_key_values, use_cache=True).logits[0]
                total = total + rest.float().log_softmax(-1).gather(-1, ids[0, 1:, None]).sum()
                read.past_key_values.crop(1 - ids.shape[1])  # what this answer added
            found.append(float(total))
        return found

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
