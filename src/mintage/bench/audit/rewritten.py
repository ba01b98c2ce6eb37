"""Published tokenizers: which digit strings are single tokens, and what `to_r2l` makes of those cut from the left."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mintage.audit.core.digits import group_digits, tokenizer_cut
from mintage.audit.core.r2l import to_r2l
from mintage.audit.number_tokens import NumberTokens
from mintage.bench.audit.adders import LONGEST, SHORTEST, addition_problems
from mintage.data import texts
from mintage.measure.study import Finding
from mintage.tokenizer_files import load_tokenizer

__all__ = ["tokenizer_rows"]


def tokenizer_rows(name: str, file: Path, problems: int) -> Iterator[Finding]:
    """Audit a tokenizer; turn it round where it cuts from the left, and look at the numbers of so many problems."""
    tokenizer = load_tokenizer(file)
    found = NumberTokens().run(tokenizer, name=name).findings
    common: dict[str, Any] = {"model": f"{name} tokenizer", "settings": {}}
    yield Finding(
        **common,
        metric="digit strings of length 1 to 3 that are one token",
        unit="of 1110",
        value=float(found["single tokens"] or 0),
        n=1110,
        data="all 1110 strings",
        note=f"Cut: {found['cut']}; {found['example']}.",
    )
    if str(found["cut"]).startswith("left to right"):
        yield _turned(tokenizer, problems, common)


def _turned(tokenizer: Tokenizer, problems: int, common: dict[str, Any]) -> Finding:
    changed = to_r2l(tokenizer)
    sentences = [text for text in texts("tatoeba", "all") if not any(unicodedata.category(c)[0] == "N" for c in text)]
    same = [tokenizer.encode(text).ids == changed.encode(text).ids for text in sentences]
    asked = addition_problems(match=problems)["length match"]
    numbers = [str(number) for problem in asked for number in (problem.a, problem.b, problem.answer)]
    before, after = (
        [cut == group_digits(number) for number, cut in zip(numbers, tokenizer_cut(one, numbers), strict=True)]
        for one in (tokenizer, changed)
    )
    added = changed.get_vocab_size() - tokenizer.get_vocab_size()
    return Finding(
        **common,
        metric="numbers cut from the right after its digit branch is rewritten",
        unit="%",
        value=100 * float(np.mean(after)),
        n=len(after),
        baseline={"as published": 100 * float(np.mean(before))},
        data=f"numbers of {SHORTEST}-{LONGEST + 1} digits; "
        f"{len(sentences)} digit-free sentences in 53 languages (Tatoeba)",
        claim="rewriting the digit branch cuts every number from the right, other text as before, with no new token",
        holds=lambda run: all(after) and all(same) and not added,
        note=f"10642122 = {'|'.join(tokenizer_cut(changed, ['10642122'])[0])}. Digit-free sentences with the same "
        f"tokens: {sum(same)} of {len(same)}; tokens added: {added}.",
    )
