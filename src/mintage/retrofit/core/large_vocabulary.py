"""Write in longer tokens: a vocabulary of up to a million rows, searched by inner product instead of multiplied.

New tokens are frequent words of a corpus, or what byte-pair encoding makes of the model's own tokens; an
`EmbeddingTransfer` gives each an input and an output embedding. A step looks up a few candidates whose output
embeddings point along the last hidden state, scores these exactly, draws one, and feeds its input embedding back.

Use::

    words = extended_vocabulary(lm.tokenizer, Corpus("wiki.txt"), 100_000)
    large = LargeVocabulary(lm, words, index="ivf")
    large.generate("The quick brown", max_new_tokens=20)

The authors normalise queries and rows and so search by cosine, which can miss rows of large norm; here it is the inner
product. A distribution over a few candidates is a truncated one: do not take perplexities from it.

Not here: making embeddings (`core.composer`, `core.transfer`); the authors' index (ScaNN),
whose place faiss takes; batches of prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.data import count_words
from mintage.errors import UserError, did_you_mean, missing_extra
from mintage.models import CausalLM, cache_of, with_cache
from mintage.options import check_literals
from mintage.progress import Progress, silent
from mintage.retrofit.core.dynamic_tokenizer import DynamicTokenizer
from mintage.retrofit.core.embedding_table import table_for
from mintage.retrofit.core.embeddings import Parts
from mintage.retrofit.core.merging import Merging
from mintage.retrofit.core.providers import make_provider
from mintage.retrofit.core.token_bytes import TokenBytes
from mintage.tokenizer_files import PreTokens

__all__ = ["Index", "LargeVocabHead", "LargeVocabulary", "Written", "extended_vocabulary"]

Index = Literal["exact", "hnsw", "ivf"]

_AT_ONCE = 4096  # tokens whose embeddings are made at once
_SAMPLED = 40  # rows per cluster that its centre is learnt from
_SEED = 0


# -- which tokens ------------------------------------------------------------------------------------------------------


@check_literals
def extended_vocabulary(
    tokenizer: Any,
    texts: Iterable[str],
    size: int,
    *,
    how: Literal["pretokens", "bpe"] = "pretokens",
    processes: int = 1,
) -> list[bytes]:
    """Find new tokens for a tokenizer.

    Parameters
    ----------
    tokenizer
        A fast tokenizer.
    texts
        Text of the kind that will be written.
    size
        New tokens at most; fewer where the texts hold no more.
    how
        ``pretokens``: the most frequent words that are more than one token. ``bpe``: byte-pair encoding goes on where
        the tokenizer's stopped, over the same words (as the authors do).
    processes
        That count words.

    Returns
    -------
    list of bytes
        New tokens, the most frequent or the first merged first.

    Raises
    ------
    UserError
        `size` is below 1, `how` is unknown, or the tokenizer's tokens cannot be read as bytes.
    """
    if size < 1:
        raise UserError(f"size={size}; ask for at least one new token")
    vocabulary = TokenBytes(tokenizer)
    counts = count_words(texts, PreTokens(vocabulary.backend), processes=processes)
    words = [(vocabulary.bytes_of(word), count) for word, count in counts.items()]
    words = [(word, count) for word, count in words if word not in vocabulary.ids]
    if how == "pretokens":
        order = sorted(range(len(words)), key=lambda place: -words[place][1])[:size]
        return [words[place][0] for place in order]
    merger = DynamicTokenizer(tokenizer, "sentence")  # words are cut already
    symbols, sequences, _ = merger.symbols([vocabulary.parts(word) for word, _ in words], merger.valid)
    merging = Merging(sequences, symbols.join, [count for _, count in words])
    found: dict[bytes, None] = {}
    while len(found) < size and (pair := merging.best()) is not None:
        merging.merge(pair)
        made = symbols.surfaces[pair[0]] + symbols.surfaces[pair[1]]
        if made not in vocabulary.ids:
            found[made] = None
    return list(found)


# -- searching ---------------------------------------------------------------------------------------------------------


class LargeVocabHead:
    """The largest logits of an output matrix of any size.

    Parameters
    ----------
    output_rows
        Output embeddings, [vocabulary, width].
    index
        ``exact`` multiplies by all rows; ``ivf`` searches some clusters of them, ``hnsw`` walks a graph of neighbours
        (both need ``faiss-cpu``, extra ``retrofit``).
    k
        Logits returned.
    bias
        Added to the logits, [vocabulary].
    reorder
        Rows that a search finds and that are then scored exactly; default ten times `k`.
    clusters, probes
        Of ``ivf``: clusters in all (default about the square root of the vocabulary times two), and searched (the
        authors: 250 of 2,000).
    links, effort
        Of ``hnsw``: links per row, and rows kept in view while walking.

    Attributes
    ----------
    probes
        May be changed between searches.

    Raises
    ------
    UserError
        A value is out of range, the index is unknown, or faiss is missing.
    """

    def __init__(
        self,
        output_rows: Float[Tensor, "vocabulary width"],
        index: Index | str = "exact",
        k: int = 20,
        *,
        bias: Float[Tensor, " vocabulary"] | None = None,
        reorder: int | None = None,
        clusters: int | None = None,
        probes: int | None = None,
        links: int = 32,
        effort: int = 256,
    ) -> None:
        size = len(output_rows)
        if index not in get_args(Index):
            raise UserError(f"unknown index {index!r}; {did_you_mean(index, get_args(Index))}")
        if not 1 <= k <= size:
            raise UserError(f"k={k} is outside 1..{size}, the size of the vocabulary")
        self.rows, self.bias, self.kind, self.k = output_rows, bias, index, k
        self.reorder = min(size, max(k, 10 * k if reorder is None else reorder))
        self.clusters = min(size, clusters or max(1, round(2 * math.sqrt(size))))
        self.probes = min(self.clusters, probes or max(1, self.clusters // 8))
        self._index = None if index == "exact" else self._build(links, effort)

    def _build(self, links: int, effort: int) -> Any:
        try:
            import faiss
        except ModuleNotFoundError:
            raise missing_extra("faiss-cpu", "retrofit") from None
        width = self.rows.shape[1] + (self.bias is not None)
        kind = faiss.METRIC_INNER_PRODUCT
        if self.kind == "hnsw":
            index = faiss.IndexHNSWFlat(width, links, kind)
            index.hnsw.efConstruction, index.hnsw.efSearch = max(40, effort // 2), max(effort, self.reorder)
        else:
            coarse = faiss.IndexFlatIP(width)
            index = faiss.IndexIVFScalarQuantizer(
                coarse, width, self.clusters, faiss.ScalarQuantizer.QT_fp16, kind, False
            )
            self._coarse = coarse  # the index does not keep it alive
            index.nprobe, index.cp.min_points_per_centroid = (
                self.probes,
                1,
            )  # few rows per cluster are no reason to warn
            chosen = np.random.default_rng(_SEED).permutation(len(self.rows))[: _SAMPLED * self.clusters]
            index.train(self._known(torch.from_numpy(np.sort(chosen))))
        for first in range(0, len(self.rows), 1 << 16):
            index.add(self._known(torch.arange(first, min(first + (1 << 16), len(self.rows)))))
        return index

    def _known(self, places: Int[Tensor, " rows"]) -> np.ndarray:
        """Rows as the index knows them: the bias is one more dimension."""
        rows = self.rows[places.to(self.rows.device)].float().cpu()
        if self.bias is not None:
            rows = torch.cat([rows, self.bias[places.to(self.bias.device)].float().cpu()[:, None]], 1)
        return np.ascontiguousarray(rows.numpy())

    def logits(self, states: Float[Tensor, "states width"], ids: Int[Tensor, "states some"]) -> Tensor:
        """Return the exact logits of some tokens, a choice of them for every state; ids below 0 give -inf."""
        known = ids.clamp(min=0).to(self.rows.device)
        found = torch.einsum("sw,skw->sk", states.to(self.rows), self.rows[known]).float()
        if self.bias is not None:
            found = found + self.bias[known].float()
        return found.masked_fill(ids.to(known) < 0, -torch.inf)

    def topk(self, states: Float[Tensor, "states width"]) -> tuple[Float[Tensor, "states k"], Int[Tensor, "states k"]]:
        """Return the `k` largest logits that are found, the largest first, and their tokens.

        Where an index finds fewer than `k`, the rest are token -1 with a logit of -inf.
        """
        if self._index is None:
            every = (states.to(self.rows) @ self.rows.T).float()
            if self.bias is not None:
                every = every + self.bias.float()
            values, ids = every.topk(self.k)
            return values, ids
        queries = states.float().cpu()
        if self.bias is not None:
            queries = torch.cat([queries, queries.new_ones(len(queries), 1)], 1)
        if self.kind == "ivf":
            self._index.nprobe = self.probes
        found = torch.from_numpy(self._index.search(np.ascontiguousarray(queries.numpy()), self.reorder)[1])
        values, order = self.logits(states, found).topk(self.k)
        return values, found.to(order.device).gather(1, order)


# -- writing -----------------------------------------------------------------------------------------------------------


class Written(NamedTuple):
    """A text that was written.

    Attributes
    ----------
    text
        Without the prompt.
    tokens
        Ids in the large vocabulary.
    new
        How many of these the model's own vocabulary lacks.
    """

    text: str
    tokens: list[int]
    new: int


class LargeVocabulary:
    """A causal LM that reads and writes in its own tokens and many more.

    Ids below the size of the model's vocabulary are the model's own; the new ones follow in the order given.

    Parameters
    ----------
    lm
        The model; it stays as it is.
    new_tokens
        As bytes; tokens that the vocabulary has already are left out. See `extended_vocabulary`.
    provider
        As in `DynamicTokens`.
    index, k, **search
        See `LargeVocabHead`.
    cache
        Input embeddings of new tokens that are kept; they are made when first used.
    progress
        ``progress("embeddings", done, of)``.

    Raises
    ------
    UserError
        The provider does not go with the model, or a value is out of range.
    """

    def __init__(
        self,
        lm: CausalLM,
        new_tokens: Sequence[bytes],
        *,
        provider: Any = "auto",
        index: Index | str = "exact",
        k: int = 20,
        cache: int = 5000,
        progress: Progress = silent,
        **search: Any,
    ) -> None:
        self.lm, self.vocabulary = lm, TokenBytes(lm.tokenizer)
        model: Any = lm.model
        self.new = [token for token in dict.fromkeys(new_tokens) if token and token not in self.vocabulary.ids]
        head = model.get_output_embeddings()
        own: Tensor = head.weight.detach()
        self.own = len(own)
        if len(self.vocabulary.tokens) > self.own:
            held = len(self.vocabulary.tokens)
            raise UserError(f"the tokenizer of {lm.name} has {held} tokens, the model only {self.own}")
        source = Parts(model, self.vocabulary)
        maker = make_provider(provider, source)
        rows = own.new_empty(self.own + len(self.new), own.shape[1])
        bias = torch.zeros(len(rows), device=own.device)
        rows[: self.own] = own
        if getattr(head, "bias", None) is not None:
            bias[: self.own] = head.bias.detach()
        with torch.no_grad():
            for first in range(0, len(self.new), _AT_ONCE):
                made = maker.rows(source, self.new[first : first + _AT_ONCE])
                where = slice(self.own + first, self.own + first + len(made.input))
                rows[where] = (made.input if made.output is None else made.output).to(own)
                if made.bias is not None:
                    bias[where] = made.bias.to(bias)
                progress("embeddings", min(first + _AT_ONCE, len(self.new)), len(self.new))
        self.head = LargeVocabHead(rows, index, k, bias=bias if bool(bias.any()) else None, **search)
        self.table = table_for(model, maker, source, cache)
        self.ids = {**self.vocabulary.ids, **{token: self.own + place for place, token in enumerate(self.new)}}
        self._longest = max(map(len, self.ids))
        self._cut = PreTokens(self.vocabulary.backend)
        ends = model.generation_config.eos_token_id
        ends = lm.tokenizer.eos_token_id if ends is None else ends
        self.ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)

    def __len__(self) -> int:
        return self.own + len(self.new)

    def encode(self, text: str) -> list[int]:
        """Cut a text into the longest tokens there are, word by word from left to right.

        Raises
        ------
        UserError
            A byte of the text has no token.
        """
        found = []
        for word in self._cut(text):
            rest = self.vocabulary.bytes_of(word)
            while rest:
                for size in range(min(len(rest), self._longest), 0, -1):
                    if (token := self.ids.get(rest[:size])) is not None:
                        break
                else:
                    raise UserError(f"no token begins with byte 0x{rest[0]:02x}; leave {rest[:8]!r} out of the text")
                found.append(token)
                rest = rest[size:]
        return found

    def bytes(self, tokens: Sequence[int]) -> bytes:
        """Return the bytes of tokens; special tokens have none."""
        own = self.vocabulary.tokens
        parts = (own[t] if t < len(own) else b"" if t < self.own else self.new[t - self.own] for t in tokens)
        return b"".join(parts)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, with U+FFFD for bytes that are no text."""
        return self.bytes(tokens).decode(errors="replace")

    def _embedded(self, tokens: Sequence[int]) -> Float[Tensor, "1 tokens width"]:
        embedding: Any = self.lm.model.get_input_embeddings()
        ids = torch.tensor(tokens, device=embedding.weight.device)
        rows = embedding(ids.clamp(max=self.own - 1))
        new = (ids >= self.own).nonzero()[:, 0]
        if len(new):
            places = self.table.places([self.new[int(ids[place]) - self.own] for place in new])
            rows[new] = self.table.rows[places]
        return rows[None]

    @torch.no_grad()
    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 64,
        *,
        temperature: float | int = 0.0,
        min_p: float | int = 0.0,
        eos_bias: float | int = 0.0,
        repetition_penalty: float | int = 1.0,
        no_repeat_ngram_size: int = 0,
        seed: int | None = None,
    ) -> Written:
        """Write on from a prompt.

        Parameters
        ----------
        prompt
            Read in the large vocabulary, after the model's opening token.
        max_new_tokens
            Of the large vocabulary.
        temperature
            0 takes the largest logit; else a candidate is drawn.
        min_p
            Candidates with less than this share of the likeliest one's probability are not drawn.
        eos_bias
            Added to the logits of the tokens that end a text.
        repetition_penalty
            Above 1, logits of tokens written before are divided by it if positive and multiplied if negative.
        no_repeat_ngram_size
            No run of as many tokens is written twice; 0 does not look.
        seed
            Repeats a draw.

        Raises
        ------
        UserError
            The prompt is empty, or a value is out of range.
        """
        if not prompt:
            raise UserError("the prompt is empty; pass some text")
        if temperature < 0 or not 0 <= min_p <= 1 or repetition_penalty <= 0 or no_repeat_ngram_size < 0:
            raise UserError(
                f"temperature={temperature}, min_p={min_p}, repetition_penalty={repetition_penalty}, "
                f"no_repeat_ngram_size={no_repeat_ngram_size}: pass at least 0, a share, above 0 and at least 0"
            )
        model: Any = self.lm.model
        generator = torch.Generator().manual_seed(seed) if seed is not None else None
        opening = [] if self.lm.opening is None else [self.lm.opening]
        tokens = self.encode(prompt)
        rows, cache, written = self._embedded([*opening, *tokens]), None, []
        while len(written) < max_new_tokens:
            out = model.base_model(inputs_embeds=rows, **with_cache(model.base_model, cache), use_cache=True)
            cache, state = cache_of(out), out.last_hidden_state[:, -1]
            ids, logits = self._candidates(state, eos_bias)
            if repetition_penalty != 1:
                again = torch.isin(ids, torch.tensor(tokens + written, device=ids.device))
                punished = torch.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
                logits = torch.where(again, punished, logits)
            if no_repeat_ngram_size and (taken := _completions(tokens + written, no_repeat_ngram_size)):
                logits = logits.masked_fill(torch.isin(ids, torch.tensor(taken, device=ids.device)), -torch.inf)
            if not bool((logits > -torch.inf).any()):
                break
            if temperature == 0:
                token = int(ids[logits.argmax()])
            else:
                p = (logits / temperature).softmax(-1)
                p = torch.where(p >= min_p * p.max(), p, 0.0)
                token = int(ids[int(torch.multinomial(p.cpu(), 1, generator=generator))])
            if token in self.ends:
                break
            written.append(token)
            rows = self._embedded([token])
        return Written(self.decode(written), written, sum(token >= self.own for token in written))

    def _candidates(self, state: Float[Tensor, "1 width"], eos_bias: float | int) -> tuple[Tensor, Tensor]:
        """Tokens worth a look, those that end a text among them, and their logits."""
        logits, ids = self.head.topk(state)
        found = ids[0] >= 0
        ids, logits = ids[0][found], logits[0][found]
        if self.ends:
            ends = torch.tensor(self.ends, device=ids.device)
            more = ends[~torch.isin(ends, ids)]
            if eos_bias and len(more):
                ids = torch.cat([ids, more])
                logits = torch.cat([logits, self.head.logits(state, more[None])[0]])
            logits = logits + eos_bias * torch.isin(ids, ends)
        return ids, logits


def _completions(tokens: Sequence[int], size: int) -> list[int]:
    """Tokens that would repeat a run of `size` tokens."""
    start = tuple(tokens[len(tokens) - size + 1 :]) if size > 1 else ()
    return [
        tokens[place + size - 1]
        for place in range(len(tokens) - size + 1)
        if tuple(tokens[place : place + size - 1]) == start
    ]
