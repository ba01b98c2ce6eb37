"""``mintage generate``: write text with a drafted model."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from mintage.cli.code import complete_at
from mintage.cli.fields import made_from, parameters_of
from mintage.cli.input import read_input
from mintage.cli.progress import told
from mintage.errors import UserError
from mintage.options import DTYPES, Options, option, settings_of

if TYPE_CHECKING:
    from mintage.draft import Stats

DRAFT = "token-recycling:budget=auto+prompt-lookup"

_READY = 8
"""Tokens of the prompt that are read to get ready."""


@dataclass(frozen=True, kw_only=True)
class Writing(Options):
    """What ``mintage generate`` may be told, beside the prompt."""

    model: str = option("smollm2", "smollm2 (embedded), a folder, or a hub id.")
    draft: str | None = option(
        None,
        "Drafter: name[:key=value,...], several joined by +, or none for plain decoding. "
        f"Default: {DRAFT}, or none with --keep.",
    )
    keep: str | None = option(
        None, "Cache policy: name[:key=value,...], e.g. snapkv:budget=256 (entries), 0.25 or 4MB."
    )
    bytes: bool = option(False, "Write bytes, exactly: a --raw prompt may end within a word; -n counts bytes.")
    ensemble: tuple[str, ...] = option(
        (), "A further model, with any tokenizer, that votes on every byte; repeat. Implies --bytes.", repeat=True
    )
    suffix: str | None = option(
        None, "Fill in what stands between the prompt and this text, with a model trained for it. Implies --bytes."
    )
    code: str | None = option(
        None,
        "Complete code at FILE:LINE (behind that line) or FILE:LINE:COLUMN, in place of a prompt; at most 100 tokens.",
    )
    level: Literal["line", "token"] = option("line", "With --code: complete the line, or the next token.")
    draft_model: str | None = option(
        None,
        "For drafters that need one: a drafter's .safetensors, a folder or hub id, or rounded:BITS of the model. "
        "Default: the shipped drafter for smollm2, rounded:4 for others.",
    )
    max_new_tokens: int = option(256, "Stop after this many.", short="-n")
    temperature: float = option(0.0, "0 is greedy.", short="-t")
    top_k: int = option(0, "Keep the k most likely tokens; 0 is off.")
    top_p: float = option(1.0, "Keep this probability mass; 1 is off.")
    repetition_penalty: float = option(1.0, "Above 1 discourages repeats; 1 is off.")
    seed: int | None = option(None, "Repeat a sample.", least=0, below=2**63)
    raw: bool = option(False, "Continue the text as it is, without the chat template.")
    system: str | None = option(None, "System message of the chat.")
    compile: bool = option(False, "Score with a compiled step (CPU; a minute the first time, then kept).")
    engine: Literal["auto", "torch", "native"] = option(
        "auto", "What runs the model: torch, a C++ step for the CPU (float32 sums), or the faster one, measured once."
    )
    compare: bool = option(False, "Also decode plainly, and compare text and time.")
    stream: bool = option(True, "Show text as it comes; accepted drafts are green.")
    table: Path | None = option(None, "Keep what token-recycling learned in this file, from call to call.")
    dtype: str = option("auto", DTYPES)
    device: str = option("cpu", "cpu, cuda, ...")

    @property
    def by_bytes(self) -> bool:
        """Whether bytes are written: asked for, or implied."""
        return self.bytes or bool(self.ensemble) or self.suffix is not None

    @property
    def drafts(self) -> bool:
        """Whether a drafter is named."""
        return self.draft not in (None, "none")

    def check(self) -> None:
        """Refuse what does not go together, before anything is loaded."""
        if 0 < self.temperature < 1e-6:
            raise UserError(f"--temperature {self.temperature:g} overflows; pass 0 to be greedy, or at least 1e-06")
        if self.raw and self.system is not None:
            raise UserError(
                "--system is part of the chat, which --raw leaves out; put it into the prompt, or drop --raw"
            )
        if self.compare and not self.max_new_tokens:
            raise UserError("--compare needs at least 1 new token; pass --max-new-tokens 1 or more")
        if not self.by_bytes:
            return
        others = {
            "--draft": self.drafts,
            "--keep": self.keep is not None,
            "--compile": self.compile,
            "--compare": self.compare,
            "--table": self.table is not None,
            "--top-k": self.top_k > 0,
            "--repetition-penalty": self.repetition_penalty != 1.0,
        }
        for name, asked in others.items():
            if asked:
                raise UserError(f"{name} is about tokens and does not go with --bytes; drop one of them")
        if self.suffix is not None and self.system is not None:
            raise UserError("--system is part of a chat, which --suffix leaves out; drop one of them")

    def settings(self) -> dict[str, Any]:
        """How tokens are chosen, for the loop."""
        names = ("temperature", "top_k", "top_p", "repetition_penalty", "seed", "compile", "max_new_tokens")
        engine = "torch" if self.compile and self.engine == "auto" else self.engine
        return {"engine": engine, **{name: getattr(self, name) for name in names}}

    def arguments(self) -> dict[str, Any]:
        """The same for transformers; given even where off, lest the model's generation config has others."""
        names = ("max_new_tokens", "repetition_penalty")
        names += ("temperature", "top_k", "top_p") if self.temperature else ()
        return {"do_sample": bool(self.temperature), **{name: getattr(self, name) for name in names}}


