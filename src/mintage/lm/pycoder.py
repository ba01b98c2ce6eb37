"""PyCoder: a language model of code that also learns the lexical types of its tokens (arXiv 2211.04673).

The type task is a language model over types alone: types from the types before them. *Hard* sharing (the paper's best)
is one network with one softmax over tokens and types, two forwards a step, and ``w L_code + (1 - w) L_type``. *Soft*
sharing is two networks held together by the distance of their weights; *intermediate* fine-tuning learns types first,
then code. Types are never read when code is completed: what is written is an ordinary model folder.

    coder = PyCoder(model, tokenizer, sharing="hard", weight=0.9)
    coder(code, types).loss                                    # windows of token ids, and of type ids

Deviations: rows of types stand beside the model's own instead of in its vocabulary, so that the model stays what any
tool reads; types are aligned with the pieces of the raw text instead of CodeXGLUE's stream (`python_token_types` makes
that). ``head`` is ours: types of the next piece are read off the states of code, in one forward.

Not here: training (`mintage.lm.training.pycoder`), the lexer and alignment (`mintage.lm.core.token_types`), completion
(`mintage.lm.core.completion`).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from mintage.errors import UserError, did_you_mean
from mintage.files import replace_folder
from mintage.lm.core.python_lexer import TYPES
from mintage.lm.core.type_rows import TypeRows, type_nats
from mintage.models import fetched, tiny_causal_lm
from mintage.progress import quiet
from mintage.weights import Artefact, fill

__all__ = ["PyCoder", "Sharing", "TypedLoss"]

Sharing = Literal["hard", "soft", "intermediate", "head", "none"]

_FORM, _AGAIN = "mintage-types-1", "mintage train pycoder"


class TypedLoss(NamedTuple):
    """Losses of a batch: what is trained on, nats per token of code and of types, and the distance of two networks."""

    loss: Tensor
    code: Tensor
    types: Tensor
    penalty: Tensor


class PyCoder(nn.Module):
    """A causal language model and what it learns of types.

    Parameters
    ----------
    model
        Any causal language model of transformers; it stays an ordinary one.
    tokenizer
        Its tokenizer, if it is to be saved or to complete text.
    sharing
        How types are learnt; ``none`` does not learn them.
    weight
        w of the code's loss, for hard sharing and the head.
    names
        The types; one more row is the end of a file.

    Raises
    ------
    UserError
        Another sharing, a weight outside [0, 1], or a model that cannot read vectors in place of tokens.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        sharing: Sharing = "hard",
        weight: float | int = 0.9,
        names: Sequence[str] = TYPES,
    ) -> None:
        super().__init__()
        if sharing not in get_args(Sharing):
            raise UserError(f"unknown sharing {sharing!r}; {did_you_mean(str(sharing), get_args(Sharing))}")
        if not 0 <= weight <= 1:
            raise UserError(f"weight={weight} is out of range; pass the share of the code's loss in [0, 1], e.g. 0.9")
        if "inputs_embeds" not in inspect.signature(model.forward).parameters or not model.get_output_embeddings():
            raise UserError(f"{type(model).__name__} reads no vectors in place of tokens; pass a decoder such as Llama")
        self.model, self.tokenizer = model, tokenizer
        self.sharing, self.weight, self.names = sharing, float(weight), tuple(names)
        self.types = TypeRows(model, len(self.names) + 1, reads=sharing != "head")
        self.twin = copy.deepcopy(nn.ModuleDict({"model": model, "types": self.types})) if sharing == "soft" else None

    @classmethod
    def tiny(cls) -> PyCoder:
        """Make a small model with random weights, the same at every call, for the laws."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return cls(tiny_causal_lm(vocab_size=64))

    @property
    def end_type(self) -> int:
        """The type of a file's end."""
        return len(self.names)

    # -- losses -------------------------------------------------------------------------------------------------------

    def forward(
        self,
        code: Int[Tensor, "batch tokens"],
        types: Int[Tensor, "batch tokens"],
        *,
        weight: float | int | None = None,
    ) -> TypedLoss:
        """Return the losses of windows of code and of their types (-1: none).

        `weight` is used in place of the model's own: 1 reads code alone, 0 types alone (intermediate fine-tuning).
        """
        zero = next(self.parameters()).new_zeros(())
        whole = {"none": 1.0, "intermediate": 1.0}.get(self.sharing, self.weight)
        share = whole if weight is None else float(weight)
        if self.sharing == "soft" and weight is None:
            assert self.twin is not None
            of_code = self._code_loss(code)[0]
            of_types = self._type_loss(types, self.twin["model"], self.twin["types"])
            penalty = self.penalty()
            return TypedLoss(of_code + of_types + penalty, of_code, of_types, penalty)
        of_code, states = self._code_loss(code) if share or self.sharing == "head" else (zero, None)
        if share == 1:
            of_types = zero
        elif states is not None and self.sharing == "head":
            of_types = type_nats(self.types(states[:, :-1]), types[:, 1:])
        else:
            of_types = self._type_loss(types, self.model, self.types)
        return TypedLoss(share * of_code + (1 - share) * of_types, of_code, of_types, zero)

    def _code_loss(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return nats per token under the softmax over tokens and types, and the states they are read off."""
        logits, states = TypeRows.read(self.model, input_ids=code)
        total = torch.logaddexp(logits.logsumexp(-1), self.types(states).logsumexp(-1))[:, :-1]
        return (total - logits[:, :-1].gather(-1, code[:, 1:, None])[..., 0]).mean(), states

    def _type_loss(self, types: Tensor, model: Any, rows: Any) -> Tensor:
        """Return nats per type, of types from the types before them."""
        logits, states = TypeRows.read(model, inputs_embeds=rows.embed(types.clamp(min=0)))
        return type_nats(rows(states)[:, :-1], types[:, 1:], logits[:, :-1].logsumexp(-1))

    def penalty(self) -> Float[Tensor, ""]:
        """Return the sum of the Frobenius norms of how the two networks differ, tensor by tensor."""
        assert self.twin is not None
        theirs = dict(self.twin.named_parameters())
        apart = [(p - theirs[name]).square().sum() for name, p in self._shared()]
        norms = [torch.where(square > 0, square, 1).sqrt() * (square > 0) for square in apart]  # no slope at 0
        return torch.stack(norms).sum()

    def _shared(self) -> Iterator[tuple[str, Tensor]]:
        for part in ("model", "types"):
            for name, parameter in getattr(self, part).named_parameters():
                yield f"{part}.{name}", parameter

    # -- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, notes: Mapping[str, str]) -> None:
        """Write an ordinary model folder, with the rows of types beside it; a second network is let go."""
        self.model.config.mintage_notes = dict(notes)
        with replace_folder(path) as folder, quiet():
            self.model.save_pretrained(folder)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(folder)
            sizes = {"names": self.names, "sharing": self.sharing, "weight": self.weight}
            Artefact(self.types.state_dict(), sizes, notes=notes).save(folder / "types.safetensors", _FORM)

    @classmethod
    def load(cls, folder: str | Path) -> PyCoder:
        """Load what `save` wrote.

        Raises
        ------
        UserError
            It is something else, or damaged.
        """
        path = Path(folder) / "types.safetensors"
        if not path.is_file():
            raise UserError(f"{folder} holds no types of code; make it with {_AGAIN} -o {folder}")
        held = Artefact.load(path, _FORM, _AGAIN)
        model = fetched(AutoModelForCausalLM, folder, "models of code are folders")
        has_tokenizer = (Path(folder) / "tokenizer.json").exists()
        tokenizer = fetched(AutoTokenizer, folder, "models of code are folders") if has_tokenizer else None
        try:
            sharing, weight, names = (held.sizes[name] for name in ("sharing", "weight", "names"))
        except KeyError as error:
            raise UserError(f"{path} lacks {error}; make it again with {_AGAIN}") from None
        made = cls(model.eval(), tokenizer, sharing=sharing, weight=weight, names=names)
        fill(made.types, held.tensors, path, _AGAIN)
        return made
