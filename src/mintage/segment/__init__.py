"""Cut text (and DNA) into tokens.

Use::

    from mintage.segment import LiB, load
    segmenter = LiB(vocab_size=8000).train(Corpus("my-texts/"))   # any iterable of strings
    segmenter.decode(segmenter.encode("any text")) == "any text"
    segmenter.save("my-tokenizer")                                # load(...); a tokenizer.json where there can be one
"""

from mintage.catalog import Method, Trains, lazy_attributes

METHODS = (
    Method(
        name="lib",
        job="segment",
        entry="mintage.segment.less_is_better:LiB",
        study="mintage.studies.less_is_better:LiBStudy",
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
        entry="mintage.segment.compoundpiece:CompoundPiece",
        study="mintage.studies.compoundpiece:CompoundPieceStudy",
        trainings=(
            Trains(
                "decompounder",
                "mintage.segment.training.decompounder:DecompounderTraining",
                "a splitter of compounds, for compoundpiece and mintage segment decompound",
            ),
        ),
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
        entry="mintage.segment.equal_info:EqualInfo",
        study="mintage.studies.equal_info:EqualInfoStudy",
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
    Method(
        name="bpe",
        job="segment",
        entry="mintage.segment.baselines:BPE",
        title="Neural Machine Translation of Rare Words with Subword Units",
        arxiv="1508.07909",
        year=2015,
        trains=True,
        summary="Byte-pair encoding within words: merges the most frequent pair again and again (tokenizers).",
        role="baseline",
    ),
    Method(
        name="unigram",
        job="segment",
        entry="mintage.segment.baselines:Unigram",
        title=("Subword Regularization: Improving Neural Network Translation Models with Multiple Subword Candidates"),
        arxiv="1804.10959",
        year=2018,
        trains=True,
        summary="A unigram language model over pieces, pruned to size, cut by Viterbi (sentencepiece).",
        role="baseline",
    ),
    Method(
        name="wordpiece",
        job="segment",
        entry="mintage.segment.baselines:WordPiece",
        title="WordPiece, as in BERT",
        year=2018,
        trains=True,
        summary="Greedy longest match over a vocabulary learned by merging (tokenizers).",
        role="baseline",
    ),
    Method(
        name="parity-bpe",
        job="segment",
        entry="mintage.segment.baselines:ParityBPE",
        title="Parity-Aware Byte-Pair Encoding: Improving Cross-lingual Fairness in Tokenization",
        arxiv="2508.04796",
        year=2025,
        trains=True,
        summary="Byte-pair encoding whose every merge goes to the worst compressed language (tokenizers).",
        role="baseline",
    ),
    Method(
        name="superword-bpe",
        job="segment",
        entry="mintage.segment.baselines:SuperwordBPE",
        title="Byte-pair encoding without word boundaries",
        trains=True,
        summary="Byte-pair encoding whose tokens may span words, as in 'of the'.",
        role="baseline",
    ),
    Method(
        name="bytes",
        job="segment",
        entry="mintage.segment.baselines:ByteLevel",
        title="Bytes",
        summary="The 256 bytes, nothing learned.",
        role="baseline",
    ),
    Method(
        name="morfessor",
        job="segment",
        entry="mintage.segment.baselines:Morfessor",
        title="Unsupervised Morpheme Segmentation and Morphology Induction from Text Corpora Using Morfessor 1.0",
        year=2005,
        trains=True,
        summary="Morphs of least description length (Morfessor Baseline 2.0.6), with bytes for what has no morph.",
        role="baseline",
    ),
)

BENCH = "mintage.bench.segment.joint:SegmentBench"

__getattr__, __dir__ = lazy_attributes(
    __name__,
    METHODS,
    Segmenter="mintage.segment.contract:Segmenter",
    Trainer="mintage.segment.contract:Trainer",
    load="mintage.segment.contract:load",
    ByLanguage="mintage.segment.baselines:ByLanguage",
    Decompounder="mintage.segment.decompounder:Decompounder",
    EqualInfoSegmenter="mintage.segment.equal_info:EqualInfoSegmenter",
    GRUSettings="mintage.segment.core.byte_models:GRUSettings",
    HFSegmenter="mintage.segment.core.hf:HFSegmenter",
    LiBSegmenter="mintage.segment.longest_match:LiBSegmenter",
    TaggerSettings="mintage.segment.training.decompounder:TaggerSettings",
    decompound="mintage.segment.decompounder:decompound",
    hard_compound_rate="mintage.segment.hard_compounds:hard_compound_rate",
    train_byte_gru="mintage.segment.training.byte_gru:train_byte_gru",
    train_decompounder="mintage.segment.training.decompounder:train_decompounder",
)
