"""Tokens of DNA: BPE over bases, k-mers side by side or overlapping, single bases; each a plain ``tokenizer.json``.

Ids 0 to 4 are [UNK], [CLS], [SEP], [PAD] and [MASK], as DNABERT-2's. Lower case is read as upper case, U as T; a run of
other letters (N and IUPAC's other codes) is one [UNK] of BPE, and makes an [UNK] of every k-mer that it touches.

Not here: FASTA (`mintage.data.Fasta`), what tokens are worth (`mintage.lm.core.dna_report`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mintage.data.fasta import BASES, certain_runs
from mintage.errors import UserError
from mintage.files import replace_folder
from mintage.options import Options, option
from mintage.progress import quiet

__all__ = ["CLS", "MASK", "PAD", "SEP", "SPECIAL", "DNABPETrainer", "DNATokenizer", "kmer_tokenize", "kmer_tokenizer"]

SPECIAL = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
UNK, CLS, SEP, PAD, MASK = range(5)

MOST_K = 8


@dataclass(frozen=True)
class DNATokenizer:
    """A tokenizer, and how sequences are written for it.

    Parameters
    ----------
    tokenizer
        Any whose special tokens are `SPECIAL`, DNABERT-2's own among them. One that knows whole words alone reads
        overlapping k-mers, which are written with blanks between them, as DNABERT's.

    Raises
    ------
    UserError
        The special tokens are others.
    """

    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        for index, token in enumerate(SPECIAL):
            if self.tokenizer.token_to_id(token) != index:
                raise UserError(
                    f"token {index} of this tokenizer is not {token}; make one with mintage train dna-tokenizer"
                )

    @cached_property
    def overlap(self) -> int:
        """Length of the k-mers where they overlap, else 0."""
        overlapping = isinstance(self.tokenizer.model, models.WordLevel)
        return max(len(token) for token in self.pieces) if overlapping else 0

    @cached_property
    def pieces(self) -> list[str]:
        """What each id is written as; nothing for special tokens."""
        found = [""] * len(self)
        for token, index in self.tokenizer.get_vocab().items():
            found[index] = "" if index < len(SPECIAL) else token
        return found

    @cached_property
    def lengths(self) -> Int[np.ndarray, " tokens"]:
        """Bases of each id; of overlapping k-mers one, since the others belong to its neighbours, too."""
        own = np.array([len(piece) for piece in self.pieces])
        return np.minimum(own, 1) if self.overlap else own

    def __len__(self) -> int:
        """Return the size of the vocabulary."""
        return self.tokenizer.get_vocab_size()

    def encode(self, sequence: str) -> list[int]:
        """Return the ids of a sequence without [CLS] and [SEP]."""
        return self.encode_all([sequence])[0]

    def encode_all(self, sequences: Sequence[str]) -> list[list[int]]:
        """Return the ids of many sequences."""
        texts = [sequence.upper().replace("U", "T") for sequence in sequences]
        if self.overlap:
            texts = [" ".join(kmer_tokenize(text, self.overlap)) for text in texts]
        return [found.ids for found in self.tokenizer.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the bases that ids stand for; special tokens are left out."""
        pieces = [self.pieces[index] for index in ids]
        if not self.overlap:
            return "".join(pieces)
        return "".join(piece[:1] for piece in pieces[:-1]) + "".join(pieces[-1:])

    def save(self, path: str | Path, notes: Mapping[str, str] | None = None) -> None:
        """Write a folder with ``tokenizer.json`` that transformers' AutoTokenizer loads, whole or not at all."""
        with replace_folder(path) as folder:
            self.write(folder, notes)

    def write(self, folder: Path, notes: Mapping[str, str] | None = None) -> None:
        """Write the files into a folder that is there."""
        named = dict(zip(("unk", "cls", "sep", "pad", "mask"), SPECIAL, strict=True))
        special = {f"{name}_token": token for name, token in named.items()}
        with quiet():
            made: Any = PreTrainedTokenizerFast(tokenizer_object=self.tokenizer, **special)
            made.save_pretrained(folder)
        if notes:
            (folder / "notes.json").write_text(json.dumps(dict(notes), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> DNATokenizer:
        """Load ``tokenizer.json``, from its folder or by its own name.

        Raises
        ------
        UserError
            There is none, it is damaged, or its special tokens are others.
        """
        file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise UserError(f"{path} holds no tokenizer.json; make one with mintage train dna-tokenizer")
        try:
            return cls(Tokenizer.from_file(str(file)))
        except UserError:
            raise
        except Exception as error:  # the library's own errors have no class of their own
            raise UserError(f"{file} is damaged ({str(error).partition(chr(10))[0]}); make it again") from None


def _complete(model: Any, cut: Any = None) -> Tokenizer:
    tokenizer: Any = Tokenizer(model)
    letters = [normalizers.Replace(base.lower(), base) for base in BASES]
    tokenizer.normalizer = normalizers.Sequence([*letters, *(normalizers.Replace(u, "T") for u in "uU")])
    if cut is not None:
        tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _framed(tokenizer: Any) -> DNATokenizer:
    """Add the special tokens that are not there, and put [CLS] and [SEP] around sequences."""
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    return DNATokenizer(tokenizer)


# -- BPE ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DNABPETrainer(Options):
    """BPE over bases, the most frequent pair first.

    The library's trainer counts pairs within words and keeps for every pair the words that hold it. DNA is one word, so
    that every merge goes through all of it; cut into chunks, training takes time in proportion to the bases. Pairs
    across the cuts, one in `chunk`, are not counted.
    """

    vocab_size: int = option(4096, "Tokens, the five special ones and the four bases among them.", least=9)
    max_token_length: int = option(32, "Bases of the longest token: repeats would be learnt whole.", least=2)
    chunk: int = option(1000, "Bases that are counted together.", least=2)

    def train(self, sequences: Iterable[str]) -> DNATokenizer:
        """Learn tokens from sequences, which are read once; what is not A, C, G, T or U parts them.

        Raises
        ------
        UserError
            There is no base, or too few for so many tokens.
        """
        tokenizer = _complete(models.BPE(unk_token=SPECIAL[UNK], fuse_unk=True))
        trainer: Any = trainers.BpeTrainer(
            vocab_size=self.vocab_size,  # pyright: ignore[reportCallIssue]
            special_tokens=list(SPECIAL),
            initial_alphabet=list(BASES),
            max_token_length=self.max_token_length + 1,  # the library's tokens are shorter than that
            show_progress=False,
        )
        seen = [0]
        tokenizer.train_from_iterator(self._chunks(sequences, seen), trainer)
        found = tokenizer.get_vocab_size()
        if not seen[0]:
            raise UserError("the sequences hold no A, C, G or T; pass DNA")
        if found < self.vocab_size:
            raise UserError(
                f"{seen[0]} bases give {found} tokens of at most {self.max_token_length} bases, "
                f"not vocab_size={self.vocab_size}; pass more DNA, or vocab_size={found}"
            )
        return _framed(tokenizer)

    def _chunks(self, sequences: Iterable[str], seen: list[int]) -> Iterator[str]:
        for sequence in sequences:
            for run in certain_runs(sequence):
                seen[0] += len(run)
                for start in range(0, len(run), self.chunk):
                    yield run[start : start + self.chunk]


# -- k-mers ------------------------------------------------------------------------------------------------------------


def kmer_tokenize(sequence: str, k: int, overlap: bool = True) -> list[str]:
    """Cut a sequence into k-mers.

    Parameters
    ----------
    sequence
        Any text.
    k
        Letters of a k-mer.
    overlap
        One at every letter, n - k + 1 of n, none where n < k (DNABERT); else side by side, and the rest letter by
        letter (Nucleotide Transformer).

    Raises
    ------
    UserError
        `k` is below 1.
    """
    if k < 1:
        raise UserError(f"k={k} is no length of a k-mer; pass e.g. 6")
    if overlap:
        return [sequence[start : start + k] for start in range(len(sequence) - k + 1)]
    whole = len(sequence) // k * k
    return [*(sequence[start : start + k] for start in range(0, whole, k)), *sequence[whole:]]


def kmer_tokenizer(k: int, overlap: bool = True) -> DNATokenizer:
    """Make the tokenizer of k-mers; see `kmer_tokenize`. ``k=1`` is one of single bases.

    Raises
    ------
    UserError
        `k` is not in 1 to 8.
    """
    if not 1 <= k <= MOST_K:
        raise UserError(f"k={k} is out of range; pass a number from 1 to {MOST_K} (there are 4^k k-mers)")
    words = ["".join(letters) for letters in itertools.product(BASES, repeat=k)]
    if overlap and k > 1:
        vocabulary = {token: index for index, token in enumerate([*SPECIAL, *words])}
        model: Any = models.WordLevel(vocabulary, unk_token=SPECIAL[UNK])
        return _framed(_complete(model, pre_tokenizers.WhitespaceSplit()))
    tokens = [*SPECIAL, *BASES, *(words if k > 1 else ())]
    model = models.WordPiece(
        {token: index for index, token in enumerate(tokens)}, unk_token=SPECIAL[UNK], continuing_subword_prefix=""
    )
    return _framed(_complete(model, pre_tokenizers.FixedLength(length=k)))
