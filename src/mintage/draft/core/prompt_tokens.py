"""Prompt tokens: trained input embeddings that stand after a text, and what the model guesses at them.

Not here: how they are trained (`mintage.draft.training.prompt_tokens`), the drafter (`mintage.draft.ppd`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mintage.draft.core.continuations import Continuation
from mintage.draft.core.target import Target
from mintage.errors import UserError
from mintage.models import CausalLM
from mintage.progress import Progress, silent
from mintage.weights import Artefact, shipped

__all__ = ["PromptTokens", "describe", "guess_accuracy", "guess_logits", "text_initialised"]

_FORMAT = "mintage ppd prompt tokens 2"


def describe(target: Target) -> str:
    """Name what prompt tokens are bound to beside width and vocabulary."""
    return f"{target.config.model_type}, {target.config.num_hidden_layers} layers"


class PromptTokens(nn.Module):
    """The trained embeddings, with what they were trained for.

    Parameters
    ----------
    embeddings
        One per distance and copy; distance i (from 1) guesses the token i + 1 ahead.
    vocabulary
        Number of tokens of their model.
    model
        Its name, for messages.
    architecture
        What `describe` says of it; empty fits every architecture of this width and vocabulary.
    accuracies
        Calibrated: how often the r-th guess at each distance is right. By default a mild guess.
    notes
        How they were made; kept in the file.

    Raises
    ------
    UserError
        Shapes do not fit each other.
    """

    def __init__(
        self,
        embeddings: Float[Tensor, "distances copies width"],
        *,
        vocabulary: int,
        model: str = "",
        architecture: str = "",
        accuracies: Float[Tensor, "rows ranks"] | None = None,
        notes: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(embeddings.detach().clone().float())
        self.vocabulary, self.model, self.architecture = vocabulary, model, architecture
        if accuracies is None:
            ranks = 0.5 ** torch.arange(1, min(10, vocabulary) + 1, dtype=torch.float64)
            accuracies = 0.6 * 0.6 ** torch.arange(len(embeddings))[:, None] * ranks
        if len(accuracies) != len(embeddings) or not 1 <= accuracies.shape[1] <= vocabulary:
            raise UserError(
                f"accuracies have shape {tuple(accuracies.shape)}; expected {len(embeddings)} distances "
                f"and at most {vocabulary} ranks"
            )
        self.accuracies = accuracies.double()
        self.notes = dict(notes or {})

    @property
    def distances(self) -> int:
        """S, how many distances are guessed."""
        return self.embeddings.shape[0]

    @property
    def copies(self) -> int:
        """Ensemble size n_ept."""
        return self.embeddings.shape[1]

    @property
    def width(self) -> int:
        """Size of an embedding."""
        return self.embeddings.shape[2]

    @property
    def ranks(self) -> int:
        """Guesses kept per distance."""
        return self.accuracies.shape[1]

    def forward(self) -> Float[Tensor, "distances copies width"]:
        """Return the embeddings."""
        return self.embeddings

    def check(self, target: Target) -> None:
        """Refuse a model that these were not trained for.

        Raises
        ------
        UserError
            Width, vocabulary or architecture differ, or the model takes no embeddings as input.
        """
        if "inputs_embeds" not in inspect.signature(target.model.forward).parameters:
            raise UserError(f"{type(target.model).__name__} takes no inputs_embeds, which prompt tokens need")
        width = target.model.get_input_embeddings().weight.shape[1]
        mine = f"width {self.width}, vocabulary {self.vocabulary}"
        its = f"width {width}, vocabulary {target.vocabulary}"
        if self.architecture:
            mine, its = f"{self.architecture}, {mine}", f"{describe(target)}, {its}"
        if mine != its:
            name = self.model or "another model"
            raise UserError(f"the prompt tokens are for {name} ({mine}), this model has {its}; train its own")

    def save(self, path: str | Path, notes: Mapping[str, str] | None = None) -> None:
        """Write everything to `path` as one safetensors file; `notes` join those at hand."""
        sizes = {"model": self.model, "architecture": self.architecture, "vocabulary": self.vocabulary}
        tensors = {"embeddings": self.embeddings, "accuracies": self.accuracies}
        Artefact(tensors, sizes, notes={**self.notes, **(notes or {})}).save(path, _FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> PromptTokens:
        """Read what `save` wrote.

        Parameters
        ----------
        path
            A file, or the name of a model that mintage ships prompt tokens for (``"smollm2"``).

        Raises
        ------
        UserError
            There is no such file or name, or it is not such a file, is of another version, or contradicts itself.
        """
        file = shipped("ppd", path)
        artefact = Artefact.load(file, _FORMAT, "mintage train ppd")
        try:
            return cls(
                artefact.tensors["embeddings"],
                accuracies=artefact.tensors["accuracies"],
                notes=dict(artefact.notes),
                **artefact.sizes,
            )
        except (KeyError, TypeError, UserError) as error:
            raise UserError(f"{file} holds no prompt tokens ({error}); make it with: mintage train ppd") from None


def guess_logits(
    target: Target,
    ids: Int[Tensor, "batch length"],
    cuts: Int[Tensor, "batch cuts"],
    embeddings: Float[Tensor, "distances copies width"],
) -> tuple[Float[Tensor, "batch cuts distances vocabulary"], Float[Tensor, "batch length vocabulary"]]:
    """Append the prompt tokens at every cut of every text.

    Parameters
    ----------
    target
        The frozen model.
    ids
        Texts, padded on the right.
    cuts
        Prefix lengths; the prompt tokens after a cut see the prefix and the ones before them of the same copy.
    embeddings
        The prompt tokens.

    Returns
    -------
    guesses, own
        Logits at the prompt tokens, averaged over copies (differentiable), and the model's own at every token.
    """
    batch, length = ids.shape
    distances, copies, width = embeddings.shape
    count = cuts.shape[1]
    cache = target.new_cache(batch, length + count * copies * distances)
    columns = torch.arange(length, device=ids.device)
    with torch.no_grad():
        causal = (columns <= columns[:, None]).expand(batch, -1, -1)
        own = target.extend(ids, columns.expand(batch, -1), causal, cache)
    new = count * copies * distances
    prefix = cuts.repeat_interleave(copies * distances, dim=1)
    chains = torch.ones(distances, distances, dtype=torch.bool, device=ids.device).tril()
    among = torch.block_diag(*[chains] * (count * copies)).bool().expand(batch, -1, -1)
    lineage = torch.cat([columns < prefix[..., None], among], dim=-1)
    step = torch.arange(distances, device=ids.device).repeat(count * copies)
    positions = torch.cat([columns.expand(batch, -1), prefix + step], dim=1)
    rows = embeddings.transpose(0, 1).expand(batch, count, -1, -1, -1).reshape(batch, new, width)
    rows = rows.to(target.model.get_input_embeddings().weight.dtype)
    logits = target.extend(ids.new_zeros(batch, new), positions, lineage, cache, rows)
    return logits.view(batch, count, copies, distances, -1).float().mean(2), own


def text_initialised(lm: CausalLM, *, distances: int = 3, copies: int = 1) -> PromptTokens:
    """Start from words, as the paper does: the mean embedding of "Next 2 word" and so on (copies: of its parts)."""
    weight: Any = lm.model.get_input_embeddings().weight
    table: Tensor = weight.detach().float()
    rows = []
    for i in range(1, distances + 1):
        ids = lm.tokenizer(f"Next {i + 1} word", add_special_tokens=False)["input_ids"]
        ids = torch.tensor((ids * copies)[: max(len(ids), copies)], device=table.device)
        rows.append(torch.stack([part.mean(0) for part in table[ids].tensor_split(copies)]))
    target = Target(lm.model)
    return PromptTokens(
        torch.stack(rows), vocabulary=target.vocabulary, model=lm.name, architecture=describe(target)
    ).to(target.device)


@torch.no_grad()
def guess_accuracy(
    target: Target,
    tokens: PromptTokens,
    texts: Sequence[Continuation],
    *,
    ranks: int = 10,
    progress: Progress = silent,
) -> Float[Tensor, "distances ranks"]:
    """How often the r-th ranked guess at each distance is the token that came, over all cuts of the texts."""
    hits = torch.zeros(tokens.distances, ranks, dtype=torch.float64)
    total = 0
    for done, text in enumerate(texts):
        if cuts := text.cuts(tokens.distances + 1):
            ids = torch.tensor(text.ids, device=target.device)
            where = torch.tensor(cuts, device=target.device)
            guesses = guess_logits(target, ids[None], where[None], tokens())[0][0].topk(ranks, dim=-1).indices
            truth = ids[where[:, None] + torch.arange(1, tokens.distances + 1, device=target.device)]
            hits += (guesses == truth[..., None]).double().sum(0).cpu()
            total += len(cuts)
        progress("calibrate", done + 1, len(texts))
    return hits / max(total, 1)