def generate(prompt: str | None, **values: Any) -> None:
    """Generate text, drafting ahead: the same text as without, in fewer forwards.

    [dim]Examples[/dim]

      mintage generate "Write a haiku about tides"

      mintage generate "Fix this: def f(x) return x" --compare

      mintage generate "Once upon" --raw -t 0.8 --draft token-recycling:budget=16

      git diff | mintage generate - --system "Summarise this diff in one line"

      mintage generate - --keep snapkv:budget=256 < report.txt

      mintage generate "The quick brown fox jum" --raw --bytes -n 40

      mintage generate --code src/main.py:12 --model my-coder

    Next: [bold]mintage bench draft[/bold]
    """
    asked: Writing = made_from(Writing, values)
    is_forest = (Path(asked.model) / "forest.json").is_file()
    if asked.code is not None:
        if prompt is not None:
            raise UserError(f"--code {asked.code} takes the place of the prompt {prompt!r}; drop one of them")
        complete_at(asked, is_forest or _is_byte_lm(asked.model) or _holds(asked.model, b'"mrt5"'))
        return
    if asked.level != "line":
        raise UserError(f"--level {asked.level} is for --code FILE:LINE; pass that, or drop it")
    if prompt is None:
        raise UserError("there is no prompt; pass some text, - to read standard input, or --code FILE:LINE")
    given = read_input(prompt)
    if not given.strip():
        raise UserError("the prompt is empty; pass some text, or - to read standard input")
    if _holds(asked.model, b'"mrt5"'):
        _by_rewriter(asked, given)
        return
    if _is_byte_lm(asked.model):
        _by_byte_lm(asked, given)
        return
    if is_forest:
        _by_forest(asked, given)
        return
    text = "" if asked.by_bytes and (asked.raw or asked.suffix is not None) else _text(given)
    asked.check()
    if asked.by_bytes:
        _by_bytes(asked, given)
        return
    policy = None if asked.keep is None else _policy(asked)
    if policy is not None and not asked.drafts:
        _keeping(asked, text, policy)
    else:
        _drafting(asked, text)


_PROMPT = Annotated[str | None, typer.Argument(help="What to say to the model; - reads standard input.")]
_PARAMETERS = [
    inspect.Parameter("prompt", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=_PROMPT),
    *parameters_of(Writing),
]
generate.__signature__ = inspect.Signature(_PARAMETERS)  # type: ignore[attr-defined]
generate.__annotations__ = {parameter.name: parameter.annotation for parameter in _PARAMETERS}


def _load(asked: Writing, text: str) -> tuple[Any, Any]:
    """Load the model, and make the ids of the prompt."""
    from mintage.models import load_causal_lm

    lm = load_causal_lm(asked.model, dtype=asked.dtype, device=asked.device, note=told)
    return lm, lm.encode(text, chat=not asked.raw, system=asked.system)


