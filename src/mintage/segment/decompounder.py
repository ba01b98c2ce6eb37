"""Decompounder: a small tagger that splits compounds, learned from hyphens (stage 1 of CompoundPiece).

A substitute: the paper (arXiv 2305.14214, section 3.2) fine-tunes ByT5-base, 580 million parameters pretrained on the
web in 101 languages. Here a convolutional network over letters, trained from nothing in minutes on one core, says for
every letter whether a constituent ends after it. What ByT5 brings along from its pretraining, knowing words, is given
to the network as features of a lexicon: how frequent what lies before a cut, and what lies after it, are as words of
their own, and how long the longest words are that end and begin there.

Network, features and file share this file because a saved splitter is all three. Not here: how it is trained
(`mintage.segment.training.decompounder`), and normalised constituents (bride for brides); pieces are cut out of the
word as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mintage.errors import UserError
from mintage.weights import Artefact, fill

__all__ = ["Decompounder", "Tagger", "decompound", "lower_letters"]

LONGEST = 64  # characters; longer words stay whole
FEATURES = 5
_FORMAT, _FILE = "mintage decompounder 1", "decompounder.safetensors"
_DEEPEST, _WIDEST = 32, 4096  # of a file that is read


class Tagger(nn.Module):
    """Gated convolutions over letters with residual connections; one logit per letter: a cut after it.

    Parameters
    ----------
    letters
        Different letters, padding (0) and the unknown letter (1) included.
    width, layers, kernel
        Channels, blocks, and letters that one block sees.
    dropout
        On every block and before the last layer.
    """

    def __init__(self, letters: int, width: int = 48, layers: int = 3, kernel: int = 5, dropout: float = 0.1) -> None:
        super().__init__()
        self.kernel = kernel
        self.letters = nn.Embedding(letters, width, padding_idx=0)
        self.features = nn.Linear(FEATURES, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.blocks = nn.ModuleList(nn.Conv1d(width, 2 * width, kernel, padding=kernel // 2) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(width, 1)

    def forward(
        self, letters: Int[Tensor, "words length"], features: Float[Tensor, "words length features"]
    ) -> Float[Tensor, "words length"]:
        """Return logits; those of padding and of a word's last letter mean nothing."""
        real = (letters != 0).unsqueeze(-1)
        hidden = (self.letters(letters) + self.features(features)) * real
        for norm, block in zip(self.norms, self.blocks, strict=True):
            mixed = block((norm(hidden) * real).transpose(1, 2))
            hidden = hidden + self.dropout(F.glu(mixed, dim=1).transpose(1, 2)) * real
        return self.last(self.dropout(hidden)).squeeze(-1)


