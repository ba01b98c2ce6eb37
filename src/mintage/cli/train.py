"""``mintage train``: the methods that have something to train."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mintage.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Train the methods that have something to train; killed runs go on.")

# Options that several trainings have.
LanguageModel = Annotated[str, typer.Option(help="smollm2 (embedded), a folder, or a hub id.")]
Prompts = Annotated[
    str | None, typer.Option(help="JSON lines with turns or prompt; default: made from the data in $MINTAGE_DATA.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Safetensors file to write.")]
Count = Annotated[int, typer.Option(help="How many prompts to make where no file is given.")]
Steps = Annotated[int, typer.Option(help="Optimiser steps.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate (cosine).")]
Dtype = Annotated[str, typer.Option(help="bfloat16, float32 or float16.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
WarmRate = Annotated[float, typer.Option(help="Peak learning rate (warm-up, then cosine).")]
Work = Annotated[Path, typer.Option(help="Keeps checkpoint and log; a killed run goes on.")]
Bfloat16 = Annotated[bool, typer.Option(help="Compute the loss in bfloat16.")]
Classifier = Annotated[str, typer.Option(help="The shipped classifier, a file, a folder, a hub id, or timm:name.")]
Images = Annotated[Path | None, typer.Option(help="Folder with a sub-folder per class, or .npz; default: CIFAR-10.")]
ImagesPerStep = Annotated[int, typer.Option(help="Images per step.")]
Texts = Annotated[
    list[str] | None, typer.Argument(help="Text files or folders, a text per line; default: from $MINTAGE_DATA.")
]


@app.command()
def ppd(
    model: LanguageModel = "smollm2",
    prompts: Prompts = None,
    out: Out = Path("ppd.safetensors"),
    work: Annotated[Path, typer.Option(help="Keeps continuations, checkpoint and log; a killed run goes on.")] = Path(
        ".mintage/ppd"
    ),
    count: Count = 240,
    steps: Steps = 400,
    lr: Rate = 1e-2,
    new_tokens: Annotated[int, typer.Option(help="Tokens of each continuation that the model writes itself.")] = 96,
    dtype: Dtype = "bfloat16",
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Train prompt tokens for parallel prompt decoding: the model teaches a few embeddings to guess ahead.

    [dim]Examples[/dim]

      mintage train ppd --out ppd-smollm2.safetensors

      mintage train ppd --model ./my-model --prompts prompts.jsonl --steps 800

    Next: [bold]mintage generate "Hello" --draft ppd:prompt_tokens=ppd.safetensors[/bold]
    """
    from mintage.data import read_prompts
    from mintage.draft.training.ppd import train_prompt_tokens, training_prompts
    from mintage.models import load_causal_lm

    texts = [p.turns[0] for p in read_prompts(prompts)] if prompts else training_prompts(count, seed=seed)
    lm = load_causal_lm(model, dtype=dtype, device=device)
    with _Stages() as stages:
        train_prompt_tokens(
            lm,
            texts,
            out,
            folder=work,
            new_tokens=new_tokens,
            steps=steps,
            lr=lr,
            seed=seed,
            command=_command(),
            report=stages,
        )
    typer.echo(f"wrote {out}")


