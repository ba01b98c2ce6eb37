"""Decompounder: a small tagger that learns from hyphens where compounds are cut (stage 1 of CompoundPiece).

A substitute: the paper (arXiv 2305.14214, section 3.2) fine-tunes ByT5-base, 580 million parameters pretrained on the
web in 101 languages. Here a convolutional network over letters, trained from nothing in minutes on one core, says for
every letter whether a constituent ends after it (binary cross-entropy). What ByT5 brings along from its pretraining,
knowing words, is given to the network as features of a lexicon: how frequent what lies before a cut, and what lies
after it, are as words of their own, and how long the longest words are that end and begin there.

Not here: normalised constituents (bride for brides); pieces are cut out of the word as it is.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mintage.errors import UserError
from mintage.files import read_jsonl
from mintage.segment.compoundpiece import counted, hyphen_pairs, split_by_constituents, web_words
from mintage.segment.contract import Progress, silent
from mintage.train import Settings, train
from mintage.weights import read_weights, write_weights

__all__ = ["Decompounder", "Tagger", "TaggerRecipe", "decompound", "train_decompounder"]

LONGEST = 64  # characters; longer words stay whole
FEATURES = 5
_FORMAT, _FILE = "mintage decompounder 1", "decompounder.safetensors"
_RARE_LETTER = 5  # letters seen less often share one embedding
_DEEPEST, _WIDEST = 32, 4096  # of a file that is read
_SORTED_TOGETHER = 16  # batches drawn together and sorted by length


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

    # -- learning ------------------------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        pairs: Sequence[tuple[str, str]],
        *,
        words: Mapping[str, int] | None = None,
        gold: Sequence[tuple[str, Sequence[str]]] = (),
        folder: str | Path | None = None,
        steps: int = 1000,
        gold_steps: int | None = None,
        lr: float = 3e-3,
        batch: int = 128,
        width: int = 48,
        layers: int = 3,
        kernel: int = 5,
        dropout: float = 0.1,
        lexicon_size: int = 100_000,
        seed: int = 0,
        progress: Progress = silent,
    ) -> Decompounder:
        """Learn from hyphens, of one language or of several together, and then perhaps from given constituents.

        Parameters
        ----------
        pairs
            What `mintage.segment.compoundpiece.hyphen_pairs` makes: closed form and hyphenated form; equal for words
            that are not split.
        words
            Counts of the corpus's words; those without a hyphen are the lexicon. None: no lexicon.
        gold
            Stage 2: words and their constituents, normalised or not, one for words that are not split.
        folder
            Keeps checkpoint and log, so that the same call goes on after a kill.
        steps, gold_steps, lr, batch
            Optimiser steps of the two stages (the second: a quarter of the first), peak learning rate (a third of it in
            stage 2), words per step.
        width, layers, kernel, dropout
            Of the `Tagger`.
        lexicon_size
            Most frequent words kept.
        seed
            Of everything random.
        progress
            Told the steps.

        Raises
        ------
        UserError
            No pair can be learned from.
        """
        examples = [e for word, target in pairs if (e := _example(word, target)) is not None]
        if not any(cuts for _, cuts in examples):
            raise UserError("no pair has a hyphen in its target; pass pairs made by hyphen_pairs")
        counts = Counter(char for word, _ in examples for char in _lower(word))
        letters = "".join(sorted(c for c, n in counts.items() if n >= _RARE_LETTER))
        torch.manual_seed(seed)
        tagger = Tagger(len(letters) + 2, width, layers, kernel, dropout)
        made = cls(letters, _lexicon(words or {}, lexicon_size), tagger)
        stages = [("learn from hyphens", examples, steps, lr)]
        if gold:
            taught = [e for word, parts in gold if (e := _gold_example(word, parts)) is not None]
            if not taught:
                raise UserError(
                    "no gold word can be cut at its constituents; pass pairs such as ('Haustür', ['Haus', 'Tür'])"
                )
            stages.append(("learn from gold", taught, gold_steps or max(steps // 4, 1), lr / 3))
        with TemporaryDirectory() as temporary:
            place = Path(folder or temporary)
            for stage, taught, count, rate in stages:
                recipe = TaggerRecipe(made, taught, batch=batch, seed=seed)
                settings = Settings(
                    steps=count,
                    lr=rate,
                    warmup=min(50, count),
                    weight_decay=0.01,
                    seed=seed,
                    save_every=min(200, max(count // 5, 1)),
                )
                # other data or sizes get another folder: a checkpoint is only gone on from by the call that began it
                run = place / f"{stage.rpartition(' ')[2]}-{recipe.fingerprint}"
                train(recipe, run, settings, device="cpu", on_step=lambda done, of, s=stage: progress(s, done, of))
        tagger.eval()
        return made

    # -- splitting -----------------------------------------------------------------------------------------------

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
        letters, features, real = self._batch([self.encode(word) for word in words])
        return (self.tagger(letters, features).sigmoid() * real).numpy()

    def encode(self, word: str) -> tuple[np.ndarray, np.ndarray]:
        """Return letter ids, shape (length,), and features, shape (length, 5), of a word."""
        lowered = _lower(word)
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
    def _batch(
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

    # -- keeping -------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file; a path without that suffix is a folder that gets ``decompounder.safetensors``."""
        target = _file(path)
        tagger = self.tagger
        sizes = {"width": tagger.last.in_features, "layers": len(tagger.blocks), "kernel": tagger.kernel}
        text = np.frombuffer("\n".join(self.lexicon).encode(), dtype=np.uint8).copy()
        tensors = {f"tagger.{name}": t for name, t in tagger.state_dict().items()}
        tensors["lexicon.words"] = torch.from_numpy(text)
        tensors["lexicon.counts"] = torch.tensor(list(self.lexicon.values()), dtype=torch.uint8)
        write_weights(target, _FORMAT, tensors, {"letters": self.letters, "sizes": json.dumps(sizes)})
        return target

    @classmethod
    def load(cls, path: str | Path) -> Decompounder:
        """Read what `save` wrote.

        Raises
        ------
        UserError
            There is none, it is damaged, or it is something else.
        """
        source = _file(path)
        again = f"train one with: mintage train decompounder TEXT --out {path}"
        tensors, notes = read_weights(source, _FORMAT, again)
        try:
            sizes, letters = json.loads(notes["sizes"]), notes["letters"]
            width, layers, kernel = (int(sizes[name]) for name in ("width", "layers", "kernel"))
            if not (0 < width <= _WIDEST and 0 < layers <= _DEEPEST and 0 < kernel <= LONGEST and kernel % 2):
                raise ValueError(f"sizes {sizes}")
            words = tensors.pop("lexicon.words").numpy().tobytes().decode("utf-8")
            counts = tensors.pop("lexicon.counts").tolist()
            lexicon = dict(zip(words.split("\n") if words else [], counts, strict=True))
            tagger = Tagger(len(letters) + 2, width, layers, kernel)
            tagger.load_state_dict({name.removeprefix("tagger."): t for name, t in tensors.items()})
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"cannot read {source}: {str(error).splitlines()[0]}; {again}") from None
        tagger.eval()
        return cls(letters, lexicon, tagger)


