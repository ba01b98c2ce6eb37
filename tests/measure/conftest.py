"""Made-up rows for the report: plausible shapes, invented numbers. Nothing here was measured."""

from __future__ import annotations

import math

import pytest

from mintage.measure.figure import Figure
from mintage.measure.result import Result

CPU = {
    "time": "2026-03-01T10:00:00+00:00",
    "mintage": "0.1.0",
    "python": "3.11.7",
    "torch": "2.13.0+cpu",
    "transformers": "5.23.0",
    "platform": "Linux x86_64",
    "cpu": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
    "cores": 2,
    "threads": 2,
    "gpu": None,
    "cuda": None,
    "commit": "82300d8c0ffee",
    "dirty": True,
}
GPU = {**CPU, "torch": "2.13.0+cu128", "gpu": "NVIDIA H100 80GB HBM3", "cuda": "12.8", "cores": 16, "dirty": False}

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNoaGgAAAMEAYFL09IQAAAAAElFTkSuQmCC"
)
"""A picture of one grey pixel."""


def result(**changes) -> Result:
    given = {
        "method": "token-recycling",
        "job": "draft",
        "metric": "tokens per forward",
        "value": 1.7960,
        "unit": "x",
        "higher_is_better": True,
        "baseline": {"plain greedy": 1.0},
        "peers": {"prompt-lookup": 1.31, "cold table": 1.61},
        "interval": (1.7012, 1.8811),
        "n": 20,
        "claim": "hot table makes at least 1.7 tokens per forward, output identical",
        "verdict": "holds",
        "model": "SmolLM2-135M-Instruct",
        "data": "prompts.jsonl, 20 x 128 tokens",
        "seed": 0,
        "settings": {"budget": 48, "dtype": "float32"},
        "command": "mintage bench token-recycling --seed 0",
        "environment": CPU,
        "note": "",
    }
    return Result(**{**given, **changes})


def draft_tree() -> Figure:
    tokens = [
        (-1, " the", True, 0.61),
        (-1, " a", False, 0.14),
        (-1, "\n", False, 0.08),
        (0, " draft", True, 0.55),
        (0, " target", False, 0.21),
        (0, " same", False, 0.06),
        (1, " tree", False, 0.3),
        (3, " model", True, 0.72),
        (3, " tree", False, 0.19),
        (4, " model", False, 0.8),
        (7, " proposes", False, 0.33),
        (7, "'s", True, 0.28),
        (7, ",", False, 0.2),
        (11, " own", True, 0.41),
        (11, " probability", False, 0.4),
        (9, " is", False, 0.2),
        (13, "\t", False, None),
        (2, "```", False, 0.5),
        (17, "python", False, 0.7),
    ]
    nodes = [dict(zip(("parent", "token", "accepted", "score"), token, strict=True)) for token in tokens]
    data = {
        "nodes": nodes,
        "context": "Why does a larger tree help? Because verification is cheap when",
        "emitted": " the draft model's own guess",
    }
    return Figure(
        job="draft",
        name="tree",
        title="One draft tree, verified",
        caption="Five of nineteen drafted tokens agree with the target; the sixth token is the target's own.",
        kind="tree",
        data=data,
        method="token-recycling",
        environment=CPU,
    )


