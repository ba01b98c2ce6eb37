"""Equal-Info: do longer windows compress better, and can a model learn what they hold but not plain arithmetic code?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from mintage.bench.segment import codes, second_models
from mintage.bench.segment.codes import ARITHMETIC, Code, CodeCorpus
from mintage.bench.segment.second_models import BYTES, EQUAL, SUBWORDS
from mintage.measure import Figure, bootstrap_ratio
from mintage.measure.study import Finding, Measure, Rule, Run, Study, above, at_most, below, from_on
from mintage.options import option

LEARNED, NOT_LEARNED = 0.05, 0.01  # shares of the unigram loss: at least so much below it is learned, less is not


@dataclass(frozen=True, kw_only=True)
class EqualInfoStudy(second_models.DecoderScale, Study):
    """Test Equal-Info's claims: longer windows compress better, and a model can learn what they hold.

    Held-out documents are coded in windows of 16 to 128 bits and without windows, with one n-gram per corpus. Then
    five small decoders take equal steps on the same text as Equal-Info windows, plain arithmetic code, gzip, bytes,
    and BPE that compresses like the windows. What a decoder learned is how far its loss on held-out text is below
    that of the training tokens' frequencies alone. A quarter of an hour on one core. The paper's second models have
    up to 2 G weights and see 26 G tokens.

    [dim]Examples[/dim]

      mintage bench equal-info

      mintage bench equal-info --documents 5 --steps 120
    """

    method: ClassVar[str] = "equal-info"
    job: ClassVar[str] = "segment"

    documents: int = option(50, "Held-out documents per corpus.", least=1)
    document_bytes: int = option(10_000, "Bytes of a document; the paper codes 10,240 at a time.", least=100)
    order: int = option(3, "Bytes of context of the n-gram.", least=0, most=6)

    def subject(self, run: Run) -> Mapping[str, CodeCorpus]:
        """Read both corpora; second models learn from the first."""
        return {"python": codes.python_corpus(self.document_bytes), "wikitext": codes.wikitext_corpus()}

    def arms(self, run: Run) -> Mapping[str, Code]:
        """Return the codes."""
        return {**second_models.LEARNERS, **codes.CODES}

    def measures(self, run: Run) -> Iterator[Measure]:
        """Compress both corpora, then train the second models."""
        for key in run.subject:
            units = partial(lambda key, run: {key: run.subject[key]}, key)
            yield Measure(name=f"compress {key}", units=units, of=partial(self._compress, key), arms=list(codes.CODES))
        yield Measure(name="learn", units=lambda run: {"all": None}, of=self._learn, arms=list(second_models.LEARNERS))

    def _compress(self, key: str, run: Run, code: Code, corpus: CodeCorpus) -> dict[str, Any]:
        found = codes.compressed(code, corpus, self.order, self._held_out(corpus))
        return {f"{key} {name}": values for name, values in found.items()}

    def _learn(self, run: Run, code: Code, unit: None) -> dict[str, Any]:
        corpus, folder = run.subject["python"], run.memo.folder / code.kind
        step = partial(run.progress, f"train on {code.kind}")
        return second_models.learned(
            code, corpus, self._held_out(corpus), self, order=self.order, seed=self.seed, folder=folder, on_step=step
        )

    def _held_out(self, corpus: CodeCorpus) -> list[bytes]:
        return corpus.documents(self.documents, self.document_bytes)

    def rows(self, run: Run) -> Iterator[Finding]:
        """Claims about compression of each corpus, and about learning."""
        for key in run.subject:
            yield from self._compression(run, key)
        yield from self._learning(run)

    def _compression(self, run: Run, key: str) -> Iterator[Finding]:
        said: dict[str, Any] = {"model": f"byte {self.order}-gram", "settings": {"order": self.order}}
        n = len(self._held_out(run.subject[key]))
        said["data"] = f"{run.subject[key].name}, {n} held-out documents of {self.document_bytes / 1000:g} kB"
        exact = np.concatenate([run.column(arm, f"{key} exact") for arm in codes.LADDER])
        yield Finding(
            metric="documents decoded exactly", value=float(exact.mean()), unit="share", n=len(exact),
            claim="every document comes back exactly, in windows of every size and without windows",
            holds=Rule("all", lambda i: i.value == 1), **said,
        )  # fmt: skip
        sizes = [run.column(arm, f"{key} code") for arm in codes.LADDER]
        steps = [bootstrap_ratio(shorter, longer, seed=self.seed) for shorter, longer in pairwise(sizes)]
        yield Finding(
            metric="compression gained by the next longer window, least step", unit="x", n=n,
            value=min(steps, key=lambda step: step.value),
            claim="compression grows with the window, 16 < 24 < 32 < 64 < 128 bits < no windows (each step > 1)",
            tested=lambda run: min(steps, key=lambda step: step.low), holds=above(1),
            note="steps: " + ", ".join(f"{step.value:.3f}" for step in steps), **said,
        )  # fmt: skip
        yield from codes.measured_compression(run, key, said)

    def _learning(self, run: Run) -> Iterator[Finding]:
        corpus, found = run.subject["python"], second_models.outcomes(run)
        n, note = len(self._held_out(corpus)), second_models.about_tokens(found, self)
        said: dict[str, Any] = {
            "model": second_models.about_decoders(self, self.seed),
            "data": f"{corpus.name}, {len(corpus.second) / 1e6:.1f} MB to learn from, {n} held-out documents of "
            f"{self.document_bytes / 1000:g} kB",
            "settings": {name: getattr(self, name) for name in ("order", "steps", "batch_size", "context", "lr")},
        }
        nothing = f"a model over plain arithmetic code learns nothing: less than {NOT_LEARNED:.0%} below the unigram"
        learns = f"a model over Equal-Info windows learns: at least {LEARNED:.0%} below the unigram loss of each place"
        for name, claim, rule in (
            (ARITHMETIC, f"{nothing} loss, interval included", below(NOT_LEARNED)),
            (EQUAL, f"{learns} in the window, interval included", from_on(LEARNED)),
        ):
            yield Finding(
                metric=f"loss below the unigram loss, {name}", value=found[name].gain,
                unit="share", n=found[name].n, peers={o: found[o].gain.value for o in found if o != name},
                claim=claim, holds=rule, note=note, **said,
            )  # fmt: skip
        for low, high in ((EQUAL, BYTES), (SUBWORDS, EQUAL)):
            yield Finding(
                metric=f"bits per byte of held-out text, {low} against {high}", unit="bits/byte", n=found[low].n,
                value=found[low].rate, more_is_better=False,
                baseline={high: found[high].rate.value},
                peers={name: o.rate.value for name, o in found.items() if name not in (low, high)},
                claim=f"at equal steps a model over {low} needs no more bits per byte than one over {high}",
                holds=at_most(found[high].rate.value),
                note="The paper finds this order at its sizes; equal steps are not equal bytes, and a code brings what "
                f"its n-gram knows: plain arithmetic code has few bits per byte with nothing learned. {note}", **said,
            )  # fmt: skip
        yield second_models.generation_steps(run, n, said)

    def figures(self, run: Run) -> Iterator[Figure]:
        """Draw the ladder of windows of each corpus, what was learned, and windows of a document."""
        for key, corpus in run.subject.items():
            yield codes.ladder_figure(run, key, corpus.name)
        corpus = run.subject["python"]
        first = self._held_out(corpus)[0]
        yield from second_models.learning_figures(run, corpus, first, order=self.order, steps=self.steps)