class TaggerRecipe:
    """What the training loop needs: words with their cuts, in batches of similar length, and the loss.

    Parameters
    ----------
    decompounder
        Encodes words; its tagger is trained.
    examples
        Words and the places of their cuts.
    batch
        Words per step.
    seed
        Of the order.
    """

    def __init__(
        self, decompounder: Decompounder, examples: Sequence[tuple[str, tuple[int, ...]]], *, batch: int, seed: int
    ) -> None:
        self.module, self.decompounder, self.examples = decompounder.tagger, decompounder, examples
        self.size, self.seed = min(batch, len(examples)), seed
        self._epoch: tuple[int, list[int]] = (-1, [])
        self._cache: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the examples, their order in batches, the lexicon and the network's sizes."""
        shapes = [list(p.shape) for p in self.module.parameters()]
        known = [self.decompounder.letters, list(self.decompounder.lexicon.items())]
        held = json.dumps([self.examples, self.size, self.seed, shapes, known])
        return hashlib.sha256(held.encode()).hexdigest()[:12]

    def _words_of(self, index: int) -> list[int]:
        """Take a pool of shuffled words, sorted by length, cut into batches whose order is shuffled, too."""
        together = min(_SORTED_TOGETHER, len(self.examples) // self.size)
        per_epoch = len(self.examples) // (self.size * together)
        pool, place = divmod(index, together)
        epoch, number = divmod(pool, per_epoch)
        if self._epoch[0] != epoch:
            order = list(range(len(self.examples)))
            Random(f"{self.seed} {epoch}").shuffle(order)
            self._epoch = (epoch, order)
        width = self.size * together
        chosen = sorted(self._epoch[1][number * width :][:width], key=lambda i: len(self.examples[i][0]))
        places = list(range(together))
        Random(f"{self.seed} {pool} batches").shuffle(places)
        return chosen[places[place] * self.size :][: self.size]

    def batch(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return letters, features, the mask of possible cuts, and the cuts, all (words, length, ...)."""
        chosen = [self.examples[i] for i in self._words_of(index)]
        letters, features, possible = self.decompounder._batch([self._encoded(word) for word, _ in chosen])
        cuts = torch.zeros(letters.shape)
        for row, (_, places) in enumerate(chosen):
            cuts[row, [place - 1 for place in places]] = 1
        return letters, features, possible, cuts

    def _encoded(self, word: str) -> tuple[np.ndarray, np.ndarray]:
        if word not in self._cache:
            self._cache[word] = self.decompounder.encode(word)
        return self._cache[word]

    def loss(self, module: Any, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Binary cross-entropy per possible cut; logged beside it: the share of words cut exactly right."""
        letters, features, possible, cuts = batch
        logits = module(letters, features)
        losses = F.binary_cross_entropy_with_logits(logits, cuts, reduction="none")
        loss = (losses * possible).sum() / possible.sum().clamp(min=1)
        exact = (((logits > 0) == (cuts > 0)) | ~possible).all(1).float().mean()
        return loss, {"exact": exact.item()}


def train_decompounder(
    corpus: Iterable[str],
    *,
    work: str | Path,
    gold: str | Path | None = None,
    processes: int = 1,
    max_words: int = 10_000_000,
    seed: int = 0,
    progress: Progress = silent,
    **settings: Any,
) -> Decompounder:
    """Count a corpus's words and learn from its hyphens, as ``mintage train decompounder`` does.

    Parameters
    ----------
    corpus
        Documents, e.g. a `mintage.data.Corpus`.
    work
        Keeps counts and checkpoints; the same call goes on after a kill.
    gold
        JSON lines with ``word`` and ``segments`` for stage 2.
    processes, max_words
        As in `mintage.data.count_words`.
    seed, progress, **settings
        As in `Decompounder.fit`.

    Raises
    ------
    UserError
        The corpus has no hyphens, `gold` lacks a field, or `work` belongs to another corpus.
    """
    taught = []
    for number, row in enumerate(read_jsonl(gold) if gold else [], start=1):
        word, parts = row.get("word"), row.get("segments")
        if not isinstance(word, str) or not isinstance(parts, list) or not all(isinstance(p, str) for p in parts):
            raise UserError(f"{gold}, row {number}: expected a word and a list of segments")
        taught.append((word, parts))
    words = counted(corpus, web_words, Path(work), progress, processes=processes, max_words=max_words)
    pairs = hyphen_pairs(words, seed=seed)
    if not pairs:
        raise UserError("no word of the texts has a hyphen to learn from; pass more text")
    return Decompounder.fit(pairs, words=words, gold=taught, folder=work, seed=seed, progress=progress, **settings)


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


def _lower(word: str) -> str:
    """Lower the case letter by letter, so that the length stays (``İ`` would become two)."""
    lowered = word.lower()
    return lowered if len(lowered) == len(word) else "".join(c.lower() if len(c.lower()) == 1 else c for c in word)


def _cut(word: str, places: Sequence[int] | np.ndarray) -> list[str]:
    ends = [0, *map(int, places), len(word)]
    return [word[start:end] for start, end in pairwise(ends)]


def _example(word: str, target: str) -> tuple[str, tuple[int, ...]] | None:
    """Return the word and the places of its hyphens; None where they cannot be told or nothing can be learned."""
    pieces = target.split("-")
    if not 2 <= len(word) <= LONGEST or sum(map(len, pieces)) != len(word) or "" in pieces:
        return None
    return word, tuple(np.cumsum([len(piece) for piece in pieces[:-1]]).tolist())


def _gold_example(word: str, constituents: Sequence[str]) -> tuple[str, tuple[int, ...]] | None:
    found = split_by_constituents(word, constituents) if len(constituents) > 1 else ([word], 0)
    return None if found is None else _example(word, "-".join(found[0]))


def _lexicon(words: Mapping[str, int], size: int) -> dict[str, int]:
    """Keep the most frequent words of letters, lower case, with the logarithm (base 2) of their counts."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        if word.isalpha() and len(word) > 1:
            counts[_lower(word)] += count
    return {word: min(int(math.log2(count)), 255) for word, count in counts.most_common(size)}


def _count_feature(bits: int | None) -> float:
    return 0.0 if bits is None else 0.5 + bits / 16
