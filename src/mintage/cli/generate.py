"""``mintage generate``: write text with a drafted model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from mintage.cli.input import read_input
from mintage.errors import UserError

if TYPE_CHECKING:
    from mintage.draft import Stats

DRAFT = "token-recycling:budget=auto+prompt-lookup"


def generate(
    prompt: Annotated[str, typer.Argument(help="What to say to the model; - reads standard input.")],
    model: Annotated[str, typer.Option(help="smollm2 (embedded), a folder, or a hub id.")] = "smollm2",
    draft: Annotated[
        str | None,
        typer.Option(
            help="Drafter: name[:key=value,...], several joined by +, or none for plain decoding.",
            show_default=f"{DRAFT}, or none with --keep",
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(help="Cache policy: name[:key=value,...], e.g. snapkv:budget=256 (entries), 0.25 or 4MB."),
    ] = None,
    by_bytes: Annotated[
        bool,
        typer.Option("--bytes", help="Write bytes, exactly: a --raw prompt may end within a word; -n counts bytes."),
    ] = False,
    ensemble: Annotated[
        list[str] | None,
        typer.Option(help="A further model, with any tokenizer, that votes on every byte; repeat. Implies --bytes."),
    ] = None,
    suffix: Annotated[
        str | None,
        typer.Option(
            help="Fill in what stands between the prompt and this text, with a model trained for it. Implies --bytes."
        ),
    ] = None,
    draft_model: Annotated[
        str | None,
        typer.Option(
            help="For drafters that need one: a drafter's .safetensors, a folder or hub id, or rounded:BITS of the "
            "model. Default: the shipped drafter for smollm2, rounded:4 for others."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="Stop after this many.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", "-t", help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Keep the k most likely tokens; 0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep this probability mass; 1 is off.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 discourages repeats; 1 is off.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Repeat a sample.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    system: Annotated[str | None, typer.Option(help="System message of the chat.")] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Score with a compiled step (CPU; a minute the first time, then kept).")
    ] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Also decode plainly, and compare text and time.")] = False,
    stream: Annotated[bool, typer.Option(help="Show text as it comes; accepted drafts are green.")] = True,
    table: Annotated[
        Path | None, typer.Option(help="Keep what token-recycling learned in this file, from call to call.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16, float32 or float16.")] = "bfloat16",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
) -> None:
    """Generate text, drafting ahead: the same text as without, in fewer forwards.

    [dim]Examples[/dim]

      mintage generate "Write a haiku about tides"

      mintage generate "Fix this: def f(x) return x" --compare

      mintage generate "Once upon" --raw -t 0.8 --draft token-recycling:budget=16

      git diff | mintage generate - --system "Summarise this diff in one line"

      mintage generate - --keep snapkv:budget=256 < report.txt

      mintage generate "The quick brown fox jum" --raw --bytes -n 40

    Next: [bold]mintage bench draft[/bold]
    """
    from mintage.bench.draft.arms import needs_draft_model
    from mintage.draft import generate
    from mintage.draft.core.distilled import load_draft_model
    from mintage.models import load_causal_lm

    if raw and system is not None:
        raise UserError("--system is part of the chat, which --raw leaves out; put it into the prompt, or drop --raw")
    if compare and not max_new_tokens:
        raise UserError("--compare needs at least 1 new token; pass --max-new-tokens 1 or more")
    by_bytes = by_bytes or bool(ensemble) or suffix is not None
    given = read_input(prompt)
    if not given.strip():
        raise UserError("the prompt is empty; pass some text, or - to read standard input")
    text = "" if by_bytes and (raw or suffix is not None) else _text(given)
    if by_bytes:
        others = {
            "--draft": draft not in (None, "none"),
            "--keep": keep is not None,
            "--compile": compile,
            "--compare": compare,
            "--table": table is not None,
            "--top-k": top_k > 0,
            "--repetition-penalty": repetition_penalty != 1.0,
        }
        for option, asked in others.items():
            if asked:
                raise UserError(f"{option} is about tokens and does not go with --bytes; drop one of them")
        if suffix is not None and system is not None:
            raise UserError("--system is part of a chat, which --suffix leaves out; drop one of them")
        names = [model, *(ensemble or ())]
        lms = [load_causal_lm(name, dtype=dtype, device=device) for name in names]
        sampling = {"temperature": temperature, "top_p": top_p, "seed": seed}
        _by_bytes(lms, given, max_new_tokens, sampling, raw=raw, system=system, suffix=suffix, stream=stream)
        return
    if keep is not None:
        policy = _policy(keep, draft=draft, compile=compile, table=table)
        draft = draft or "none"
    draft = draft or DRAFT
    spec = "plain" if draft == "none" else draft
    drafting, models = draft_model is not None or needs_draft_model(spec), {}
    if not drafting:
        drafter = _drafter(spec, table)  # a bad spec is told before the model loads
    lm = load_causal_lm(model, dtype=dtype, device=device)
    if drafting:
        models = {"draft_model": load_draft_model(draft_model, lm).model}
        drafter = _drafter(spec, table, **models)
    ids = lm.encode(text, chat=not raw, system=system)
    settings: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "compile": compile,
        "max_new_tokens": max_new_tokens,
    }
    console, notes = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False)
    streamer = _Streamer(console, lm.tokenizer) if stream else None
    if keep is not None and spec == "plain":
        _keeping(console, notes, lm, ids, keep, policy, settings, streamer, compare=compare)
        return
    if compare:  # what is done once per machine or model, as measuring how long a tree takes, is not compared
        generate(lm.model, ids, _drafter(spec, table, **models), **{**settings, "max_new_tokens": 2})
    out = generate(lm.model, ids, drafter, streamer=streamer, **settings)
    if streamer is None:
        text = lm.tokenizer.decode(out.sequences[0, ids.shape[1] :], skip_special_tokens=True)
        _write(console, f"{text}\n")
    notes.print(_summary(spec, out.stats), style="dim")
    if table is not None and max_new_tokens:
        for learner in _learners(drafter):
            learner.save()
    if compare:
        _compare(notes, lm, ids, out, settings)


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


def _compare(notes: Console, lm: Any, ids: Any, out: Any, settings: dict[str, Any]) -> None:
    """Decode plainly with transformers' own generate, and put the two side by side."""
    import torch

    from mintage.measure import timed

    greedy, arguments = not settings["temperature"], _arguments(settings)
    mask = torch.ones_like(ids)
    lm.model.generate(ids, attention_mask=mask, max_new_tokens=2, do_sample=False, pad_token_id=0)  # warm up
    pad = lm.tokenizer.pad_token_id or 0
    plain, seconds = timed(lambda: lm.model.generate(ids, attention_mask=mask, pad_token_id=pad, **arguments))
    new = plain.shape[1] - ids.shape[1]
    notes.print(f"plain generate: {new} tokens in {seconds:.2f} s ({new / seconds:.1f} tokens/s)", style="dim")
    ratio = out.stats.tokens_per_second / (new / seconds)
    verdict = f"drafted decoding is {ratio:.2f}x as fast per token"
    if greedy:
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


