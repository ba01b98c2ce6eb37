"""The joint comparison of segment: tokenizers trained on the same text to the same size, beside given rivals.

Not here: the table itself (`mintage.bench.segment.table`), the texts (`mintage.bench.segment.mix`), and the papers'
claims (`mintage.studies`).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mintage import catalog
from mintage.bench.contract import Asked, Bench
from mintage.bench.run import sources_of
from mintage.bench.segment.mix import Mix, open_mix
from mintage.bench.segment.table import TokenizerTable
from mintage.errors import UserError, missing_extra
from mintage.measure import Figure, Result, timed
from mintage.measure.memo import Memo
from mintage.options import option
from mintage.progress import Progress, silent
from mintage.segment.baselines import ByLanguage
from mintage.segment.contract import MOST_ENTRIES, Segmenter, Trainer, load
from mintage.segment.core.adapters import SentencePiece, Tiktoken, open_segmenter
from mintage.segment.core.hf import HFSegmenter
from mintage.segment.core.unigram import UNKNOWN
from mintage.tokenizer_files import PATTERNS

__all__ = ["SegmentBench"]

MIN_COUNT = 1
"""Of methods that leave rare words out: the mix is so small that their defaults would not fill a vocabulary."""


@dataclass(frozen=True, kw_only=True)
class SegmentBench(Bench):
    """Train tokenizers on one mix of twelve languages and compare them on held-out text.

    Nothing named: every ready method and baseline, beside tiktoken, sentencepiece and the embedded model's tokenizer.

    [dim]Examples[/dim]

      mintage bench segment

      mintage bench segment lib:max_len=8 superword-bpe:chunk=100 --vocab-size 4000

      mintage bench segment bpe unigram --lines 300

    Next: [bold]mintage report[/bold]
    """

    job: ClassVar[str] = "segment"
    shorter = "--lines 1000"

    vocab_size: int = option(8000, "Entries of every trained tokenizer.", least=1, most=MOST_ENTRIES)
    lines: int | None = option(
        None, "Lines of English text trained and measured on, the rest in proportion; default all.", least=100
    )
    baseline: str = option("bpe", "What the others stand beside.")

    def _measure(self, specs: list[str], asked: Asked) -> list[Result | Figure]:
        """Train and compare."""
        names = list(specs) or [m.name for m in catalog.methods(self.job) if m.status == "ready"]
        trainers = {spec: self.trainer(spec) for spec in dict.fromkeys([self.baseline, *names])}  # told before reading
        mix = open_mix(self.lines)
        sources = [file for trainer in trainers.values() for file in sources_of(type(trainer))]
        definition = {"specs": list(trainers), "vocab_size": self.vocab_size, "lines": self.lines, "seed": self.seed}
        memo = Memo(asked.work, definition, sources)
        segmenters, seconds = train_arms(trainers, mix, memo, asked.progress)
        if not specs:
            given, spent = given_rivals(segmenters[self.baseline], mix, self.vocab_size, asked.progress)
            segmenters, seconds = segmenters | given, seconds | spent
        settings = {"vocab_size": self.vocab_size, **({"lines": self.lines} if self.lines else {})}
        table = TokenizerTable(
            segmenters=segmenters,
            texts=mix.held,
            parallel=mix.parallel,
            gold=mix.gold,
            baseline=self.baseline,
            training_seconds=seconds,
            notes={spec: f"min_count={n}" for spec, t in trainers.items() if (n := getattr(t, "min_count", None))},
            said={"data": mix.name, "seed": self.seed, "settings": settings, "command": asked.command},
        )
        rows = table.rows(asked.progress)
        memo.delete()
        return rows

    def trainer(self, spec: str) -> Trainer:
        """Make the trainer of an arm; what the spec says goes before the bench's own settings."""
        return catalog.build(spec, self.job, vocab_size=self.vocab_size, min_count=MIN_COUNT, seed=self.seed)


def train_arms(
    trainers: dict[str, Trainer], mix: Mix, memo: Memo, progress: Progress = silent
) -> tuple[dict[str, Segmenter], dict[str, float]]:
    """Train every arm on the same text; `memo` keeps those that are done, so that a killed run goes on.

    Returns
    -------
    tuple
        Name to segmenter, and name to seconds of training.
    """
    seconds: dict[str, float] = {}
    for done, (spec, trainer) in enumerate(trainers.items()):
        progress("train", done, len(trainers))
        seconds[spec] = memo(spec, lambda s=spec, t=trainer: _train(t, mix, memo.folder / _slug(s)))
    progress("train", len(trainers), len(trainers))
    return {spec: load(memo.folder / _slug(spec)) for spec in trainers}, seconds


def _train(trainer: Trainer, mix: Mix, folder: Path) -> float:
    segmenter, seconds = timed(lambda: trainer.train(mix.train, work=folder.with_suffix(".work")))
    segmenter.save(folder)
    return seconds


def _slug(name: str) -> str:
    return "".join(char if char.isalnum() else "-" for char in name.lower())


# -- what is given or trained by others ----------------------------------------------------------------------------


def given_rivals(
    baseline: Segmenter, mix: Mix, vocab_size: int, progress: Progress = silent
) -> tuple[dict[str, Segmenter], dict[str, float]]:
    """Make what stands beside: tiktoken with BPE's merges, sentencepiece as it comes, the embedded tokenizer."""
    found: dict[str, Segmenter] = {}
    seconds: dict[str, float] = {}
    if isinstance(baseline, HFSegmenter) and baseline.method == "bpe":
        found["tiktoken (bpe's merges)"] = _as_tiktoken(baseline)
    for done, kind in enumerate(("bpe", "unigram")):
        progress("train sentencepiece", done, 2)
        name = f"sentencepiece {kind}"
        made, spent = timed(lambda kind=kind: _train_sentencepiece(kind, mix.train, vocab_size))
        if made is not None:
            found[name], seconds[name] = made, spent
    progress("train sentencepiece", 2, 2)
    with suppress(UserError):  # the embedded model is an extra of its own
        found["smollm2 (given)"] = open_segmenter("smollm2")
    return found, seconds


def _as_tiktoken(bpe: HFSegmenter) -> Tiktoken:
    try:
        import tiktoken
    except ModuleNotFoundError:
        raise missing_extra("tiktoken", "segment") from None
    ranks = {token: number for number, token in enumerate(bpe.tokens())}
    return Tiktoken(tiktoken.Encoding("bpe", pat_str=PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens={}))


def _train_sentencepiece(kind: str, texts: ByLanguage, vocab_size: int) -> SentencePiece | None:
    """Train with the library's settings and byte fallback; None where its alphabet does not fit into `vocab_size`."""
    try:
        import sentencepiece
    except ModuleNotFoundError:
        raise missing_extra("sentencepiece", "segment") from None
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            character_coverage=0.9995,
            unk_piece=UNKNOWN,
            max_sentence_length=1 << 24,  # it would pass over longer ones, which some scripts have and others not
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        if "Vocabulary size is smaller than required_chars" in str(error):
            return None
        raise
    return SentencePiece(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()))


def _sentences(texts: ByLanguage) -> Iterator[str]:
    for text in texts:
        yield from (line for line in text.splitlines() if line.strip())
