"""Needle threading: up to which length of text does a model still find keys, and follow threads of them?

A haystack of random key-value pairs is read, five kinds of questions are asked (`mintage.data.haystack`), and accuracy
by length gives an effective context limit for each, in characters, so that models with different tokenizers compare.

Not here: branched threads; models behind a web service; the report (`mintage.audit.core.needle_report`). Longer than
200 lines: five tasks share one grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mintage.audit.contract import Audit, Report
from mintage.audit.core.needle_report import Needle, needle_report
from mintage.data.haystack import (
    TASKS,
    Direction,
    Example,
    Haystack,
    Placement,
    Task,
    conditional_needles,
    make_haystack,
    multi_thread,
    multiple_needles,
    single_needle,
    thread,
)
from mintage.errors import UserError
from mintage.measure.retrieval import score_list, score_value
from mintage.models import CausalLM, tiny_causal_lm
from mintage.options import option
from mintage.progress import Progress, silent

__all__ = ["NeedleThreading", "examples"]


@dataclass(frozen=True, kw_only=True, eq=False)
class NeedleThreading(Audit):
    """Find the length of text up to which a model still finds keys and follows threads of them.

    Five retrieval tasks over haystacks of random keys (Roberts, Han and Albanie, ICLR 2025).

    [dim]Examples[/dim]

      mintage audit needle-threading --tasks single --pairs 4,8 --form complete

      mintage audit needle-threading --tasks single --keep snapkv:budget=0.25

    Next: [bold]mintage bench needle-threading[/bold]
    """

    subject = "model"

    tasks: tuple[Task, ...] = option(TASKS, "Of single, multiple, conditional, thread, multi-thread.")
    pairs: tuple[int, ...] = option((8, 16, 32), "Sizes of the haystack; a pair of UUIDs has 80 characters.", least=1)
    depths: tuple[int | float, ...] = option(
        (0, 25, 50, 75, 100), "Where single needles lie, in percent.", least=0, most=100
    )
    needles: tuple[int, ...] = option((2, 4), "Keys asked for at once (multiple, conditional).", least=1)
    steps: tuple[int, ...] = option((2, 3), "Look-ups of a thread.", least=1)
    threads: int = option(2, "Threads followed at once (multi-thread).", least=1)
    repeats: int = option(5, "Haystacks for every setting; few give wide intervals.", least=1)
    placement: Placement = option("random", "How several needles lie.")
    direction: Direction = option("forward", "How threads run.")
    hex_digits: int | None = option(
        None, "Keys of so many digits instead of UUIDs: a variant, not the paper's.", least=1
    )
    form: Literal["question", "chat", "complete"] = option(
        "question",
        "The paper's; the same as the user's turn of a chat; or the answer opened, for models that only "
        "continue a text (ours).",
    )
    threshold: float = option(0.75, "Score that a length within the limit must reach.", above=0, most=1)
    policy: Callable[[Any], Any] | None = None
    """Called with the model, gives a context to generate in, e.g. a `mintage.keep.Policy`."""
    seed: int = option(0, "Of the haystacks.", least=0, below=2**63)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tasks or not self.pairs:
            raise UserError("there is nothing to ask; pass at least one task and one number of pairs")
        least = min(self.pairs)
        asked = {
            "multiple": max(self.needles, default=1),
            "conditional": max(self.needles, default=1),
            "thread": max(self.steps, default=1),
            "multi-thread": self.threads * max(self.steps, default=1),
        }
        for task in self.tasks:
            if asked.get(task, 1) > least:
                raise UserError(
                    f"task {task} needs {asked[task]} pairs, the smallest haystack has {least}; pass more pairs"
                )

    def run(self, subject: Any, *, name: str = "", progress: Progress = silent) -> Report:
        """Ask a `mintage.models.CausalLM` all questions of the grid.

        Raises
        ------
        UserError
            The subject is no model with a tokenizer; a haystack does not fit its context (it is never cut: that would
            delete needles).
        """
        if not isinstance(subject, CausalLM):
            told = name or repr(subject)[:60]
            raise UserError(
                f"{told} is no language model with a tokenizer; load one with mintage.models.load_causal_lm"
            )
        notes = [f"Characters are those of the haystack; tokens are those of the whole prompt; {self.repeats} repeats."]
        if self.hex_digits:
            notes.append(f"Keys of {self.hex_digits} hexadecimal digits: a variant, not the paper's UUIDs.")
        if self.form == "complete":
            notes.append("The answer is opened for the model: a variant, not the paper's prompt.")
        asked = list(self.ask(subject, progress))
        return needle_report(
            asked, name or subject.name, threshold=self.threshold, window=_window(subject), notes=notes
        )

    def ask(self, lm: CausalLM, progress: Progress = silent) -> Iterator[Needle]:
        """Yield every question of the grid with the model's response and its score."""
        grid = list(examples(self))
        self._check_fit(lm, max((e for _, e in grid), key=lambda e: len(e.haystack.text)))
        prompts = [self._ids(lm, example) for _, example in grid]
        for done, ((variant, example), ids) in enumerate(zip(grid, prompts, strict=True)):
            response = self._answer(lm, ids, _new_tokens(lm, example))
            if self.form == "complete" and example.many:
                response = f'["{response}'
            found = score_list(response, example.answers) if example.many else score_value(response, example.answers[0])
            yield Needle(
                task=example.task,
                variant=variant,
                pairs=len(example.haystack.pairs),
                characters=len(example.haystack.text),
                score=found.score,
                tokens=ids.shape[1],
                response=response,
                found=found,
            )
            progress("questions", done + 1, len(grid))

    def _check_fit(self, lm: CausalLM, longest: Example) -> None:
        """Refuse haystacks that the model does not read whole, and say how many pairs it does."""
        window, spare = _window(lm), _new_tokens(lm, longest)

        def tokens(pairs: int) -> int:
            return self._ids(lm, single_needle(make_haystack(pairs, self.seed, self.hex_digits), 50)).shape[1]

        needed = self._ids(lm, longest).shape[1] + spare
        if not window or needed <= window:
            return
        room = window - needed + tokens(max(self.pairs))  # for the haystack with the shortest question
        most = max(self.pairs) * room // tokens(max(self.pairs))
        while most > 0 and tokens(most) > room:
            most -= 1
        told = f"pass at most {most} pairs" if most > 0 else "no haystack of this form fits it"
        raise UserError(
            f"a haystack of {max(self.pairs)} pairs takes {needed - spare} tokens and {spare} to answer, {lm.name} "
            f"reads {window}; {told} (nothing is cut: that would delete needles)"
        )

    def _ids(self, lm: CausalLM, example: Example) -> Tensor:
        text = example.completion if self.form == "complete" else example.prompt
        return lm.encode(text, chat=self.form == "chat")

    @torch.inference_mode()
    def _answer(self, lm: CausalLM, ids: Tensor, new: int) -> str:
        model: Any = lm.model
        with nullcontext() if self.policy is None else self.policy(model):
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )
        return str(lm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))

    @classmethod
    def tiny(cls) -> NeedleThreading:
        """Ask a few questions about short keys."""
        return cls(pairs=(4, 6), depths=(0, 100), needles=(2,), steps=(2,), repeats=1, hex_digits=4)

    @classmethod
    def tiny_subject(cls) -> CausalLM:
        """Make a random model over bytes."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        bytes_only = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
        bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bytes_only.decoder = decoders.ByteLevel()
        model = tiny_causal_lm(vocab_size=256, max_position_embeddings=1024)
        return CausalLM(model, PreTrainedTokenizerFast(tokenizer_object=bytes_only), "bytes")


def examples(audit: NeedleThreading) -> Iterator[tuple[str, Example]]:
    """Yield the questions of a grid, each with the name of its variant; equal settings give equal questions."""
    for pairs in sorted(audit.pairs):
        for seed in range(audit.seed, audit.seed + audit.repeats):
            haystack = make_haystack(pairs, seed, audit.hex_digits)
            for task in audit.tasks:
                yield from _questions(audit, task, haystack, seed)


def _questions(audit: NeedleThreading, task: Task, haystack: Haystack, seed: int) -> list[tuple[str, Example]]:
    if task == "single":
        return [(f"depth {depth:g}%", single_needle(haystack, depth)) for depth in audit.depths]
    if task in ("multiple", "conditional"):
        ask = multiple_needles if task == "multiple" else conditional_needles
        return [(f"{n} needles", ask(haystack, n, audit.placement, seed)) for n in audit.needles]
    if task == "thread":
        return [(f"{steps} steps", thread(haystack, steps, audit.direction, seed)) for steps in audit.steps]
    many = audit.threads
    return [
        (f"{many} threads of {steps}", multi_thread(haystack, many, steps, audit.direction, seed))
        for steps in audit.steps
    ]


def _window(lm: CausalLM) -> int | None:
    return getattr(lm.model.config.get_text_config(decoder=True), "max_position_embeddings", None)


def _new_tokens(lm: CausalLM, example: Example) -> int:
    """Tokens of the answer, and a few for a beginning that is not scored against it."""
    text = str(list(example.answers)) if example.many else example.answers[0]
    return len(lm.encode(text, chat=False)[0]) + 6
