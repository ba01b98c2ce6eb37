"""Give a trained model another tokenizer: the embeddings of its tokens, and a model that holds them.

Only the input and output embeddings are new; the transformer is untouched. An `EmbeddingTransfer` makes rows for tokens
given as bytes; `transfer` puts them into a copy of the model.

Use::

    made = transfer(lm.model, lm.tokenizer, new_tokenizer, method="fvt")
    made.model.save_pretrained("folder"), made.tokenizer.save_pretrained("folder")

Laws (tested over every method): tied embeddings stay tied; the model saves and loads as any other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from mintage import catalog
from mintage.errors import UserError
from mintage.retrofit.core.config_ids import ROLES, IdMap
from mintage.retrofit.core.embeddings import Composed, EmbeddingTransfer, Parts
from mintage.retrofit.core.token_bytes import TokenBytes

__all__ = ["Transferred", "transfer"]


class Transferred(NamedTuple):
    """A model that speaks other tokens, its tokenizer, and what was done.

    Attributes
    ----------
    report
        ``tokens`` in all; ``copied`` ones that the model knew; ``special`` ones matched by name or role; ``truncated``
        ones of more parts than the method reads; ``empty`` ones of bytes that the model cannot write.
    """

    model: Any
    tokenizer: Any
    report: dict[str, int]


@dataclass(frozen=True)
class _Target:
    """The new vocabulary: bytes of every token, and where special ones come from."""

    tokenizer: Any
    bytes_of: TokenBytes
    tokens: list[bytes] = field(default_factory=list)
    special: dict[int, int] = field(default_factory=dict)  # place to the source's token

    @classmethod
    def of(cls, tokenizer: Any, old: Any) -> _Target:
        """Match special tokens by name, then by role."""
        known = old.get_vocab()
        bytes_of = TokenBytes(tokenizer)
        tokens = bytes_of.tokens
        roles = {getattr(tokenizer, role): getattr(old, role) for role in ROLES if getattr(tokenizer, role, None)}
        special = {}
        for name, place in tokenizer.get_vocab().items():
            if not tokens[place]:
                like = name if name in known else roles.get(name)
                if like in known:
                    special[place] = known[like]
        return cls(tokenizer, bytes_of, tokens, special)


def transfer(
    model: Any,
    tokenizer: Any,
    target: Any,
    method: str | EmbeddingTransfer = "zett",
    *,
    texts: Iterable[str] = (),
    share: bool = False,
) -> Transferred:
    """Return a copy of `model` that speaks the tokens of `target`.

    Parameters
    ----------
    model, tokenizer
        A causal or masked LM, and what it was trained with: a fast tokenizer.
    target
        The new one: a fast tokenizer, or one without special tokens (a bare one of ``tokenizers``), which is given
        those of the old one, and its chat template.
    method
        A spec such as ``"zett"``, ``"fvt"``, ``"omp:sparsity=16"``, or an `EmbeddingTransfer`.
    texts
        For the methods that need some (FOCUS, WECHSEL, OMP): the kind of text that the new tokenizer is for.
    share
        All weights but the embeddings stay those of `model`, so that many can be compared; else they are copied.

    Raises
    ------
    UserError
        Tokens of either tokenizer cannot be read as bytes, the model is not the tokenizer's, the method needs texts,
        or was trained for another model; the model's configurations hold ids of tokens that the new tokenizer lacks.
    """
    made = catalog.build(method, "retrofit") if isinstance(method, str) else method
    if not isinstance(made, EmbeddingTransfer):
        raise UserError(f"{method} makes no embeddings; pass one of: {', '.join(_names())}")
    source = Parts(model, TokenBytes(tokenizer))
    if isinstance(target, Tokenizer) or not target.all_special_ids:
        target = _dressed(getattr(target, "backend_tokenizer", target), tokenizer)
    if len(tokenizer) > len(source.input):
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, {type(model).__name__} embeds {len(source.input)}; "
            "pass the tokenizer that the model was trained with"
        )
    wanted = _Target.of(target, tokenizer)
    texts = list(texts)
    if made.reads_texts and not texts:
        raise UserError(f"{type(made).__name__} learns which tokens occur together; pass texts of the new kind")
    listed = [target(text, add_special_tokens=False)["input_ids"] for text in texts] if made.reads_texts else []
    with torch.no_grad():
        made = made.fitted(source, wanted.tokens, listed)
        rows = made.rows(source, wanted.tokens)
        places, likes = (torch.tensor(list(x), dtype=torch.long) for x in (wanted.special, wanted.special.values()))
        for weight, old in ((rows.input, source.input), (rows.output, source.output)):
            weight[places] = old[likes].to(weight.dtype)
        ids = IdMap(tokenizer, target, source.vocabulary, wanted.bytes_of, len(source.input))
        return Transferred(_with_rows(model, rows, ids, source.tied, share), target, _report(source, wanted, made))


def _dressed(bare: Tokenizer, old: Any) -> PreTrainedTokenizerFast:
    """Give a bare tokenizer the special tokens of another, and its chat template."""
    inner = Tokenizer.from_str(bare.to_str())
    inner.add_special_tokens([token for token in old.added_tokens_decoder.values() if token.special])
    roles = {role: getattr(old, role) for role in ROLES if getattr(old, role, None)}
    made = PreTrainedTokenizerFast(tokenizer_object=inner, **roles)
    made.chat_template = old.chat_template
    return made


def _names() -> list[str]:
    return [
        m.name
        for m in catalog.methods("retrofit")
        if m.status == "ready" and not m.problem and issubclass(m.load(), EmbeddingTransfer)
    ]


def _report(source: Parts, wanted: _Target, made: EmbeddingTransfer) -> dict[str, int]:
    parts = [p for place, p in enumerate(source.of(wanted.tokens)) if place not in wanted.special]
    read = getattr(made, "length", None)
    return {
        "tokens": len(wanted.tokens),
        "copied": sum(token in source.vocabulary.ids for token in wanted.tokens),
        "special": len(wanted.special),
        "truncated": sum(len(p) > read for p in parts) if read else 0,
        "empty": sum(not p for p in parts),
    }


def _with_rows(model: Any, rows: Composed, ids: IdMap, tied: bool, share: bool) -> Any:
    """Copy the model, its embeddings and the ids in its configurations replaced."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    own = {weight for end in ends if end is not None for weight in end.parameters()}
    made = copy.deepcopy(model, {id(w): w for w in model.parameters() if share and w not in own})
    ids.update(made.config, "config")
    if getattr(made, "generation_config", None) is not None:
        ids.update(made.generation_config, "generation_config")
    _check_positions(model, made)
    made.resize_token_embeddings(len(rows.input), mean_resizing=False)
    made.get_input_embeddings().weight.data.copy_(rows.input)
    head = made.get_output_embeddings()
    if head is not None and not tied:
        head.weight.data.copy_(rows.output)
    if head is not None and rows.bias is not None and getattr(head, "bias", None) is not None:
        head.bias.data.copy_(rows.bias)
    return made


def _check_positions(model: Any, made: Any) -> None:
    """Refuse another pad id where the model counts positions from it on (RoBERTa's kind)."""
    before, after = model.config.pad_token_id, made.config.pad_token_id
    named = (
        name
        for name, module in model.named_modules()
        if "position_embeddings" in name and getattr(module, "padding_idx", None) is not None
    )
    if before != after and (name := next(named, None)):
        raise UserError(
            f"{type(model).__name__} counts positions from its pad id on ({name}); "
            f"give the new tokenizer a pad token with id {before}, it has {after}"
        )