def figures() -> list[Figure]:
    xs = [4, 8, 16, 24, 48, 80]
    curve = {
        "x_label": "nodes per tree",
        "y_label": "tokens per forward",
        "series": [
            {
                "name": name,
                "x": xs,
                "y": [1 + a * math.log2(x) / 6 for x in xs],
                "low": [1 + a * math.log2(x) / 6 - 0.06 for x in xs],
                "high": [1 + a * math.log2(x) / 6 + 0.07 for x in xs],
            }
            for name, a in (("token-recycling, hot", 0.86), ("token-recycling, cold", 0.62), ("prompt-lookup", 0.3))
        ],
    }
    bars = {
        "y_label": "images per second, relative to the unmodified model",
        "categories": ["PiToMe", "ToMe", "Zero-TPrune", "random drop"],
        "series": [
            {"name": "0.75 MACs", "y": [1.12, 1.19, 0.94, 1.24], "low": [1.08, 1.14, 0.9, 1.2],
             "high": [1.16, 1.23, 0.99, 1.29]},
            {"name": "0.5 MACs", "y": [1.41, 1.52, None, 1.71], "low": [1.35, 1.47, None, 1.66],
             "high": [1.46, 1.58, None, 1.77]},
        ],
    }  # fmt: skip
    heat = {
        "x_label": "context length (thousand characters)",
        "y_label": "depth of the needle",
        "z_label": "accuracy",
        "z": [[max(0.0, 1 - 0.07 * j - 0.09 * (2 - abs(i - 2))) for j in range(8)] for i in range(5)],
    }
    words = ["Donau", "dampf", "schiff", "fahrts", "gesellschaft", " ", "und", "\n", "Haus", "boot"]
    tokens = [
        {"text": w, "value": None if w.isspace() else (i % 4) / 4 + 0.2, "group": ["constituent", "space"][w.isspace()]}
        for i, w in enumerate(words * 4)
    ]
    return [
        draft_tree(),
        Figure(job="draft", name="budget", title="Tokens per forward against tree size",
               caption="A hot table keeps paying for larger trees; bands are 95% intervals over 20 prompts.",
               kind="curve", data=curve, environment=CPU),
        Figure(job="reduce", name="speed", title="Speed at equal multiply-adds", caption="Whiskers: 95% intervals.",
               kind="bars", data=bars, environment=CPU),
        Figure(job="audit", name="depth", title="Needle accuracy by depth and length",
               caption="The middle of a long context is worst.", kind="heatmap", data=heat, environment=GPU),
        Figure(job="segment", name="compounds", title="Where compounds are cut", caption="Shade: confidence.",
               kind="token-map", data={"tokens": tokens}, method="compoundpiece", environment=CPU),
        Figure(job="reduce", name="patches", title="Which patches became one token", caption="Dark: dropped.",
               kind="patch-map", method="pitome",
               data={"images": [{"src": PIXEL, "label": "a cat", "groups": [[0, 0, 1], [0, 2, None]]}]},
               environment=CPU),
    ]  # fmt: skip


def results() -> list[Result]:
    return [
        result(),
        result(
            metric="wall clock against plain greedy",
            value=0.912,
            interval=(0.861, 0.968),
            peers={"prompt-lookup": 1.04},
            claim="faster than plain greedy on this machine",
            verdict="does not hold",
            note="A compute-bound CPU pays for every drafted node; the paper's 2x needs a memory-bound device.",
        ),
        result(metric="wall clock against plain greedy", value=1.63, interval=(1.55, 1.72), environment=GPU,
               peers={"prompt-lookup": 1.22}, claim="faster than plain greedy on this machine"),
        result(method="prompt-lookup", value=1.31, interval=(1.2, 1.44), peers={}, claim="", verdict="measured"),
        result(method="pitome", job="reduce", metric="top-1 lost at 0.5 MACs", value=0.42, unit="points",
               higher_is_better=False, interval=(0.11, 0.73), n=1000, baseline={"ToMe": 0.9},
               peers={"random merging": 4.8, "zero-tprune": 1.7}, model="ViT-S/14 saliency + ridge head",
               data="CIFAR-10 test, 1000", claim="loses at most half of what ToMe loses"),
        result(method="double-sparsity", job="keep", metric="perplexity at 1/8 of the tokens", value=26.1, unit="",
               higher_is_better=False, interval=None, n=4, baseline={"dense": 25.4},
               peers={"window + 4 sinks": 26.9, "oracle top-k": 25.8}, claim="", verdict="measured"),
        result(method="number-tokens", job="audit", metric="exact match, length mismatch", value=97.25, unit="%",
               interval=(96.1, 98.2), n=3900, baseline={"left to right": 8.5}, peers={"single digits": 98.9},
               model="decoder, 1.4 M, trained here", data="additions, 3-7 digits",
               claim="right-to-left cutting gains at least 15 points", environment=GPU),
        result(method="zett", job="retrofit", metric="bits per byte, new 4k tokenizer", value=2.39, unit="bits",
               higher_is_better=False, interval=(2.31, 2.47), n=60, baseline={"original": 0.97},
               peers={"random": 9.0, "lexical": 3.39}, claim="within 0.1 bits per byte of the original",
               verdict="does not hold"),
    ]  # fmt: skip


@pytest.fixture
def make_result():
    return result


@pytest.fixture
def rows():
    return [*results(), *figures()]
