"""Train a `mintage.segment.Decompounder` from hyphens, and then perhaps from given constituents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import torch

from mintage.data import Corpus
from mintage.errors import UserError
from mintage.files import read_jsonl
from mintage.options import Options, option
from mintage.progress import Progress, silent
from mintage.segment.core.artefact import counted
from mintage.segment.decompounder import Decompounder, Tagger, lower_letters
from mintage.segment.hyphens import hyphen_pairs, web_words
from mintage.segment.training.tagger import TaggerRecipe, gold_example, lexicon_of, pair_example
from mintage.train import Settings
from mintage.train.training import Training, Work

__all__ = ["DecompounderTraining", "TaggerSettings", "train_decompounder"]

_RARE_LETTER = 5  # letters seen less often share one embedding


@dataclass(frozen=True, kw_only=True)
class TaggerSettings(Options):
    """Sizes and training of the tagger."""

    steps: int = option(1000, "Steps of stage 1: learn from hyphens.", least=1)
    gold_steps: int | None = option(None, "Steps of stage 2: learn from gold; default a quarter of stage 1's.", least=1)
    lr: float = option(3e-3, "Peak learning rate; a third of it in stage 2.", above=0)
    batch: int = option(128, "Words per step.", least=1)
    width: int = option(48, "Channels of the tagger.", least=1)
    layers: int = option(3, "Blocks of the tagger.", least=1)
    kernel: int = option(5, "Letters that one block sees; odd.", least=1)
    dropout: float = option(0.1, "On every block and before the last layer.", least=0, below=1)
    lexicon: int = option(100_000, "Most frequent words that the tagger knows.", least=0)
    seed: int = option(0, "Of everything random.", least=0, below=2**63)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise UserError(f"kernel={self.kernel} has no letter in the middle; pass an odd number, e.g. 5")


def train_decompounder(
    pairs: Sequence[tuple[str, str]],
    settings: TaggerSettings | None = None,
    *,
    words: Mapping[str, int] | None = None,
    gold: Sequence[tuple[str, Sequence[str]]] = (),
    folder: str | Path | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> Decompounder:
    """Learn from hyphens, of one language or of several together, and then perhaps from given constituents.

    Parameters
    ----------
    pairs
        What `mintage.segment.hyphens.hyphen_pairs` makes: closed form and hyphenated form; equal for words that are
        not split.
    settings
        Sizes and steps.
    words
        Counts of the corpus's words; those without a hyphen are the lexicon. None: no lexicon.
    gold
        Stage 2: words and their constituents, normalised or not, one for words that are not split.
    folder
        Keeps checkpoint and log, so that the same call goes on after a kill.
    device, progress
        As in `mintage.train.training.Work`.

    Raises
    ------
    UserError
        No pair can be learned from.
    """
    its = settings or TaggerSettings()
    examples = [e for word, target in pairs if (e := pair_example(word, target)) is not None]
    if not any(cuts for _, cuts in examples):
        raise UserError("no pair has a hyphen in its target; pass pairs made by hyphen_pairs")
    counts = Counter(char for word, _ in examples for char in lower_letters(word))
    letters = "".join(sorted(c for c, n in counts.items() if n >= _RARE_LETTER))
    torch.manual_seed(its.seed)
    tagger = Tagger(len(letters) + 2, its.width, its.layers, its.kernel, its.dropout)
    made = Decompounder(letters, lexicon_of(words or {}, its.lexicon), tagger)
    stages = [("hyphens", examples, its.steps, its.lr)]
    if gold:
        taught = [e for word, parts in gold if (e := gold_example(word, parts)) is not None]
        if not taught:
            raise UserError("no gold word can be cut at its constituents; pass e.g. ('Haustür', ['Haus', 'Tür'])")
        stages.append(("gold", taught, its.gold_steps or max(its.steps // 4, 1), its.lr / 3))
    with TemporaryDirectory() as temporary:
        for name, taught, steps, lr in stages:
            recipe = TaggerRecipe(made, taught, batch=its.batch, seed=its.seed)
            often = {"warmup": min(50, steps), "save_every": min(200, max(steps // 5, 1))}
            schedule = Settings(steps=steps, lr=lr, weight_decay=0.01, seed=its.seed, **often)
            # other data or sizes get another folder: a checkpoint is only gone on from by the call that began it
            stage = f"{name}-{recipe.fingerprint}"
            said = lambda _, done, of, name=name: progress(f"learn from {name}", done, of)  # noqa: E731
            Work(Path(folder or temporary), device, said).stage(stage, recipe, schedule)
    tagger.eval()
    return made


@dataclass(frozen=True, kw_only=True)
class DecompounderTraining(TaggerSettings, Training):
    """Train a splitter of compounds from the hyphens that people write in a text."""

    name: ClassVar[str] = "decompounder"
    examples: ClassVar[tuple[str, ...]] = (
        "mintage train decompounder german.txt --out de.safetensors",
        "mintage train decompounder texts/ --gold gold.jsonl --processes 4",
    )
    after: ClassVar[str] = "mintage segment decompound Haustürschlüssel --model de.safetensors"

    texts: tuple[str, ...] = option(help="Text files, folders, .jsonl files, or hub:owner/name.", argument=True)
    gold: str = option("", "JSON lines with word and segments: a second stage learns from them.")
    processes: int = option(1, "Processes that count words; the outcome does not depend on it.", least=1)
    max_words: int = option(10_000_000, "About how many different words are held while counting.", least=1)

    def learn(self, work: Work) -> Decompounder:
        """Count words, make pairs, learn."""
        gold = _gold(self.gold) if self.gold else []
        corpus, sizes = Corpus(*self.texts), {"processes": self.processes, "max_words": self.max_words}
        words = counted(corpus, web_words, work.folder, work.progress, **sizes)
        pairs = hyphen_pairs(words, seed=self.seed)
        if not pairs:
            raise UserError("no word of the texts has a hyphen to learn from; pass more text")
        return train_decompounder(
            pairs, self, words=words, gold=gold, folder=work.folder, device=work.device, progress=work.progress
        )


def _gold(path: str) -> list[tuple[str, list[str]]]:
    gold = []
    for number, row in enumerate(read_jsonl(path), start=1):
        word, parts = row.get("word"), row.get("segments")
        if not isinstance(word, str) or not isinstance(parts, list) or not all(isinstance(p, str) for p in parts):
            raise UserError(f"{path}, row {number}: expected a word and a list of segments")
        gold.append((word, parts))
    return gold
