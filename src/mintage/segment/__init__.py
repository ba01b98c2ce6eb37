"""Cut text (and DNA) into tokens.

Use::

    from mintage.segment import LiB, load
    segmenter = LiB(vocab_size=8000).train(Corpus("my-texts/"))   # any iterable of strings
    segmenter.decode(segmenter.encode("any text")) == "any text"
    segmenter.save("my-tokenizer")                                # load(...); a tokenizer.json where there can be one
"""

from mintage.catalog import Method, lazy_attributes

METHODS = (
    Method(
        name="lib",
        job="segment",
        title="Rethinking Tokenization: Crafting Better Tokenizers for Large Language Models",
        arxiv="2403.00417",
        year=2024,
        trains=True,
        summary=("Less-is-Better: a vocabulary learned by memorising and forgetting, multi-word units included."),
        claim="Fewer tokens at equal or fewer types than word and BPE tokenizers.",
    ),
    Method(
        name="compoundpiece",
        job="segment",
        title="CompoundPiece: Evaluating and Improving Decompounding Performance of Language Models",
        arxiv="2305.14214",
        year=2023,
        trains=True,
        summary="Learns to split compounds from hyphens, and trains tokenizers on the split words.",
        claim=(
            "Self-supervised splitting beats the best earlier unsupervised decompounder by 13.9 points of "
            "accuracy on average."
        ),
    ),
    Method(
        name="equal-info",
        job="segment",
        title="Training LLMs over Neurally Compressed Text",
        arxiv="2404.03626",
        year=2024,
        trains=True,
        summary=(
            "Arithmetic-codes text with a small model in windows of equal information, so that a second "
            "model can learn it."
        ),
        claim=(
            "Learning over compressed text improves with scale and beats byte models in perplexity by a wide "
            "margin, not subwords."
        ),
    ),
)

__getattr__, __dir__ = lazy_attributes(
    __name__,
    Segmenter="mintage.segment.contract:Segmenter",
    Trainer="mintage.segment.contract:Trainer",
    load="mintage.segment.contract:load",
)
