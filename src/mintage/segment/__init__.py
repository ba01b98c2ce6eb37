"""Cut text (and DNA) into tokens."""

from mintage.catalog import Method

METHODS = (
    Method(
        name="lib",
        job="segment",
        title="Rethinking Tokenization: Crafting Better Tokenizers for Large Language Models",
        arxiv="2403.00417",
        year=2024,
        trains=True,
        summary="Less-is-Better: a vocabulary learned by memorising and forgetting, multi-word units included.",
    ),
    Method(
        name="compoundpiece",
        job="segment",
        title="CompoundPiece: Evaluating and Improving Decompounding Performance of Language Models",
        arxiv="2305.14214",
        year=2023,
        trains=True,
        summary="Learns to split compounds from hyphens, and trains tokenizers on the split words.",
    ),
    Method(
        name="equal-info",
        job="segment",
        title="Training LLMs over Neurally Compressed Text",
        arxiv="2404.03626",
        year=2024,
        trains=True,
        summary="Arithmetic-codes text with a small model in windows of equal information, so that a second model can learn it.",
    ),
)
