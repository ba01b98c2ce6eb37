"""Does the last successor save forwards, and does a learnt one save more?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mintage import catalog
from mintage.data import Prompt, read_prompts, spread
from mintage.draft import Drafter, generate
from mintage.measure.study import Comparison, Finding, Measure, Run, Study, above, at_least, mean
from mintage.models import CausalLM, load_causal_lm
from mintage.options import option
from my_tokens.drafter import LastSuccessor

OURS, LEARNT, LOOKUP, PLAIN = "last-successor", "learnt successors", "prompt-lookup", "plain"
PER_FORWARD = mean("tokens")


@dataclass(frozen=True, kw_only=True)
class LastSuccessorStudy(Study):
    """Count the tokens that a forward of the model emits, beside plain decoding and prompt lookup.

    [dim]Example[/dim]

      mintage bench last-successor --prompts 6 --successors successors.safetensors

    Next: [bold]mintage report[/bold]
    """

    method, job = "last-successor", "draft"

    model: str = option("smollm2", "smollm2 (embedded), a folder, or a hub id.")
    prompts: int = option(12, "Prompts, spread over the categories of those that ship.", least=2)
    new_tokens: int = option(64, "Tokens of every answer.", least=1)
    successors: str | None = option(None, "File of learnt successors: one arm more.")

    def common(self, run: Run) -> Mapping[str, Any]:
        """What all rows say."""
        return {"model": run.subject.name, "data": f"{self.prompts} prompts", "settings": {"new": self.new_tokens}}

    def subject(self, run: Run) -> CausalLM:
        """The model."""
        return load_causal_lm(self.model, dtype="float32")

    def arms(self, run: Run) -> Mapping[str, Drafter]:
        """What is compared, by name."""
        learnt = {} if self.successors is None else {LEARNT: LastSuccessor(successors=self.successors)}
        rivals = {name: catalog.build(name, "draft") for name in (LOOKUP, PLAIN)}
        return {OURS: LastSuccessor(), **learnt, **rivals}

    def measures(self, run: Run) -> Iterable[Measure]:
        """Every arm answers every prompt; what is measured is kept, so a killed run goes on."""
        prompts = {prompt.id: prompt for prompt in spread(read_prompts(), self.prompts)}
        yield Measure(name="answers", units=lambda run: prompts, of=self.answered)

    def answered(self, run: Run, drafter: Drafter, prompt: Prompt) -> Mapping[str, float]:
        """Answer a prompt: columns by name."""
        ids = run.subject.encode(prompt.turns[0])
        out = generate(run.subject.model, ids, drafter, max_new_tokens=self.new_tokens)
        return {"per forward": out.stats.tokens_per_forward, "checksum": float(out.sequences.sum())}

    def rows(self, run: Run) -> Iterable[Comparison | Finding]:
        """The claims: each has a rule, and the rule alone decides."""
        ours = [arm for arm in (OURS, LEARNT) if arm in run.arms]
        for arm in ours:
            yield Comparison(
                metric=f"tokens per forward, {arm}, minus those of plain decoding",
                ours=arm,
                rival=PLAIN,
                of="per forward",
                by=PER_FORWARD,
                baseline=[PLAIN],
                peers=[LOOKUP],
                claim=f"{arm} emits more tokens per forward than plain decoding",
                holds=above(0),
            )
        if LEARNT in run.arms:
            yield Comparison(
                metric="tokens per forward, learnt successors minus last successors alone",
                ours=LEARNT,
                rival=OURS,
                of="per forward",
                by=PER_FORWARD,
                baseline=[OURS],
                claim="learnt successors help where a token is new",
                holds=above(0),
            )
        equal = [run.column(arm, "checksum") == run.column(PLAIN, "checksum") for arm in ours]
        yield Finding(
            metric="answers that are those of plain decoding",
            value=float(min(some.mean() for some in equal)),
            unit="share",
            n=self.prompts,
            claim="drafting changes no answer",
            holds=at_least(1),
        )
