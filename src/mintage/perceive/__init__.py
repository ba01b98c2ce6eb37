"""Recognise things from token features."""

from mintage.catalog import Method

METHODS = (
    Method(
        name="cfe",
        job="perceive",
        title="Focus on the Whole Character: Discriminative Character Modeling for Scene Text Recognition",
        arxiv="2407.05562",
        year=2024,
        trains=True,
        summary="Scene-text recognition with a decayed attention encoder and a character centre loss.",
        claim=(
            "Mean accuracy 94.1% on six benchmarks and 61.6% on Union14M, above SVTR, PARSeq and ABINet on "
            "the same data."
        ),
    ),
    Method(
        name="morp-mamba",
        job="perceive",
        title="Spatial-Spectral Morphological Mamba for Hyperspectral Image Classification",
        arxiv="2408.01372",
        year=2024,
        trains=True,
        summary="Hyperspectral pixels classified from morphological tokens by a linear recurrence.",
        claim=(
            "Higher parametric efficiency (about 67 k parameters) than CNNs and transformers at maintained "
            "high accuracy."
        ),
    ),
    Method(
        name="read-seg",
        job="perceive",
        title="Reasoning to Attend: Try to Understand How <SEG> Token Works",
        arxiv="2412.17741",
        year=2024,
        trains=True,
        summary="Turns the similarity of the <SEG> token into point prompts for segmentation.",
        claim="ReasonSeg val gIoU 59.8 and cIoU 67.6 at 7B, above LISA and SESAME of equal size.",
    ),
)