def _by_bytes(
    lms: list[Any],
    prompt: bytes,
    number: int,
    sampling: dict[str, Any],
    *,
    raw: bool,
    system: str | None,
    suffix: str | None,
    stream: bool,
) -> None:
    """Write bytes, by one model or by several that vote."""
    import codecs
    import time

    from mintage.retrofit import ByteEnsemble, ByteLM, infilling

    if suffix is not None:  # the last word of the prompt, which may be cut, is the same for all
        after = suffix.encode("utf-8", "surrogateescape")
        prompts = [infilling(ByteLM.of(lm), prompt, after) for lm in lms]
        models, prefix = [model for model, _ in prompts], prompts[0][1]
    elif raw:
        models, prefix = [ByteLM.of(lm) for lm in lms], prompt
    else:  # the chat's control tokens are no text: covers must not cross them
        chats = [lm.encode(prompt.decode(), system=system)[0].tolist() for lm in lms]
        models, prefix = [ByteLM.of(lm, context=chat) for lm, chat in zip(lms, chats, strict=True)], b""
    sampler = models[0] if len(models) == 1 else ByteEnsemble(models)
    console, notes = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False)
    for lm, made in zip(lms, models, strict=True):
        if odd := {prompt[place] for place in made.vocabulary.unwritable(prompt)}:
            shown = ", ".join(f"0x{byte:02x}" for byte in sorted(odd))
            notes.print(f"{lm.name} writes no text with {shown}: read as single tokens or U+FFFD", style="yellow")
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    started, written, held = time.perf_counter(), 0, ""
    for byte in sampler.stream(prefix, number, **sampling):
        piece = decoder.decode(bytes([byte]))
        written += 1
        held += piece
        if stream:
            _write(console, piece)
    rest = decoder.decode(b"", final=True)
    _write(console, f"{rest if stream else held + rest}\n")
    seconds = time.perf_counter() - started
    counts = ((lm.name, made.distribution.forwards) for lm, made in zip(lms, models, strict=True))
    forwards = ", ".join(f"{name} {count} forwards" for name, count in counts)
    notes.print(f"{written} bytes in {seconds:.2f} s; {forwards}", style="dim", markup=False)


def _policy(spec: str, *, draft: str | None, compile: bool, table: Path | None) -> Any:
    """Build a cache policy, and refuse what does not go with one."""
    from mintage import catalog
    from mintage.keep import Evictor

    policy = catalog.build(spec, "keep")
    name = spec.partition(":")[0]
    others = {"--draft": draft not in (None, "none"), "--compile": compile, "--table": table is not None}
    reason = (
        "drafted tokens that are rejected would already have driven others out of the cache"
        if isinstance(policy, Evictor)
        else "it reads differently where several tokens come at once, so the text would be another one"
    )
    for option, given in others.items():
        if given and name != "full-cache":
            raise UserError(
                f"--keep {name} does not go with {option}: {reason}; drop {option}, or keep and read everything "
                "with --keep full-cache"
            )
    return policy


def _keeping(
    console: Console,
    notes: Console,
    lm: Any,
    ids: Any,
    name: str,
    policy: Any,
    settings: dict[str, Any],
    streamer: Any,
    *,
    compare: bool,
) -> None:
    """Decode under a cache policy, with transformers' own generate."""
    import torch

    from mintage.measure import timed

    arguments = _arguments(settings) | {"attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    if settings["seed"] is not None:
        torch.manual_seed(settings["seed"])
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
    if compare:
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


def _arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """Say the settings as transformers does; given even where off, lest the model's generation config has others."""
    greedy = not settings["temperature"]
    arguments: dict[str, Any] = {
        "do_sample": not greedy,
        "max_new_tokens": settings["max_new_tokens"],
        "repetition_penalty": settings["repetition_penalty"],
    }
    if not greedy:
        arguments |= {name: settings[name] for name in ("temperature", "top_k", "top_p")}
    return arguments


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
