"""Count the words of a corpus: in several processes, in bounded memory, and again from where a killed count stopped."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from pathlib import Path

from mintage.data.corpus import gather
from mintage.errors import UserError
from mintage.files import replace_file

__all__ = ["count_words"]

_BATCH = 1 << 20  # characters that go to a process at once
_SAVE_EVERY = 64  # batches


def count_words(
    corpus: Iterable[str],
    words: Callable[[str], Iterable[str]],
    *,
    processes: int = 1,
    max_words: int | None = None,
    state: str | Path | None = None,
    progress: Callable[[int], None] = lambda characters: None,
) -> Counter[str]:
    """Count words.

    Parameters
    ----------
    corpus
        Documents, e.g. a `mintage.data.Corpus`.
    words
        Cuts a document into words; with `processes` above 1 it must be picklable.
    processes
        How many processes cut; the counts do not depend on it.
    max_words
        Keep at most about this many different words: whenever twice as many are held, the rarest are dropped (so the
        counts of rare words are then lower bounds). None keeps all.
    state
        A file that keeps the count so far; a call with the same corpus and the same file goes on from there, and a
        finished count removes it.
    progress
        Told the number of characters counted so far.

    Returns
    -------
    Counter
        Word to count, in order of first appearance.

    Raises
    ------
    UserError
        A parameter is out of range, or `state` is damaged or belongs to another corpus.
    """
    if processes < 1:
        raise UserError(f"processes={processes}; pass at least 1")
    if max_words is not None and max_words < 1:
        raise UserError(f"max_words={max_words}; pass at least 1, or None to keep all")
    mark = str(getattr(corpus, "fingerprint", ""))
    done, characters, counts = _read(Path(state), mark) if state and Path(state).exists() else (0, 0, Counter[str]())
    batches = islice(gather(corpus, _BATCH), done, None)
    for found, size in _counted(batches, words, processes):
        counts.update(found)
        if max_words is not None and len(counts) > 2 * max_words:
            counts = _prune(counts, max_words)
        done, characters = done + 1, characters + size
        progress(characters)
        if state and done % _SAVE_EVERY == 0:
            _write(Path(state), mark, done, characters, counts)
    if state:
        Path(state).unlink(missing_ok=True)
    return _prune(counts, max_words) if max_words is not None and len(counts) > max_words else counts


def _count_batch(words: Callable[[str], Iterable[str]], batch: list[str]) -> tuple[Counter[str], int]:
    counts: Counter[str] = Counter()
    for text in batch:
        counts.update(words(text))
    return counts, sum(map(len, batch))


def _counted(
    batches: Iterator[list[str]], words: Callable[[str], Iterable[str]], processes: int
) -> Iterator[tuple[Counter[str], int]]:
    """Count batch after batch; results come in the order of the batches, so that the outcome is always the same."""
    if processes == 1:
        for batch in batches:
            yield _count_batch(words, batch)
        return
    waiting: deque[Future[tuple[Counter[str], int]]] = deque()
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for batch in batches:
            waiting.append(pool.submit(_count_batch, words, batch))
            if len(waiting) > 2 * processes:  # no more text in flight than keeps all of them busy
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _prune(counts: Counter[str], keep: int) -> Counter[str]:
    """Drop the rarest words; among equals those that came last."""
    kept = dict(sorted(counts.items(), key=lambda item: -item[1])[:keep])
    return Counter({word: count for word, count in counts.items() if word in kept})


def _write(path: Path, mark: str, done: int, characters: int, counts: Counter[str]) -> None:
    with replace_file(path) as temporary:
        temporary.write_text(
            json.dumps({"mark": mark, "batches": done, "characters": characters, "counts": counts}), encoding="utf-8"
        )


def _read(path: Path, mark: str) -> tuple[int, int, Counter[str]]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        found = held["mark"], held["batches"], held["characters"], Counter(held["counts"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a count that was begun; delete it to start again") from None
    if found[0] != mark:
        raise UserError(f"{path} was begun on another corpus; delete it, or pass another file")
    return found[1:]