def _consoles() -> tuple[Console, Console]:
    """Return where text goes, and where notes go."""
    return Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False)


def _drafting(asked: Writing, text: str) -> None:
    """Decode with a drafter."""
    from mintage.bench.draft.arms import needs_draft_model
    from mintage.draft import generate, load_draft_model
    from mintage.measure import timed

    draft = asked.draft or DRAFT
    spec = "plain" if draft == "none" else draft
    models: dict[str, Any] = {}
    drafting = asked.draft_model is not None or needs_draft_model(spec)
    drafter = None if drafting else _drafter(spec, asked.table)  # a bad spec is told before the model loads
    lm, ids = _load(asked, text)
    if drafting:
        models = {"draft_model": load_draft_model(asked.draft_model, lm).model}
        drafter = _drafter(spec, asked.table, **models)
    console, notes = _consoles()
    streamer = _Streamer(console, lm.tokenizer) if asked.stream else None
    settings = asked.settings()
    with notes.status("getting ready"):  # what is done once per machine or model does not run on the clock
        first = _drafter(spec, asked.table, **models)
        _, seconds = timed(lambda: generate(lm.model, ids[:, -_READY:], first, **{**settings, "max_new_tokens": 2}))
    if seconds > 1:
        notes.print(f"ready after {seconds:.1f} s: what was measured or built is kept for the next call", style="dim")
    if asked.compile and (line := _slower(lm.model)):
        notes.print(line, style="yellow", markup=False)
    out = generate(lm.model, ids, drafter, streamer=streamer, **settings)
    if streamer is None:
        text = lm.tokenizer.decode(out.sequences[0, ids.shape[1] :], skip_special_tokens=True)
        _write(console, f"{text}\n")
    notes.print(_summary(spec, out.stats), style="dim")
    if asked.table is not None and asked.max_new_tokens:
        for learner in _learners(drafter):
            learner.save()
    if asked.compare:
        _compare(notes, lm, ids, out, asked)


def _slower(model: Any) -> str:
    """Tell if a compiled step is not what runs a model fastest on this machine; measured once."""
    from mintage.draft import CompiledTarget, target_for
    from mintage.draft.core.engine import engine_seconds

    seconds = engine_seconds({"compiled": CompiledTarget(model), "auto": target_for(model, "auto")})
    one, eight = seconds["compiled"]
    if one * eight <= seconds["auto"][0] * seconds["auto"][1]:
        return ""
    told = " and ".join(f"{1000 * s:.3g}" for s in seconds["auto"])
    return (
        f"the compiled step takes {1000 * one:.3g} and {1000 * eight:.3g} ms for 1 and 8 tokens here, --engine auto "
        f"{told}: leave --compile out"
    )


def _text(prompt: bytes) -> str:
    try:
        return prompt.decode()
    except UnicodeDecodeError:
        raise UserError(
            "the prompt is not UTF-8 text; convert it, e.g. with iconv, or go on from its bytes with --raw --bytes"
        ) from None


def _drafter(spec: str, table: Path | None, **given: Any) -> Any:
    from mintage.draft import Union

    drafter = Union.from_spec(spec, store=None if table is None else str(table), **given)
    if table is not None and not _learners(drafter):
        raise UserError("--table needs token-recycling among the drafters")
    return drafter


def _learners(drafter: Any) -> list[Any]:
    """Tell the drafter, or the parts of a union, that can save what they learned."""
    return [d for d in (drafter, *getattr(drafter, "drafters", ())) if hasattr(d, "save")]


def _summary(name: str, stats: Stats) -> str:
    line = (
        f"{name}: {stats.new_tokens} tokens in {stats.seconds['total']:.2f} s "
        f"({stats.tokens_per_second:.1f} tokens/s), {stats.target_forwards} forwards, "
        f"{stats.tokens_per_forward:.2f} tokens per forward"
    )
    if stats.draft_forwards:
        line += f", {stats.draft_forwards} draft forwards"
    if stats.acceptance_by_depth:
        line += "; accepted by depth " + " ".join(f"{share:.0%}" for share in stats.acceptance_by_depth[:6])
    return line


