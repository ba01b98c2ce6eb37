"""Unigram language models (Kudo, 2018) from weighted strings: sentencepiece's EM and pruning, with seeds counted here.

EM starts from seed pieces in proportion to how often they occur, and what is unlikely at the start is pruned and never
comes back. sentencepiece 0.2.3 counts a string's *weight* for single characters only and not for longer seeds, so that
frequent words lose to their own parts (4,000 entries on WikiText-2: 2.80 characters per token, 3.31 with the seeds of
this file). Not here: subword sampling, and corpora of more distinct strings than memory holds.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from mintage.errors import missing_extra

__all__ = ["UNKNOWN", "learn_unigram", "seed_pieces"]

SEEDS = 1_000_000
"""At most, as in sentencepiece."""

UNKNOWN = "\ue000"
"""Name of the unknown piece; sentencepiece cuts texts at its usual name, ``<unk>``, which WikiText is full of."""


def seed_pieces(weights: Mapping[str, int], longest: int, most: int = SEEDS) -> dict[str, int]:
    """Count the substrings that a Unigram model may begin with.

    Parameters
    ----------
    weights
        Strings and how often each occurs.
    longest
        Characters of a substring at most; two at least.
    most
        Keep those that cover most characters, i.e. of highest occurrences times length.

    Returns
    -------
    dict
        Substring to occurrences, two or more. One that is always followed by the same character is left out, since the
        longer one covers what it covers (the inner nodes of a suffix tree, as in sentencepiece).
    """
    words = sorted(word for word in weights if word)
    if not words:
        return {}
    codes = np.frombuffer("".join(words).encode("utf-32-le"), dtype=np.uint32).astype(np.int64)
    lengths = np.array([len(word) for word in words])
    weight = np.repeat(np.array([weights[word] for word in words], dtype=np.int64), lengths)
    ends = np.repeat(np.cumsum(lengths), lengths)
    alphabet, starts = int(codes.max()) + 1, np.arange(len(codes))
    # groups: the substrings of one length that occur twice or more, numbered; `group` tells each start which it is in
    _, group = np.unique(codes, return_inverse=True)
    counts = np.bincount(group, weights=weight).astype(np.int64)
    first = np.zeros(len(counts), dtype=np.int64)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for length in range(1, longest + 1):
        going = (starts + length < ends[starts]) & (counts[group] > 1)
        parents, longer = group[going], starts[going]
        keys, seen, children = np.unique(
            parents * alphabet + codes[longer + length], return_index=True, return_inverse=True
        )
        grown = np.bincount(children, weights=weight[longer], minlength=len(keys)).astype(np.int64)
        if length > 1:
            branching = counts > 1
            if length < longest:
                branching[parents[seen][grown == counts[parents[seen]]]] = False
            found.append((first[branching], np.full(branching.sum(), length), counts[branching]))
        if not len(keys):
            break
        starts, group, counts, first = longer, children, grown, longer[seen]
    if not found:
        return {}
    places, sizes, occurrences = (np.concatenate(parts) for parts in zip(*found, strict=True))
    best = np.lexsort((places, sizes, -occurrences * sizes))[:most]
    text = "".join(words)
    return {text[places[i] : places[i] + sizes[i]]: int(occurrences[i]) for i in best.tolist()}


def learn_unigram(weights: Mapping[str, int], vocab_size: int, longest: int) -> dict[str, float]:
    """Learn pieces from weighted strings, each a sentence of its own; nothing crosses them.

    Parameters
    ----------
    weights
        Strings and how often each occurs, without tabs and line ends; characters are taken as they are.
    vocab_size
        Pieces at most; all characters are among them.
    longest
        Characters of a piece.

    Returns
    -------
    dict
        Piece to log probability.

    Raises
    ------
    UserError
        sentencepiece is not installed.
    """
    try:
        import sentencepiece
    except ModuleNotFoundError:
        raise missing_extra("sentencepiece", "segment") from None
    library: Any = sentencepiece
    model = io.BytesIO()
    with TemporaryDirectory() as folder:
        seeds = Path(folder) / "seeds.tsv"
        lines = (f"{piece}\t{count}\n" for piece, count in seed_pieces(weights, longest).items())
        seeds.write_text("".join(lines), encoding="utf-8", newline="\n")
        library.SentencePieceTrainer.train(
            sentence_iterator=(f"{word}\t{weights[word]}" for word in sorted(weights)),
            input_format="tsv",
            seed_sentencepieces_file=str(seeds),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size + 1,  # the unknown piece, which is dropped below
            hard_vocab_limit=False,
            character_coverage=1.0,
            max_sentencepiece_length=longest,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_by_whitespace=False,
            split_by_unicode_script=False,
            split_by_number=False,
            split_digits=False,
            max_sentence_length=1 << 24,
            unk_id=0,
            unk_piece=UNKNOWN,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,  # the order of sums, so the outcome, depends on it
            minloglevel=2,
        )
    learned = library.SentencePieceProcessor(model_proto=model.getvalue())
    return {learned.id_to_piece(i): learned.get_score(i) for i in range(1, learned.get_piece_size())}
