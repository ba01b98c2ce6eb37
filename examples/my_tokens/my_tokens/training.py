"""Learn which token follows which: a table of two factors, trained on text through mintage's loop."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mintage.data import Corpus, texts
from mintage.errors import UserError
from mintage.options import option
from mintage.train import Settings
from mintage.train.training import LanguageModelTraining, Work
from my_tokens.drafter import Successors

ROWS, LENGTH = 8, 64  # stretches of text per step, and their tokens


class Bigrams(nn.Module):
    """Logits of the next token from the last one alone."""

    def __init__(self, vocabulary: int, rank: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.last, self.next = nn.Embedding(vocabulary, rank), nn.Linear(rank, vocabulary)

    def forward(self, ids: Int[Tensor, " *shape"]) -> Float[Tensor, "*shape vocabulary"]:
        return self.next(self.last(ids))

    @torch.no_grad()
    def best(self) -> Int[Tensor, " vocabulary"]:
        """The likeliest successor of every token."""
        tokens = torch.arange(self.last.num_embeddings)
        return torch.cat([self(some).argmax(-1) for some in tokens.split(1024)])


@dataclass(frozen=True)
class BigramRecipe:
    """What is trained, the batch of any index, the loss of a batch: so a resumed run takes the very same steps."""

    module: Bigrams
    ids: Int[Tensor, " tokens"]
    seed: int

    def batch(self, index: int) -> Int[Tensor, "rows length"]:
        generator = torch.Generator().manual_seed(self.seed * 2**32 + index)
        starts = torch.randint(len(self.ids) - LENGTH, (ROWS,), generator=generator)
        return torch.stack([self.ids[start : start + LENGTH] for start in starts])

    def loss(self, module: nn.Module, batch: Int[Tensor, "rows length"]) -> tuple[Tensor, dict[str, float]]:
        logits = module(batch[:, :-1]).flatten(0, 1)
        return nn.functional.cross_entropy(logits, batch[:, 1:].flatten()), {}


@dataclass(frozen=True, kw_only=True)
class SuccessorTraining(LanguageModelTraining):
    """Learn the likeliest successor of every token of a model, for last-successor."""

    name = "successors"
    examples = ("mintage train successors", "mintage train successors --model ./my-llama --text notes.txt --steps 500")
    after = 'mintage generate "Hello" --draft last-successor:successors=successors.safetensors'

    text: tuple[str, ...] = option(
        (), "Files or folders to learn from, may be repeated; default: WikiText-2.", repeat=True
    )
    tokens: int = option(200_000, "Tokens of text that are read.", least=LENGTH + 1)
    rank: int = option(16, "Width of the table's factors.", least=1)
    steps: int = option(300, "Optimiser steps.", least=1)
    lr: float = option(3e-2, "Peak learning rate; cosine to a tenth of it.", above=0)

    def learn(self, work: Work) -> Successors:
        """Read, train, and take the best successor of every token."""
        lm = self.load()
        ids: list[int] = []
        for text in Corpus(*self.text) if self.text else texts("wikitext2", "train"):
            ids += lm.tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(ids) >= self.tokens:
                break
        if len(ids) <= LENGTH:
            raise UserError(f"the text has {len(ids)} tokens; pass at least {LENGTH + 1}")
        vocabulary = lm.model.get_output_embeddings().weight.shape[0]
        recipe = BigramRecipe(Bigrams(vocabulary, self.rank, self.seed), torch.tensor(ids[: self.tokens]), self.seed)
        work.stage("bigrams", recipe, Settings(steps=self.steps, lr=self.lr, warmup=self.steps // 10, seed=self.seed))
        return Successors(recipe.module.best())