def _compare(notes: Console, lm: Any, ids: Any, out: Any, asked: Writing) -> None:
    """Decode plainly with transformers' own generate, and put the two side by side."""
    import torch

    from mintage.measure import timed

    mask, arguments = torch.ones_like(ids), asked.arguments()
    lm.model.generate(ids, attention_mask=mask, max_new_tokens=2, do_sample=False, pad_token_id=0)  # warm up
    pad = lm.tokenizer.pad_token_id or 0
    plain, seconds = timed(lambda: lm.model.generate(ids, attention_mask=mask, pad_token_id=pad, **arguments))
    new = plain.shape[1] - ids.shape[1]
    notes.print(f"plain generate: {new} tokens in {seconds:.2f} s ({new / seconds:.1f} tokens/s)", style="dim")
    ratio = out.stats.tokens_per_second / (new / seconds)
    verdict = f"drafted decoding is {ratio:.2f}x as fast per token"
    if not asked.temperature:
        verdict += f", and the text is {_sameness(lm, ids, out.sequences, plain)}"
    notes.print(verdict, style="bold")


def _sameness(lm: Any, ids: Any, drafted: Any, plain: Any) -> str:
    a, b = drafted[0, ids.shape[1] :].tolist(), plain[0, ids.shape[1] :].tolist()
    if a == b:
        return "identical"
    first = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return (
        f"identical for {first} tokens, then parts at a near-tie (in {lm.model.dtype} one row and many rows round "
        "differently; --dtype float32 shows equality)"
    )


def _by_bytes(asked: Writing, prompt: bytes) -> None:
    """Write bytes, by one model or by several that vote."""
    from mintage.models import load_causal_lm
    from mintage.retrofit import ByteEnsemble, ByteLM, infilling

    names = [asked.model, *asked.ensemble]
    lms = [load_causal_lm(name, dtype=asked.dtype, device=asked.device, note=told) for name in names]
    sampling: dict[str, Any] = {"temperature": asked.temperature, "top_p": asked.top_p, "seed": asked.seed}
    if asked.suffix is not None:  # the last word of the prompt, which may be cut, is the same for all
        after = asked.suffix.encode("utf-8", "surrogateescape")
        prompts = [infilling(ByteLM.of(lm), prompt, after) for lm in lms]
        models, prefix = [model for model, _ in prompts], prompts[0][1]
    elif asked.raw:
        models, prefix = [ByteLM.of(lm) for lm in lms], prompt
    else:  # the chat's control tokens are no text: covers must not cross them
        chats = [lm.encode(prompt.decode(), system=asked.system)[0].tolist() for lm in lms]
        models, prefix = [ByteLM.of(lm, context=chat) for lm, chat in zip(lms, chats, strict=True)], b""
    sampler = models[0] if len(models) == 1 else ByteEnsemble(models)
    console, notes = _consoles()
    for lm, made in zip(lms, models, strict=True):
        if odd := {prompt[index] for index in made.vocabulary.unwritable(prompt)}:
            shown = ", ".join(f"0x{byte:02x}" for byte in sorted(odd))
            notes.print(f"{lm.name} writes no text with {shown}: read as single tokens or U+FFFD", style="yellow")
    stream = sampler.stream(prefix, asked.max_new_tokens, **sampling)
    shown = _show_bytes(console, (bytes([byte]) for byte in stream), asked.stream)
    counts = ((lm.name, made.distribution.forwards) for lm, made in zip(lms, models, strict=True))
    forwards = ", ".join(f"{name} {count} forwards" for name, count in counts)
    notes.print(f"{shown}; {forwards}", style="dim", markup=False)


def _show_bytes(console: Console, stream: Iterable[bytes], at_once: bool) -> str:
    """Write bytes as text, as they come or at the end, and return how many there were and how long they took."""
    import codecs
    import time

    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    started, written, held = time.perf_counter(), 0, ""
    for some in stream:
        piece = decoder.decode(some)
        written += len(some)
        held += piece
        if at_once:
            _write(console, piece)
    rest = decoder.decode(b"", final=True)
    _write(console, f"{rest if at_once else held + rest}\n")
    seconds = time.perf_counter() - started
    return f"{written} bytes in {seconds:.2f} s ({written / seconds:.0f} bytes/s)"


