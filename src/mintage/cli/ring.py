"""``python -m mintage.cli.ring``: TokenRing on a model over several ranks; ``torchrun`` starts it, too."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from mintage.data import read_prompts
from mintage.errors import UserError
from mintage.keep.core.ring import Kind
from mintage.keep.core.storage import KeptCache
from mintage.keep.token_ring import TokenRing
from mintage.models import load_causal_lm

__all__ = ["run_ring"]


def run_ring(arguments: Sequence[str] | None = None) -> int:
    """Read a text with several ranks, go on for some tokens, and say what travelled."""
    parser = argparse.ArgumentParser(
        prog="python -m mintage.cli.ring",
        description="Sequence-parallel prefill of a Hugging Face model. Start it with torchrun, or pass --ranks.",
        epilog="torchrun --nproc-per-node 4 -m mintage.cli.ring --text long.txt -n 16",
    )
    parser.add_argument("--model", default="smollm2", help="smollm2 (embedded), a folder, or a hub id")
    parser.add_argument("--text", help="file to read; default: bundled prompts, one behind the other")
    parser.add_argument("--tokens", type=int, default=512, help="of the text")
    parser.add_argument("--max-new-tokens", "-n", type=int, default=8, help="to write behind it")
    parser.add_argument("--ranks", type=int, default=0, help="processes to start here, without torchrun")
    parser.add_argument("--backend", default="gloo", help="gloo (CPU) or nccl (one GPU per rank)")
    parser.add_argument("--dtype", default="float32", help="of the model")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds until a silent rank is given up")
    parser.add_argument("--check", action="store_true", help="compare with one process; exit 1 if unequal")
    options = parser.parse_args(arguments)
    try:
        if options.ranks and not dist.is_torchelastic_launched():
            return _start(options)
        return _run(options)
    except UserError as error:
        print(f"mintage: {error}", file=sys.stderr)
        return 2


def _start(options: argparse.Namespace) -> int:
    """Run one process per rank on this machine."""
    import torch.multiprocessing as mp

    if options.ranks < 1:
        raise UserError(f"--ranks {options.ranks} starts nothing; pass e.g. 2")
    if options.text and not Path(options.text).is_file():
        raise _no_text(options.text)
    context = mp.get_context("spawn")
    port = _free_port()
    processes = [context.Process(target=_ranked, args=(rank, port, options)) for rank in range(options.ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return max(abs(process.exitcode or 0) for process in processes)


def _free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _ranked(rank: int, port: int, options: argparse.Namespace) -> None:
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": options.ranks, "MASTER_PORT": port}
    os.environ.update({"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in where.items()})
    torch.set_num_threads(max(torch.get_num_threads() // options.ranks, 1))
    try:
        sys.exit(_run(options))
    except UserError as error:
        print(f"mintage: {error}", file=sys.stderr)
        sys.exit(2)


def _run(options: argparse.Namespace) -> int:
    """Be one rank."""
    alone = "RANK" not in os.environ
    if not alone:
        dist.init_process_group(options.backend, timeout=timedelta(seconds=options.timeout))
    device = f"cuda:{os.environ['LOCAL_RANK']}" if options.backend == "nccl" and not alone else "cpu"
    policy = TokenRing(timeout=options.timeout, result_group=None if alone else dist.new_group())
    try:
        lm = load_causal_lm(options.model, dtype=options.dtype, device=device)
        ids = _text(options, lm).to(device)
        with torch.inference_mode():
            started = time.perf_counter()
            with policy(lm.model) as session:
                written = [int(policy.prefill(lm.model, ids).argmax())]
                read = time.perf_counter() - started
                cache = cast("KeptCache", session.cache)
                for position in range(ids.shape[1], ids.shape[1] + options.max_new_tokens - 1):
                    logits = policy.extend(lm.model, cache, torch.tensor([written[-1:]], device=device), position)
                    written.append(int(logits.argmax()))
            same = None
            if options.check:
                number, model = len(written), cast("Any", lm.model)
                wanted = model.generate(ids, max_new_tokens=number, min_new_tokens=number, do_sample=False)
                same = wanted[0, ids.shape[1] :].tolist() == written
        traffic = policy.ring.traffic
        kinds: tuple[Kind, ...] = ("query", "result", "decode")
        sent = ", ".join(f"{kind} {traffic.bytes(kind) / 1e6:.2f} MB" for kind in kinds)
        size = policy.ring.size
        print(f"rank {policy.ring.rank} of {size}: {ids.shape[1]} tokens in {read:.2f} s; sent: {sent}", flush=True)
        if policy.ring.rank == 0:
            print(lm.tokenizer.decode(written), flush=True)
            if same is not None:
                print("the same as one process" if same else "NOT the same as one process", flush=True)
        return 1 if same is False else 0
    finally:
        if not alone:
            dist.destroy_process_group()


def _no_text(path: str) -> UserError:
    return UserError(f"{path} does not exist; pass a text file")


def _text(options: argparse.Namespace, lm: Any) -> Tensor:
    """Tokens of the text, the same on every rank."""
    if options.text:
        if not Path(options.text).is_file():
            raise _no_text(options.text)
        text = Path(options.text).read_text(encoding="utf-8", errors="replace")
    else:
        text = "\n\n".join(turn for prompt in read_prompts() for turn in prompt.turns)
    ids = lm.tokenizer(text, return_tensors="pt")["input_ids"][:, : options.tokens]
    if ids.shape[1] < options.tokens:
        raise UserError(f"the text has {ids.shape[1]} tokens, not {options.tokens}; pass a longer --text or --tokens")
    return ids


if __name__ == "__main__":
    sys.exit(run_ring())
