"""What the loop needs from a Hugging Face causal LM: tree masks, positions, and a refusal where those cannot be right.

Works with every decoder that takes ``position_ids`` and a 4-D mask and keeps a plain key-value cache: rotary or learned
positions, grouped heads, sliding windows, hybrids of full and sliding layers, the sdpa and eager attention functions.
Architectures outside `TESTED` are checked once, on a six-token tree against path-wise forwards, before they are used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mintage.draft.core.cache import TreeCache
from mintage.draft.core.tree import TokenTree, Topology
from mintage.draft.core.wrapped import forward_arguments, long_rotation, unwrapped
from mintage.errors import UserError
from mintage.models import cache_of, with_cache

__all__ = ["TESTED", "Target"]

TESTED = frozenset({"llama", "qwen2", "qwen3", "mistral", "gpt2", "gpt_neox", "opt", "phi", "gemma2"})
"""Values of ``config.model_type`` whose tree forwards the test suite compares with path-wise ones."""

_ATTENTION = ("sdpa", "eager")
_LAYERS = {"full_attention", "sliding_attention"}
_ODD = {
    "moshi": "reads its prompt without the window that its cache has, so that no draft equals plain decoding",
    "git": "forgets in decoding which tokens were padding, so that no draft of a batch equals plain decoding",
}
"""Kinds whose own cached decoding contradicts itself."""

_checked: WeakSet[Any] = WeakSet()


class Target:
    """A causal LM that scores trees.

    Parameters
    ----------
    model
        A Hugging Face causal LM in evaluation mode.

    Raises
    ------
    UserError
        The model cannot branch: recurrent or linear-attention layers, no explicit positions (ALiBi), an encoder, an
        attention function without 4-D masks, or a tree forward that differs from path-wise ones.
    """

    compiled = 0
    """Nodes of a compiled step, if there is one (`mintage.draft.core.compiled`)."""
    code = ""
    """What computes, where it is not torch: what is known of its speed goes with it."""

    chains = False
    """Whether only chains are scored, and the prompt is read whole (`mintage.draft.core.within`)."""

    def __init__(self, model: Any) -> None:
        self.model = model = unwrapped(model)
        self.config = model.config.get_text_config(decoder=True)
        name = type(model).__name__
        if model.config.is_encoder_decoder:
            raise UserError(f"{name} is an encoder-decoder; drafting needs a decoder-only model such as Llama")
        if self.config.model_type in _ODD:
            raise UserError(f"{name} {_ODD[self.config.model_type]}; generate without a drafter")
        kinds = set(getattr(self.config, "layer_types", None) or ())
        odd = kinds - _LAYERS
        odd |= {"local"} & set(getattr(self.config, "attention_layers", ()))  # GPT-Neo: a window over columns
        if odd or getattr(model, "_is_stateful", False):
            listed = ", ".join(sorted(odd)) or "recurrent"
            raise UserError(f"{name} cannot branch: it has {listed} layers; drafting needs full or sliding attention")
        accepted = forward_arguments(model)
        if (
            not {"position_ids", "attention_mask"} <= accepted.keys()
            or not {"cache", "past_key_values"} & accepted.keys()
        ):
            raise UserError(f"{name} takes no explicit positions (ALiBi?), so its sequences cannot branch")
        implementation = self.config._attn_implementation
        if implementation not in _ATTENTION:
            raise UserError(
                f"attn_implementation={implementation!r} takes no tree mask; load {name} with one of: sdpa, eager"
            )
        self.eager = implementation == "eager"
        self.window: int | None = getattr(self.config, "sliding_window", None)
        if not kinds:
            kinds = {"sliding_attention" if self.window else "full_attention"}
        self.kinds = kinds
        self.keeps_logits = "logits_to_keep" in accepted
        self.short_rotation = long_rotation(self.config)
        own = type(model).__module__.startswith("transformers.models.") and self.config.model_type in TESTED
        if not own and model not in _checked:
            self._compare_with_paths()
            _checked.add(model)

    def beside(self, model: Any) -> Target:
        """Wrap a draft model, whatever runs this target's own forwards."""
        return Target(model)

    @property
    def vocabulary(self) -> int:
        """Number of logits per position."""
        weight = getattr(self.model.get_output_embeddings(), "weight", None)
        return weight.shape[0] if isinstance(weight, Tensor) else self.config.vocab_size

    @property
    def device(self) -> torch.device:
        """Where the input ids must be."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype."""
        return self.model.dtype

    @property
    def positions(self) -> int:
        """Longest sequence the model was made for; 0 if its configuration does not say."""
        return getattr(self.config, "max_position_embeddings", 0) or 0

    def check_ids(self, ids: Tensor) -> None:
        """Refuse prompts whose ids the model does not have."""
        if ids.ndim != 2:
            raise UserError(f"input_ids has shape {tuple(ids.shape)}; expected (batch, length)")
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocabulary:
            raise UserError(f"input_ids holds ids outside the model's vocabulary of {self.vocabulary}")
        if not len(ids):
            raise UserError("the prompt is empty; pass at least one token (e.g. the beginning-of-sequence token)")

    def new_cache(self, batch: int, capacity: int) -> TreeCache:
        """Allocate storage for `batch` sequences of up to `capacity` columns."""
        return TreeCache(self.config.num_hidden_layers, batch, capacity)

    def prefill(
        self, ids: Int[Tensor, "batch length"], lengths: Sequence[int], cache: TreeCache, *, all_logits: bool = False
    ) -> Float[Tensor, "batch kept vocabulary"]:
        """Read right-padded prompts of these `lengths` into an empty cache.

        Right padding needs no mask: causality hides it from every real token, and its columns become holes.
        """
        return self._read({"input_ids": ids}, ids, lengths, cache, 0 if all_logits else 1)

    def open(
        self, inputs: Mapping[str, Any], lengths: Sequence[int], cache: TreeCache
    ) -> Float[Tensor, "batch vocabulary"]:
        """Read whole prompts into an empty cache as plain decoding's first forward does; return what follows each.

        Parameters
        ----------
        inputs
            The forward's ``input_ids`` or ``inputs_embeds``, right-padded, and what belongs to it alone: pictures.
        lengths
            Of the rows.

        Raises
        ------
        UserError
            The model keeps more columns than the prompt has, as for pictures that stand before the text.
        """
        given = inputs.get("input_ids")
        given = inputs["inputs_embeds"] if given is None else given
        even = min(lengths) == max(lengths)
        logits = self._read(dict(inputs), given, lengths, cache, int(even))
        held = {layer.get_seq_length() for layer in cache.layers}  # type: ignore[attr-defined]
        if held != {max(lengths)}:
            raise UserError(
                f"{type(self.model).__name__} keeps more than its prompt's tokens in the cache (pictures before the "
                "text?), which drafting cannot follow; generate without a drafter"
            )
        last = logits.new_tensor(lengths, dtype=torch.long) - 1 - (max(lengths) - logits.shape[1])
        return logits[torch.arange(len(logits), device=logits.device), last]

    def _read(
        self, inputs: dict[str, Any], given: Tensor, lengths: Sequence[int], cache: TreeCache, keep: int
    ) -> Tensor:
        positions = torch.arange(given.shape[1], device=given.device).expand(given.shape[:2])
        kept = {"logits_to_keep": keep} if self.keeps_logits else {}
        out = self.model(**inputs, position_ids=positions, **with_cache(self.model, cache), use_cache=True, **kept)
        cache.fill(lengths)
        return out.logits

    def starts_over(self, shown: Int[Tensor, " length"], cache: TreeCache) -> bool:
        """Whether plain decoding drops its cache before the next step, as Phi-3 does when its rotation changes."""
        inputs = self.model.prepare_inputs_for_generation(
            shown[None], **with_cache(self.model, cache), next_sequence_length=1, use_cache=True
        )
        return cache_of(inputs) is None

    def score(self, trees: Sequence[TokenTree], cache: TreeCache) -> list[Float[Tensor, "nodes vocabulary"]]:
        """Run one forward over all nodes of one tree per sequence; the cache then holds their rows at its end.

        Returns
        -------
        list of Tensor
            Logits at every node, one tensor per tree.
        """
        longest = max(map(len, trees))
        tokens, depth, lineage = self._stack(trees, longest)
        lengths = torch.tensor(cache.lengths, device=self.device)
        embedded = self._embed(trees, tokens) if any(t.embeddings is not None for t in trees) else None
        logits = self.extend(tokens, lengths[:, None] + depth, lineage, cache, embedded)
        return [rows[: len(tree)] for rows, tree in zip(logits, trees, strict=True)]

    def extend(
        self,
        tokens: Int[Tensor, "batch new"],
        positions: Int[Tensor, "batch pending"],
        lineage: Bool[Tensor, "batch new pending"],
        cache: TreeCache,
        embedded: Float[Tensor, "batch new width"] | None = None,
    ) -> Float[Tensor, "batch new vocabulary"]:
        """Append `new` tokens to the cache and return their logits.

        Parameters
        ----------
        tokens
            The new tokens; they see all committed ones of their row.
        positions
            Positions of all *pending* columns: those after the committed ones, new ones last.
        lineage
            Which pending columns each new token sees (its ancestors and itself).
        cache
            Holds committed columns and earlier pending ones.
        embedded
            Input embeddings to use in place of the tokens'.
        """
        new, pending = lineage.shape[1:]
        plain = new == pending == 1 and not cache.ragged and self.kinds == {"full_attention"}
        mask = None if plain else self._mask(lineage, positions, cache)
        inputs: dict[str, Any] = {"input_ids": tokens} if embedded is None else {"inputs_embeds": embedded}
        return self.model(
            **inputs,
            attention_mask=mask,
            position_ids=positions[:, pending - new :],
            **with_cache(self.model, cache),
            use_cache=True,
        ).logits

    def _stack(self, trees: Sequence[TokenTree], longest: int) -> tuple[Tensor, Tensor, Tensor]:
        """Stack trees of different size; padding nodes see the root and themselves, and nothing sees them."""
        if len(trees) == 1:
            _, depth, lineage = trees[0].topology.on(self.device)
            return trees[0].tokens[None], depth[None], lineage[None]
        tokens = torch.zeros(len(trees), longest, dtype=torch.long, device=self.device)
        depth = torch.zeros_like(tokens)
        lineage = torch.eye(longest, dtype=torch.bool, device=self.device).repeat(len(trees), 1, 1)
        for row, tree in enumerate(trees):
            size = len(tree)
            _, tree_depth, tree_lineage = tree.topology.on(self.device)
            tokens[row, :size], depth[row, :size] = tree.tokens, tree_depth
            lineage[row, :size, :size] = tree_lineage
        return tokens, depth, lineage

    def _embed(self, trees: Sequence[TokenTree], tokens: Tensor) -> Tensor:
        embedded = self.model.get_input_embeddings()(tokens.clamp_min(0))
        for row, tree in enumerate(trees):
            if tree.embeddings is not None:
                embedded[row, : len(tree)][tree.tokens == -1] = tree.embeddings.to(embedded.dtype)
        return embedded

    def _mask(self, lineage: Tensor, positions: Tensor, cache: TreeCache) -> Any:
        """Let every token see the committed tokens of its row, its ancestors and itself, within the window if any."""
        batch, new, pending = lineage.shape
        seen = torch.ones(batch, 1, new, cache.width + pending, dtype=torch.bool, device=self.device)
        seen[:, 0, :, cache.width :] = lineage
        columns = torch.arange(cache.width, device=self.device)
        if cache.ragged:
            lengths = torch.tensor(cache.lengths, device=self.device)
            seen[:, 0, :, : cache.width] = (columns < lengths[:, None])[:, None]
        masks = {"full_attention": seen}
        if "sliding_attention" in self.kinds and self.window:
            key_positions = torch.cat([columns.expand(batch, -1), positions], dim=1)
            distance = positions[:, pending - new :, None] - key_positions[:, None, :]
            masks["sliding_attention"] = seen & (distance < self.window)[:, None]
        if self.eager:  # eager attention adds the mask, and would add True as 1
            masks = {kind: self._additive(mask) for kind, mask in masks.items()}
        return masks if len(self.kinds) > 1 else masks[next(iter(self.kinds))]

    def _additive(self, mask: Tensor) -> Tensor:
        lowest = torch.finfo(self.dtype).min
        return torch.zeros(mask.shape, dtype=self.dtype, device=mask.device).masked_fill_(~mask, lowest)

    @torch.no_grad()
    def _compare_with_paths(self) -> None:
        """Refuse an architecture whose tree forward is not the path-wise forward, rather than answer wrongly."""
        ids = torch.arange(7, device=self.device) % self.vocabulary
        tree = TokenTree(tokens=ids[3:], topology=Topology((-1, 0, 0, 1)))
        cache = self.new_cache(1, 8)
        try:
            self.prefill(ids[None, :3], [3], cache)
            scored = self.score([tree], cache)[0].float()
            paths = [[0, 1, 2, 3, 5], [0, 1, 2, 3, 4, 6]]  # to the second child, to the grandchild of the first
            wanted = [self.model(input_ids=ids[None, path]).logits[0, -1].float() for path in paths]
        except Exception as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise UserError(f"{type(self.model).__name__} cannot score trees: {reason}") from error
        tolerance = 1e-3 if self.dtype in (torch.float32, torch.float64) else 0.1
        for got, want in zip(scored[[2, 3]], wanted, strict=True):
            if not (got - want).norm() <= tolerance * want.norm():
                raise UserError(
                    f"{type(self.model).__name__} scores trees wrongly (its attention does not honour 4-D masks or "
                    "positions); generate without a drafter"
                )