def _is_byte_lm(name: str) -> bool:
    """Whether a model is one of the lm job; looked at without torch where it is not."""
    return name.startswith("mintage/") or _holds(name, b'"mintage-')


def _holds(name: str, mark: bytes) -> bool:
    path = Path(name) / "config.json"
    return path.is_file() and mark in path.read_bytes()


def _sampling(asked: Writing, what: str) -> Any:
    """Return how symbols are chosen, for models with a loop of their own, and refuse what they do not take."""
    from mintage.lm import Sampling

    others = {
        "--draft": asked.drafts,
        "--keep": asked.keep is not None,
        "--ensemble": bool(asked.ensemble),
        "--suffix": asked.suffix is not None,
        "--draft-model": asked.draft_model is not None,
        "--compile": asked.compile,
        "--compare": asked.compare,
        "--table": asked.table is not None,
        "--system": asked.system is not None,
        "--repetition-penalty": asked.repetition_penalty != 1.0,
        "--engine": asked.engine == "native",
        "--dtype": asked.dtype not in ("auto", "float32"),
    }
    for name, given in others.items():
        if given:
            raise UserError(f"{name} does not go with {asked.model}, {what} in float32; drop it")
    sampled = bool(asked.temperature)
    return Sampling(
        max_new_tokens=asked.max_new_tokens,
        do_sample=sampled,
        temperature=asked.temperature if sampled else 1.0,
        top_k=asked.top_k,
        top_p=asked.top_p,
        seed=asked.seed,
    )


def _by_byte_lm(asked: Writing, prompt: bytes) -> None:
    """Write with a byte language model: it has no chat, and goes on from the bytes of the prompt."""
    from mintage.lm import load_byte_lm

    how = _sampling(asked, "which writes byte by byte")
    model = load_byte_lm(asked.model, asked.device)
    console, notes = _consoles()
    shown = _show_bytes(console, model.stream(prompt, how), asked.stream)
    notes.print(f"{asked.model}: {shown}", style="dim", markup=False)


def _by_rewriter(asked: Writing, prompt: bytes) -> None:
    """Write what a model that reads one row and writes another makes of the prompt."""
    import time

    from mintage.lm import MrT5
    from mintage.lm.core.rewriting import rewrite

    how = _sampling(asked, "which reads a text and writes another")
    model = MrT5.from_pretrained(asked.model).to(asked.device)
    console, notes = _consoles()
    started = time.perf_counter()
    written = rewrite(model, prompt, how)
    seconds = time.perf_counter() - started
    _write(console, f"{written.decode(errors='replace')}\n")
    told = f"{len(written)} bytes in {seconds:.2f} s ({len(written) / seconds:.0f} bytes/s)"
    notes.print(f"{asked.model}: {told}", style="dim", markup=False)


def _by_forest(asked: Writing, prompt: bytes) -> None:
    """Write with a forest of experts: it has no chat, and tells who wrote."""
    import torch

    from mintage.lm import ExpertForest

    how = _sampling(asked, "a forest, which mixes its experts")
    if asked.bytes:
        raise UserError(f"--bytes does not go with {asked.model}, a forest, which writes tokens; drop it")
    forest = ExpertForest.load(asked.model)
    if forest.tokenizer is None:
        raise UserError(f"the experts of {asked.model} have no tokenizer; save one in each of their folders")
    ids = torch.tensor([forest.tokenizer(_text(prompt), add_special_tokens=False)["input_ids"]])
    console, notes = _consoles()
    out = forest.generate(ids, **settings_of(how))
    _write(console, f"{forest.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)}\n")
    names = [name for name, weight in forest.prior.items() if weight]
    shares = forest.posterior(out)[0, -1].tolist()
    told_of = ", ".join(f"{name} {share:.0%}" for name, share in zip(names, shares, strict=True))
    notes.print(f"{out.shape[1] - ids.shape[1]} tokens; who wrote: {told_of}", style="dim", markup=False)