class Decompounder:
    """Splits words into the constituents of compounds.

    Parameters
    ----------
    letters
        Lower-case letters that have an embedding of their own, in order.
    lexicon
        Lower-case word to the logarithm of its count.
    tagger
        The network.

    Attributes
    ----------
    threshold
        Probability from which on a cut is made. Compounds without a hyphen are less like the hyphenated ones than
        other words are like the frequent ones, so that 0.5 cuts too rarely; 0.25 was chosen on gold words of three
        languages that the claim's test does not contain.
    """

    threshold = 0.25

    def __init__(self, letters: str, lexicon: Mapping[str, int], tagger: Tagger) -> None:
        self.letters, self.lexicon, self.tagger = letters, dict(lexicon), tagger
        self._id_of = {letter: place for place, letter in enumerate(letters, start=2)}
        self._longest = max(map(len, self.lexicon), default=0)

    def split(self, word: str) -> list[str]:
        """Return the pieces of one word; joined they are the word."""
        return self.split_all([word])[0]

    def split_all(
        self, words: Sequence[str], *, batch: int = 1024, progress: Callable[[int, int], None] = lambda done, of: None
    ) -> list[list[str]]:
        """Split many words, those of similar length together.

        Words with a hyphen, and those longer than 64 characters, stay whole.
        """
        pieces = [[word] for word in words]
        splittable = [i for i, word in enumerate(words) if 2 <= len(word) <= LONGEST and "-" not in word]
        splittable.sort(key=lambda i: len(words[i]))
        for start in range(0, len(splittable), batch):
            chosen = splittable[start : start + batch]
            cuts = self.cut_probabilities([words[i] for i in chosen]) >= self.threshold
            for row, i in zip(cuts, chosen, strict=True):
                pieces[i] = _cut(words[i], np.flatnonzero(row[: len(words[i]) - 1]) + 1)
            progress(min(start + batch, len(splittable)), len(splittable))
        return pieces

    @torch.no_grad()
    def cut_probabilities(self, words: Sequence[str]) -> np.ndarray:
        """Probability of a cut after every letter, shape (words, length of the longest)."""
        self.tagger.eval()
        letters, features, real = self.batch([self.encode(word) for word in words])
        return (self.tagger(letters, features).sigmoid() * real).numpy()

    def encode(self, word: str) -> tuple[np.ndarray, np.ndarray]:
        """Return letter ids, shape (length,), and features, shape (length, 5), of a word."""
        lowered = lower_letters(word)
        ids = np.array([self._id_of.get(char, 1) for char in lowered], dtype=np.int64)
        features = np.zeros((len(word), FEATURES), dtype=np.float32)
        features[:, 0] = [char.isupper() for char in word]
        if self.lexicon:
            self._look_up(lowered, features)
        return ids, features

    def _look_up(self, word: str, features: np.ndarray) -> None:
        """Columns 1 to 4: counts of what lies before and after a cut; longest words that end and begin there."""
        known, size = self.lexicon, len(word)
        for cut in range(1, size):
            features[cut - 1, 1] = _count_feature(known.get(word[:cut]))
            features[cut - 1, 2] = _count_feature(known.get(word[cut:]))
            for start in range(max(0, cut - self._longest), cut):
                if word[start:cut] in known:
                    features[cut - 1, 3] = (cut - start) / 10
                    break
            for end in range(min(size, cut + self._longest), cut, -1):
                if word[cut:end] in known:
                    features[cut - 1, 4] = (end - cut) / 10
                    break

    @staticmethod
    def batch(
        encoded: Sequence[tuple[np.ndarray, np.ndarray]],
    ) -> tuple[Int[Tensor, "words length"], Float[Tensor, "words length features"], Bool[Tensor, "words length"]]:
        """Pad words on the right; the mask is True where a cut is possible."""
        longest = max(len(ids) for ids, _ in encoded)
        letters = np.zeros((len(encoded), longest), dtype=np.int64)
        features = np.zeros((len(encoded), longest, FEATURES), dtype=np.float32)
        possible = np.zeros((len(encoded), longest), dtype=np.bool_)
        for row, (ids, values) in enumerate(encoded):
            letters[row, : len(ids)], features[row, : len(ids)] = ids, values
            possible[row, : len(ids) - 1] = True
        return torch.from_numpy(letters), torch.from_numpy(features), torch.from_numpy(possible)

    def save(self, path: str | Path, notes: Mapping[str, str] | None = None) -> Path:
        """Write one safetensors file; a path without that suffix is a folder that gets ``decompounder.safetensors``."""
        tagger, words = self.tagger, np.frombuffer("\n".join(self.lexicon).encode(), dtype=np.uint8).copy()
        tensors = {f"tagger.{name}": t for name, t in tagger.state_dict().items()}
        tensors["lexicon.words"] = torch.from_numpy(words)
        tensors["lexicon.counts"] = torch.tensor(list(self.lexicon.values()), dtype=torch.uint8)
        sizes = {"width": tagger.last.in_features, "layers": len(tagger.blocks), "kernel": tagger.kernel}
        Artefact(tensors, sizes, notes={**(notes or {}), "letters": self.letters}).save(_file(path), _FORMAT)
        return _file(path)

    @classmethod
    def load(cls, path: str | Path) -> Decompounder:
        """Read what `save` wrote.

        Raises
        ------
        UserError
            There is none, it is damaged, or it is something else.
        """
        source, again = _file(path), f"mintage train decompounder TEXT --out {path}"
        held = Artefact.load(source, _FORMAT, again)
        try:
            letters = held.notes["letters"]
            width, layers, kernel = (int(held.sizes[name]) for name in ("width", "layers", "kernel"))
            if not (0 < width <= _WIDEST and 0 < layers <= _DEEPEST and 0 < kernel <= LONGEST and kernel % 2):
                raise ValueError(f"sizes {held.sizes}")
            words = held.tensors["lexicon.words"].numpy().tobytes().decode("utf-8")
            counts = held.tensors["lexicon.counts"].tolist()
            lexicon = dict(zip(words.split("\n") if words else [], counts, strict=True))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"cannot read {source}: {str(error).splitlines()[0]}; make it with: {again}") from None
        tagger = Tagger(len(letters) + 2, width, layers, kernel)
        fill(tagger, held.under("tagger."), source, again)
        tagger.eval()
        return cls(letters, lexicon, tagger)


def decompound(word: str, *, model: str | Path) -> list[str]:
    """Split one word with a saved `Decompounder`, which is read once."""
    path = _file(model)
    return _loaded(path, path.stat().st_mtime_ns if path.exists() else 0).split(word)


@lru_cache(maxsize=4)
def _loaded(path: Path, changed: int) -> Decompounder:
    return Decompounder.load(path)


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / _FILE


def lower_letters(word: str) -> str:
    """Lower the case letter by letter, so that the length stays (``İ`` would become two)."""
    lowered = word.lower()
    return lowered if len(lowered) == len(word) else "".join(c.lower() if len(c.lower()) == 1 else c for c in word)


def _cut(word: str, cuts: Sequence[int] | np.ndarray) -> list[str]:
    ends = [0, *map(int, cuts), len(word)]
    return [word[start:end] for start, end in pairwise(ends)]


def _count_feature(bits: int | None) -> float:
    return 0.0 if bits is None else 0.5 + bits / 16
