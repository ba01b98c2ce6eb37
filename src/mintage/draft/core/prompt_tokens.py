"""Prompt tokens: trained input embeddings that stand after a text, where the model guesses ahead.

Not here: what it guesses at them (`mintage.draft.core.guessing`), how they are trained
(`mintage.draft.training.prompt_tokens`), the drafter (`mintage.draft.ppd`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mintage.draft.contract import Scorer
from mintage.errors import UserError
from mintage.weights import Artefact, shipped

__all__ = ["PromptTokens", "describe"]

_FORMAT = "mintage ppd prompt tokens 2"


def describe(target: Scorer) -> str:
    """Name what prompt tokens are bound to beside width and vocabulary."""
    config = target.model.config.get_text_config(decoder=True)
    return f"{config.model_type}, {config.num_hidden_layers} layers"


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

    def check(self, target: Scorer) -> None:
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
