"""Who makes embeddings of new tokens, by name."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from mintage import catalog
from mintage.errors import UserError, did_you_mean
from mintage.retrofit.core.composer import load_composer
from mintage.retrofit.core.embeddings import EmbeddingTransfer, Parts, PartsRule, PartsTransfer, Provider

__all__ = ["make_provider"]


def make_provider(spec: str | Path | Provider, source: Parts) -> Provider:
    """Return what `DynamicTokens.provider` names.

    Parameters
    ----------
    spec
        ``auto``, ``composer``, a composer's ``.safetensors`` file, ``mean``, ``sum``, ``first``, ``last``, a method
        that makes embeddings (``zett``), or an object with ``rows(source, tokens)``.
    source
        The model's embeddings.

    Raises
    ------
    UserError
        The name is unknown, or what it names was made for another model or has to learn from texts.
    """
    if not isinstance(spec, str | Path):
        return spec
    name = str(spec)
    if name == "auto":
        try:
            return load_composer(source)
        except UserError:  # none is shipped for this model
            return PartsTransfer()
    if name in get_args(PartsRule):
        return PartsTransfer(rule=name)  # type: ignore[arg-type]
    if name == "composer" or name.endswith(".safetensors"):
        return load_composer(source, None if name == "composer" else name)
    embedding = {row.name: row for row in catalog.methods("retrofit") if row.status == "ready" and _embeds(row)}
    if catalog.parse_spec(name)[0] not in embedding:
        known = ("auto", "composer", *get_args(PartsRule), *embedding)
        raise UserError(f"unknown provider {name!r}; {did_you_mean(name, known)}")
    made: EmbeddingTransfer = catalog.build(name, "retrofit")
    if made.reads_texts:
        raise UserError(f"{name} learns from texts which tokens occur together; pass another provider, e.g. mean")
    return made.fitted(source, [], [])


def _embeds(row: catalog.Method) -> bool:
    return issubclass(row.load(), EmbeddingTransfer)