def _policy(asked: Writing) -> Any:
    """Build a cache policy, and refuse what does not go with one."""
    from mintage import catalog
    from mintage.keep import Evictor

    spec = str(asked.keep)
    policy = catalog.build(spec, "keep")
    name = spec.partition(":")[0]
    others = {"--draft": asked.drafts, "--compile": asked.compile, "--table": asked.table is not None}
    reason = (
        "drafted tokens that are rejected would already have driven others out of the cache"
        if isinstance(policy, Evictor)
        else "it reads differently where several tokens come at once, so the text would be another one"
    )
    for flag, given in others.items():
        if given and name != "full-cache":
            raise UserError(
                f"--keep {name} does not go with {flag}: {reason}; drop {flag}, or keep and read everything "
                "with --keep full-cache"
            )
    return policy


def _keeping(asked: Writing, text: str, policy: Any) -> None:
    """Decode under a cache policy, with transformers' own generate."""
    import torch

    from mintage.measure import timed

    lm, ids = _load(asked, text)
    console, notes = _consoles()
    name, streamer = asked.keep, _Streamer(console, lm.tokenizer) if asked.stream else None
    arguments = asked.arguments() | {"attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    if asked.seed is not None:
        torch.manual_seed(asked.seed)
    with policy(lm.model) as session:
        out, seconds = timed(lambda: lm.model.generate(ids, streamer=streamer, **arguments))
    if streamer is None:
        _write(console, f"{lm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)}\n")
    new, cache = out.shape[1] - ids.shape[1], session.cache
    if not new:
        return
    notes.print(
        f"{name}: {new} tokens in {seconds:.2f} s ({new / seconds:.1f} tokens/s), "
        f"{cache.kept().float().mean():.0f} of {cache.get_seq_length()} entries per head, "
        f"{cache.nbytes() / 1e6:.2f} MB of keys and values",
        style="dim",
    )
    if asked.compare:
        from mintage.keep import FullCache

        with FullCache()(lm.model) as session:
            plain, plain_seconds = timed(lambda: lm.model.generate(ids, **arguments))
        notes.print(
            f"full cache: {plain.shape[1] - ids.shape[1]} tokens in {plain_seconds:.2f} s, "
            f"{session.cache.nbytes() / 1e6:.2f} MB",
            style="dim",
        )
        same = int((out[0, : plain.shape[1]] == plain[0, : out.shape[1]])[ids.shape[1] :].cumprod(0).sum())
        verdict = "the same text" if torch.equal(out, plain) else f"the same text for {same} tokens"
        rate = (new / seconds) / ((plain.shape[1] - ids.shape[1]) / plain_seconds)
        notes.print(f"{name} is {rate:.2f}x as fast per token, and gives {verdict}", style="bold")


def _write(console: Console, text: str, style: str = "") -> None:
    if console.is_terminal:
        console.print(Text(text, style=style), end="")
    else:  # to a file or a pipe as it is: rich would expand tabs and drop control characters
        console.file.write(text)
        console.file.flush()


class _Streamer:
    """Prints every round's text; tokens that were drafted and accepted are green, the target's own are plain."""

    def __init__(self, console: Console, tokenizer: Any) -> None:
        self.console, self.tokenizer = console, tokenizer
        self.ids: list[int] = []
        self.shown = ""
        self.prompt_seen = False

    def put(self, value: Any) -> None:
        """Take a round's tokens; the first call brings the prompt."""
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        tokens = value.tolist()
        self._show(tokens[:-1], "green")
        self._show(tokens[-1:], "")

    def end(self) -> None:
        """Print what was held back."""
        self._show([], "", final=True)
        _write(self.console, "\n")

    def _show(self, tokens: list[int], style: str, *, final: bool = False) -> None:
        self.ids += tokens
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        if text.endswith("\ufffd") and not final:  # in the middle of a character
            return
        _write(self.console, text[len(self.shown) :], style)
        self.shown = text