@app.command()
def drafter(
    model: LanguageModel = "smollm2",
    prompts: Prompts = None,
    out: Out = Path("drafter.safetensors"),
    work: Annotated[Path, typer.Option(help="Keeps answers, checkpoint and log; a killed run goes on.")] = Path(
        ".mintage/drafter"
    ),
    count: Count = 2048,
    layers: Annotated[str, typer.Option(help="Blocks of the model to start from; -1 is the last.")] = "0,1",
    vocabulary: Annotated[int, typer.Option(help="Tokens that the drafter's head knows.")] = 8192,
    steps: Steps = 1500,
    lr: WarmRate = 2e-3,
    batch_rows: Annotated[int, typer.Option(help="Answers per step.")] = 16,
    overlap: Annotated[float, typer.Option(help="Share of the loss that is the chance of a rejection, 0 to 1.")] = 0.0,
    new_tokens: Annotated[int, typer.Option(help="Longest answer that the model writes itself, in tokens.")] = 160,
    dtype: Dtype = "bfloat16",
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Train a small draft model: a few of the model's own blocks learn to guess what it would write.

    [dim]Examples[/dim]

      mintage train drafter --out drafter.safetensors

      mintage train drafter --model ./my-llama --prompts prompts.jsonl --layers 0,1,-1

    Next: [bold]mintage generate "Hello" --draft rsd --draft-model drafter.safetensors[/bold]
    """
    from mintage.data import read_prompts
    from mintage.draft.training.distilled import train_drafter
    from mintage.draft.training.instructions import instructions
    from mintage.models import load_causal_lm

    blocks = _numbers("--layers", layers)
    texts = [p.turns[0] for p in read_prompts(prompts)] if prompts else instructions(count, seed=seed)
    lm = load_causal_lm(model, dtype=dtype, device=device)
    with _Stages() as stages:
        train_drafter(
            lm,
            texts,
            out,
            folder=work,
            layers=blocks,
            vocabulary=vocabulary,
            new_tokens=new_tokens,
            steps=steps,
            lr=lr,
            batch_rows=batch_rows,
            overlap=overlap,
            seed=seed,
            test_prompts=[p.turns[0] for p in read_prompts()] if lm.tokenizer.chat_template else (),
            command=_command(),
            report=stages,
        )
    typer.echo(f"wrote {out}")


@app.command()
def decompounder(
    texts: Annotated[list[str], typer.Argument(help="Text files, folders, .jsonl files, or hub:owner/name.")],
    out: Out = Path("decompounder.safetensors"),
    gold: Annotated[
        Path | None, typer.Option(help="JSON lines with word and segments: a second stage learns from them.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Keeps counts, checkpoint and log; a killed run goes on.")] = Path(
        ".mintage/decompounder"
    ),
    steps: Steps = 1000,
    width: Annotated[int, typer.Option(help="Channels of the tagger.")] = 48,
    layers: Annotated[int, typer.Option(help="Blocks of the tagger.")] = 3,
    lexicon: Annotated[int, typer.Option(help="Most frequent words that the tagger knows.")] = 100_000,
    processes: Annotated[int, typer.Option(help="Processes that count words.")] = 1,
    seed: Seed = 0,
) -> None:
    """Train a splitter of compounds from the hyphens that people write in a text.

    [dim]Examples[/dim]

      mintage train decompounder german.txt --out de.safetensors

      mintage train decompounder texts/ --gold gold.jsonl --processes 4

    Next: [bold]mintage segment decompound Haustürschlüssel --model de.safetensors[/bold]
    """
    from mintage.data import Corpus
    from mintage.segment.decompounder import train_decompounder

    with _Stages() as stages:
        made = train_decompounder(
            Corpus(*texts),
            work=work,
            gold=gold,
            processes=processes,
            steps=steps,
            width=width,
            layers=layers,
            lexicon_size=lexicon,
            seed=seed,
            progress=stages,
        )
    made.save(out)
    typer.echo(f"wrote {out}")


@app.command()
def vit(
    out: Out = Path("vit-tiny-cifar10.safetensors"),
    work: Work = Path(".mintage/vit"),
    epochs: Annotated[float, typer.Option(help="Passes over the training images.")] = 18.0,
    batch_rows: Annotated[int, typer.Option(help="Images per step, of all processes together.")] = 128,
    lr: WarmRate = 3e-3,
    optimiser: Annotated[str, typer.Option(help="adamw or muon.")] = "muon",
    hidden: Annotated[int, typer.Option(help="Width of the transformer.")] = 128,
    layers: Annotated[int, typer.Option(help="Its blocks.")] = 8,
    heads: Annotated[int, typer.Option(help="Its attention heads.")] = 4,
    stem: Annotated[str, typer.Option(help="Channels of the stem; every one but the first halves the sides.")] = (
        "32,64,128"
    ),
    stem_blocks: Annotated[str, typer.Option(help="Residual blocks after each of them.")] = "0,1,0",
    small: Annotated[int, typer.Option(help="Side of the images in the first part of the run.")] = 24,
    small_share: Annotated[float, typer.Option(help="How much of the run that part is, 0 to 1.")] = 0.5,
    bf16: Bfloat16 = False,
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Train a small vision transformer on CIFAR-10 (from $MINTAGE_DATA, else the hub), and test it once.

    [dim]Examples[/dim]

      mintage train vit --out vit.safetensors

      torchrun --nproc-per-node 2 -m mintage.cli train vit --out vit.safetensors

    Next: [bold]mintage bench pitome[/bold]
    """
    from mintage.reduce.training.vit import train_vit
    from mintage.vision import SmallViT

    sizes = SmallViT(
        hidden=hidden,
        layers=layers,
        heads=heads,
        stem=_numbers("--stem", stem),
        stem_blocks=_numbers("--stem-blocks", stem_blocks),
    )
    with _Stages() as stages:
        made = train_vit(
            out,
            folder=work,
            sizes=sizes,
            epochs=epochs,
            batch_rows=batch_rows,
            lr=lr,
            optimiser=optimiser,
            small=small,
            small_share=small_share,
            bf16=bf16,
            device=device,
            seed=seed,
            command=_command(),
            report=stages,
        )
    if made.notes:  # the other processes of a joint run write nothing
        typer.echo(f"wrote {out}: test accuracy {made.notes['test']}")


@app.command()
def sit_slim(
    model: Classifier = ("vit-tiny-cifar10"),
    images: Images = None,
    out: Out = Path("sit-slim.safetensors"),
    work: Work = Path(".mintage/sit-slim"),
    stages: Annotated[str, typer.Option(help="Blocks of each stage; a slimming follows all but the last.")] = "1,1,1,5",
    ratio: Annotated[float, typer.Option(help="Share of the patch tokens that every stage keeps.")] = 0.5,
    counts: Annotated[str, typer.Option(help="Numbers of tokens in the place of --ratio, e.g. 32,16,8.")] = "",
    steps: Steps = 1000,
    lr: Rate = 1e-3,
    batch_rows: ImagesPerStep = 64,
    recover: Annotated[bool, typer.Option(help="Learn from the tokens of every block, not from logits only.")] = True,
    recover_ratio: Annotated[float, typer.Option(help="Width of the modules that bring tokens back (paper: 4).")] = 1.0,
    init_std: Annotated[float, typer.Option(help="Of the modules' first weights (paper: 0.02, long training).")] = 0.16,
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Train a transformer that slims its own tokens, taught by the transformer that it was (SiT).

    [dim]Examples[/dim]

      mintage train sit-slim --out slim.safetensors

      mintage train sit-slim --model ./my-vit --images photos/ --stages 9,3,2,2

    Next: [bold]mintage bench sit-slim:weights=slim.safetensors[/bold]
    """
    from mintage.reduce.training.images import read_lessons, test_images
    from mintage.reduce.training.sit_slim import train_self_slimmed
    from mintage.vision import load_image_classifier

    lessons = read_lessons(load_image_classifier(model), images)
    with _Stages() as shown:
        made = train_self_slimmed(
            lessons,
            out,
            folder=work,
            stages=_numbers("--stages", stages),
            slim_ratio=ratio,
            counts=_numbers("--counts", counts) if counts else (),
            steps=steps,
            lr=lr,
            batch_rows=batch_rows,
            recover=recover,
            ratio=recover_ratio,
            init_std=init_std,
            device=device,
            seed=seed,
            test=test_images() if images is None else None,
            command=_command(),
            report=shown,
        )
    typer.echo(f"wrote {out}: accuracy on images held out {made.notes['held out']}")


@app.command()
def sparsifiner(
    model: Classifier = ("vit-tiny-cifar10"),
    images: Images = None,
    out: Out = Path("sparsifiner.safetensors"),
    work: Work = Path(".mintage/sparsifiner"),
    keep_rate: Annotated[float, typer.Option(help="Share of the keys that a patch reads.")] = 0.25,
    prune: Annotated[float, typer.Option(help="Share of the patches that stay at layers 3, 6 and 9; 1 is all.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Steps of phase 1: predictors learn the attention.")] = 300,
    lr: Annotated[float, typer.Option(help="Peak learning rate of phase 1.")] = 1e-2,
    tuning_steps: Annotated[int, typer.Option(help="Steps of phase 2: the transformer learns under the masks.")] = 200,
    tuning_lr: Annotated[float, typer.Option(help="Peak learning rate of phase 2.")] = 3e-4,
    batch_rows: ImagesPerStep = 64,
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Train predictors of sparse attention, then the transformer under their masks.

    [dim]Examples[/dim]

      mintage train sparsifiner --out sparse.safetensors

      mintage train sparsifiner --model ./my-vit --images photos/ --keep-rate 0.1

    Next: [bold]mintage bench sparsifiner:weights=sparse.safetensors[/bold]
    """
    from mintage.reduce.training.images import read_lessons, test_images
    from mintage.reduce.training.sparsifiner import train_sparsifiner
    from mintage.vision import load_image_classifier

    lessons = read_lessons(load_image_classifier(model), images)
    with _Stages() as shown:
        made = train_sparsifiner(
            lessons,
            out,
            folder=work,
            keep_rate=keep_rate,
            prune=prune,
            steps=steps,
            lr=lr,
            tuning_steps=tuning_steps,
            tuning_lr=tuning_lr,
            batch_rows=batch_rows,
            device=device,
            seed=seed,
            test=test_images() if images is None else None,
            command=_command(),
            report=shown,
        )
    typer.echo(f"wrote {out}: accuracy on images held out {made.notes['held out']}")


@app.command()
def diffrate(
    model: Classifier = ("vit-tiny-cifar10"),
    images: Images = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON file to write.")] = Path("diffrate.json"),
    work: Work = Path(".mintage/diffrate"),
    shares: Annotated[str, typer.Option(help="Shares of the multiply-adds; each gets a schedule.")] = "0.6",
    steps: Annotated[int, typer.Option(help="Optimiser steps per schedule.")] = 400,
    lr: Annotated[float, typer.Option(help="Peak learning rate (cosine; the paper: 0.01, ten times the steps).")] = 0.1,
    batch_rows: ImagesPerStep = 64,
    granularity: Annotated[int, typer.Option(help="Step between the numbers of tokens that are tried.")] = 1,
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Search how many tokens each block should prune and merge, for a budget of multiply-adds; the model is frozen.

    [dim]Examples[/dim]

      mintage train diffrate --shares 0.8,0.65,0.5 --out rates.json

      mintage train diffrate --model facebook/deit-small-patch16-224 --images photos/ --granularity 4

    Next: [bold]mintage bench diffrate:schedule=rates.json[/bold]
    """
    from mintage.reduce.training.diffrate import train_schedules
    from mintage.reduce.training.images import read_lessons
    from mintage.vision import load_image_classifier

    try:
        aims = [float(part) for part in shares.split(",")]
    except ValueError:
        raise UserError(f"--shares {shares!r}: expected numbers joined by commas, e.g. 0.8,0.65") from None
    lessons = read_lessons(load_image_classifier(model), images)
    with _Stages() as shown:
        made = train_schedules(
            lessons,
            out,
            folder=work,
            shares=aims,
            steps=steps,
            lr=lr,
            batch_rows=batch_rows,
            granularity=granularity,
            device=device,
            seed=seed,
            command=_command(),
            report=shown,
        )
    for found in made:
        held_out = found.notes.get("held out", "not measured")
        typer.echo(f"{found.share:.3f} of the multiply-adds; accuracy on images held out {held_out}")
    typer.echo(f"wrote {out}")


def _command() -> str:
    """What was typed, for the notes of what it made."""
    return "mintage " + " ".join(sys.argv[1:])


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{option} {text!r}: expected whole numbers joined by commas, e.g. 0,1") from None


@app.command()
def composer(
    texts: Texts = None,
    model: LanguageModel = "smollm2",
    out: Out = Path("composer.safetensors"),
    work: Work = Path(".mintage/composer"),
    steps: Steps = 1500,
    warmup: Annotated[int, typer.Option(help="Of these, on the vocabulary alone.")] = 100,
    lr: Rate = 2e-3,
    layers: Annotated[
        int, typer.Option(help="Blocks of the model after which states are compared; all of them: predictions.")
    ] = 6,
    hidden: Annotated[int, typer.Option(help="Width of the network.")] = 256,
    start: Annotated[
        Path | None, typer.Option(help="A composer of the same model to go on from; give its --seed, too.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Train a composer: what gives words in one token an embedding made from those of their parts.

    [dim]Examples[/dim]

      mintage train composer --out composer.safetensors

      mintage train composer chemistry.txt --model ./my-model --steps 3000

    Next: [bold]DynamicTokens(provider="composer.safetensors")[/bold], see the page on retrofitting
    """
    from mintage.data import Corpus
    from mintage.models import load_causal_lm
    from mintage.retrofit.training.composer import train_composer, training_texts

    read = Corpus(*texts) if texts else training_texts(seed)
    with _Stages() as stages:
        found = train_composer(
            load_causal_lm(model, dtype="float32"),
            read,
            out,
            folder=work,
            steps=steps,
            warmup=warmup,
            lr=lr,
            layers=layers,
            hidden=hidden,
            start=start,
            seed=seed,
            command=_command(),
            report=stages,
        )
    told = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
    typer.echo(f"wrote {out}; nats per word on held-out texts: {told}")


@app.command()
def zett(
    texts: Texts = None,
    model: LanguageModel = "smollm2",
    out: Out = Path("zett.safetensors"),
    work: Work = Path(".mintage/zett"),
    steps: Annotated[int, typer.Option(help="Optimiser steps, a sampled tokenizer each.")] = 160,
    warmup: Annotated[int, typer.Option(help="Of these, on the model's own vocabulary alone.")] = 0,
    lr: WarmRate = 1e-3,
    rows: Annotated[int, typer.Option(help="Texts per step.")] = 4,
    tokens: Annotated[int, typer.Option(help="New tokens that are read of each.")] = 64,
    size: Annotated[int, typer.Option(help="Tokens of a sampled vocabulary, as often half and twice as many.")] = 4096,
    spread: Annotated[float, typer.Option(help="How much the noise on their scores varies (the paper: 4).")] = 2.0,
    lexical: Annotated[float, typer.Option(help="Weight of known tokens staying as they are.")] = 0.1,
    distil: Annotated[float, typer.Option(help="Weight of the model's states being as in its own tokens.")] = 1.0,
    hidden: Annotated[int, typer.Option(help="Width of the network.")] = 192,
    residual: Annotated[str, typer.Option(help="mean: start from FVT; none: the paper's network.")] = "mean",
    start: Annotated[Path | None, typer.Option(help="A hypernetwork of the same model to go on from.")] = None,
    bf16: Bfloat16 = False,
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Train a hypernetwork: what gives the tokens of any tokenizer embeddings that one model can read.

    [dim]Examples[/dim]

      mintage train zett --out zett.safetensors

      mintage train zett corpus/ --model ./my-model --residual none --steps 20000 --warmup 2000 --distil 0

    Next: [bold]mintage retrofit transfer --method zett:weights=zett.safetensors --tokenizer german -o out[/bold]
    """
    from mintage.data import Corpus
    from mintage.models import load_causal_lm
    from mintage.retrofit.training.zett import train_zett, training_texts

    read = {"text": list(Corpus(*texts))} if texts else training_texts()
    with _Stages() as stages:
        train_zett(
            load_causal_lm(model, dtype="float32", device=device),
            read,
            out,
            folder=work,
            steps=steps,
            warmup=warmup,
            lr=lr,
            rows=rows,
            tokens=tokens,
            size=size,
            spread=spread,
            lexical=lexical,
            distil=distil,
            hidden=hidden,
            residual=residual,
            start=start,
            bf16=bf16,
            device=device,
            seed=seed,
            command=_command(),
            report=stages,
        )
    typer.echo(f"wrote {out}")


class _Stages:
    """One progress bar per stage that a training reports."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Stages:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, stage: str, done: int, of: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=of or None)
        self._progress.update(self._tasks[stage], completed=done, total=of or None)
