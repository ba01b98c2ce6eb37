"""``mintage calibrate``: find out, once per model, which channels of its keys decide its attention."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from mintage.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_RULES = ("qk", "q", "k")


def calibrate(
    text: Annotated[
        list[str] | None, typer.Option("--text", help="Text files or folders, may be repeated; default: WikiText-2.")
    ] = None,
    model: Annotated[str, typer.Option(help="smollm2 (embedded), a folder, or a hub id.")] = "smollm2",
    rule: Annotated[str, typer.Option(help="Score of a channel: qk (after rotation), q or k (before it).")] = "qk",
    blocks: Annotated[int, typer.Option(help="Blocks of text, fewer where the text ends.")] = 256,
    block_tokens: Annotated[int, typer.Option(help="Tokens per block.")] = 512,
    out: Annotated[Path, typer.Option("--out", "-o", help="Safetensors file to write.")] = Path("channels.safetensors"),
    dtype: Annotated[
        str, typer.Option(help="auto (the faster here, measured once), bfloat16, float32 or float16.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
) -> None:
    """Calibrate double-sparsity for a model: score the channels of its keys on a text.

    SmolLM2-135M needs none, its calibration is shipped. The file belongs to the model it was made with; another one's
    is refused.

    [dim]Examples[/dim]

      mintage calibrate --text german.txt --blocks 2 --block-tokens 64

      mintage calibrate --model ./my-llama --text articles/ --rule q -o my-llama.safetensors

    Next: [bold]mintage generate "Hello" --keep double-sparsity:channels=channels.safetensors[/bold]
    """
    from mintage.data import Corpus, texts
    from mintage.keep.double_sparsity import calibrate_channels
    from mintage.models import load_causal_lm

    if rule not in _RULES:
        raise UserError(f"--rule {rule!r} is unknown; {did_you_mean(rule, _RULES)}")
    if blocks < 1 or block_tokens < 2:
        raise UserError("--blocks and --block-tokens leave nothing to calibrate on; pass e.g. 256 and 512")
    console = Console(stderr=True)
    lm = load_causal_lm(
        model, dtype=dtype, device=device, note=lambda line: console.print(line, style="dim", soft_wrap=True)
    )
    with console.status("calibrating") as status:
        order = calibrate_channels(
            lm.model,
            _blocks(lm, Corpus(*text) if text else texts("wikitext2", "train"), blocks, block_tokens),
            rule,  # type: ignore[arg-type]  (checked above)
            progress=lambda done: status.update(f"calibrating: block {done} of {blocks}"),
        )
    order.save(out)
    layers, rows, dim = order.score.shape
    typer.echo(f"{out}: {dim} channels of {rows} heads in {layers} layers, scored on {order.tokens} tokens")


def _blocks(lm: Any, texts: Iterable[str], number: int, tokens: int) -> Iterator[Any]:
    """Cut a stream of texts into blocks of tokens."""
    import torch

    found, held = 0, []
    for text in texts:
        held += lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        while len(held) >= tokens:
            yield torch.tensor([held[:tokens]], device=lm.model.device)
            held = held[tokens:]
            found += 1
            if found == number:
                return
    if not found:
        raise UserError(f"the text has {len(held)} tokens, less than a block; pass more, or --block-tokens {len(held)}")
