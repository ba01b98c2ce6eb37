"""Token ids in a model's configurations, taken over to another vocabulary: each is mapped, or the transfer is refused.

An end token that is lost makes a model write on for ever; a suppressed id that is not moved forbids another token. Ids
stand in the model's configuration and those nested in it, and in the generation configuration.

Not here: ids of other vocabularies (codecs, vision), which are known by a size or a name of their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mintage.errors import UserError
from mintage.retrofit.core.token_bytes import TokenBytes

__all__ = ["ROLES", "IdMap"]

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
_SET = ("bos_token_id", "eos_token_id", "pad_token_id")  # taken from the new tokenizer where a configuration says none
_IDS = re.compile(
    r"(?:^|_)token_(?:id|ids|index|indices)$|^(?:begin_)?suppress(?:ed)?_tokens$|^(?:bos|eos|pad|unk|mask|sep|cls)_index$"
    r"|^(?:im|image|slice|audio|video)_(?:start|end|patch|newline)_id$|^newline_id$"
)
_OTHERS = re.compile(r"t2u_|codec|codebook")
_SEQUENCES = ("bad_words_ids", "force_words_ids")
_NAMED = ("lang_to_id", "task_to_id")


class IdMap:
    """Ids of an old tokenizer in a new one: by name, by role, by bytes.

    Parameters
    ----------
    old, new
        Fast tokenizers of transformers.
    old_bytes, new_bytes
        Their tokens as bytes.
    rows
        Embeddings that the model has; ids from there on stand for nothing.
    """

    def __init__(self, old: Any, new: Any, old_bytes: TokenBytes, new_bytes: TokenBytes, rows: int) -> None:
        self._old, self._new, self._rows = old, new, rows
        self._from, self._to = old_bytes, new_bytes
        self._names = new.get_vocab()
        self._same = old.get_vocab() == self._names
        self._by_role = {
            getattr(old, f"{role}_id"): getattr(new, f"{role}_id")
            for role in reversed(ROLES)
            if getattr(old, role, None) is not None and getattr(new, role, None) is not None
        }

    def of(self, number: int) -> int | None:
        """Return the new id, or None for a token that the new vocabulary lacks; negative ones stand for none at all."""
        if number < 0 or self._same:
            return number
        token = self._from.tokens[number] if number < len(self._from.tokens) else b""
        if token and token in self._to.ids:
            return self._to.ids[token]
        name = self._old.convert_ids_to_tokens(number) if number < len(self._old) else None
        return self._names[name] if not token and name in self._names else self._by_role.get(number)

    def update(self, config: Any, where: str) -> None:
        """Replace all ids of a configuration, and of those in it.

        Raises
        ------
        UserError
            The new vocabulary has no counterpart of one; what and where is said.
        """
        text = getattr(config, "get_text_config", lambda **_: config)(decoder=True)
        self._update(config, where, getattr(text, "vocab_size", None))
        for name in _SET:
            if getattr(config, name, 0) is None:
                setattr(config, name, getattr(self._new, name, None))

    def _update(self, config: Any, where: str, size: int | None) -> None:
        held = config if isinstance(config, dict) else vars(config)
        for name, value in list(held.items()):
            place = f"{where}.{name}"
            if isinstance(value, bool) or value is None or _OTHERS.search(str(name)):
                continue
            if name in _SEQUENCES:
                held[name] = self._sequences(value, place, more=name == "bad_words_ids")
            elif name == "sequence_bias":
                held[name] = self._biases(value, place)
            elif name == "forced_decoder_ids":
                held[name] = [[step, number if number is None else self._one(number, place)] for step, number in value]
            elif name in _NAMED:
                held[name] = {key: self._one(number, place) for key, number in value.items()}
            elif _IDS.search(str(name)) and isinstance(value, int):
                held[name] = self._one(value, place, role=name if name in _SET else None)
            elif _IDS.search(str(name)) and isinstance(value, list | tuple):
                held[name] = list(dict.fromkeys(self._one(number, place) for number in value))
            elif isinstance(value, dict) or hasattr(value, "to_dict"):
                own = value.get("vocab_size") if isinstance(value, dict) else getattr(value, "vocab_size", None)
                if own is None or own == size:
                    self._update(value, place, size)

    def _one(self, number: int, where: str, role: str | None = None) -> Any:
        """Map one id; the only one of a role may become whatever has that role in the new tokenizer."""
        found = self.of(number) if number < self._rows else None
        if found is None and role is not None:
            found = getattr(self._new, role, None)
            if found is None and number >= self._rows:
                return None
        if found is None:
            name = self._old.convert_ids_to_tokens(number) if number < len(self._old) else None
            raise UserError(
                f"{where} holds {number} ({name!r}), which the new tokenizer lacks; give it that token "
                "(tokenizer.add_special_tokens), or take the id out of the configuration first"
            )
        return found

    def _sequences(self, listed: Sequence[Any], where: str, *, more: bool) -> list[Any]:
        found: list[Any] = []
        for one in listed:
            if one and isinstance(one[0], list | tuple):  # any of these
                found.append(self._sequences(one, where, more=more))
            else:
                found += self._sequence(one, where, more=more)
        return found

    def _sequence(self, ids: Sequence[int], where: str, *, more: bool) -> list[list[int]]:
        """Return a sequence in new ids: token by token, and as the new tokenizer cuts its bytes.

        Both where `more` (a word that is forbidden may be written either way), else the one that it would write.
        """
        mapped = [self.of(number) for number in ids]
        if self._same:
            return [list(ids)]
        known: list[list[int]] = [] if None in mapped else [[number for number in mapped if number is not None]]
        data = [self._from.tokens[number] if number < len(self._from.tokens) else b"" for number in ids]
        parts = self._to.parts(b"".join(data)) if all(data) else []
        cut = [parts] if parts and b"".join(self._to.tokens[i] for i in parts) == b"".join(data) else []
        found = [*known, *(one for one in cut if one not in known)] if more else (cut or known)[:1]
        if not found:
            missing = next((number for number, new in zip(ids, mapped, strict=True) if new is None), ids[0])
            self._one(missing, where)
        return found

    def _biases(self, held: Any, where: str) -> Any:
        pairs = held.items() if isinstance(held, dict) else held
        made = [(new, bias) for ids, bias in pairs for new in self._sequence(ids, where, more=True)]
        return {tuple(ids): bias for ids, bias in made} if isinstance(held, dict) else [list(one) for one in made]
