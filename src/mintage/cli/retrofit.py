"""``mintage retrofit``: give a trained model other tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mintage.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Give a trained model other tokens.")

_SAMPLE = 400_000  # characters of text that suffice to learn which tokens occur together


@app.callback()
def _group() -> None:
    """Keep the verb a group while it has one command."""


@app.command()
def transfer(
    tokenizer: Annotated[
        str, typer.Option(help="The new one: tokenizer.json, its folder, a .tiktoken file, a hub id.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write: model and tokenizer.")],
    model: Annotated[str, typer.Option(help="smollm2 (embedded), a folder, or a hub id.")] = "smollm2",
    method: Annotated[str, typer.Option(help="zett, fvt, focus, wechsel, omp, lexical or mean.")] = "zett",
    text: Annotated[
        list[str] | None, typer.Option(help="Text of the kind the tokenizer is for; focus, wechsel, omp learn from it.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    pattern: Annotated[
        str | None, typer.Option(help="How a rank file cuts text: cl100k_base, ..., or a regex.")
    ] = None,
) -> None:
    """Give a model another tokenizer: only its embeddings change, and a Hugging Face folder is written.

    [dim]Examples[/dim]

      mintage segment train bpe --text german.txt --vocab-size 8000 -o german

      mintage retrofit transfer --tokenizer german --method fvt -o smollm2-german

      mintage retrofit transfer --tokenizer german --method focus --text german.txt -o smollm2-german

    Next: [bold]mintage generate "Hallo" --model smollm2-german[/bold]
    """
    from mintage.data import Corpus
    from mintage.files import replace_folder
    from mintage.models import load_causal_lm
    from mintage.progress import quiet
    from mintage.retrofit.core.transfer import transfer as give

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; pass a folder that does not exist yet")
    target = _target(tokenizer, pattern)
    lm = load_causal_lm(model, dtype=dtype)
    made = give(lm.model, lm.tokenizer, target, method, texts=Corpus(*text, limit=_SAMPLE) if text else ())
    with replace_folder(out) as folder, quiet():
        made.model.save_pretrained(folder)
        made.tokenizer.save_pretrained(folder)
    told = ", ".join(f"{count} {name}" for name, count in made.report.items())
    typer.echo(f"wrote {out}: {told}")


def _target(name: str, pattern: str | None) -> Any:
    """Load a tokenizer with its special tokens where it has some, else a bare one."""
    from transformers import AutoTokenizer

    from mintage.models import fetched
    from mintage.tokenizer_files import load_tokenizer

    path = Path(name)
    if path.exists() and not (path / "tokenizer_config.json").exists():
        return load_tokenizer(path, pattern=pattern)
    if pattern is not None:
        raise UserError(f"{name} says itself how it cuts text; leave out --pattern")
    return fetched(AutoTokenizer, name, "pass a tokenizer.json or its folder")
