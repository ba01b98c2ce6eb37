"""Language models over unusual tokens."""

from mintage.catalog import Method, Trains, lazy_attributes

BENCH = "mintage.bench.lm.joint:LanguageModelBench"

METHODS = (
    Method(
        name="word-pool",
        job="lm",
        title="Learn Your Tokens: Word-Pooled Tokenization for Language Modeling",
        entry="mintage.lm.word_pool:WordPool",
        study="mintage.studies.word_pool:WordPoolStudy",
        trainings=(Trains("word-pool", "mintage.lm.training.word_pool:WordPoolTraining", "Words pooled and spelt."),),
        arxiv="2310.11628",
        year=2023,
        trains=True,
        summary="Pools characters into word vectors, models words, decodes characters.",
        claim="Next-word accuracy over 300% above subword and byte or character models; 30x on rare words.",
    ),
    Method(
        name="mrt5",
        job="lm",
        title="MrT5: Dynamic Token Merging for Efficient Byte-level Language Models",
        arxiv="2410.20771",
        year=2024,
        trains=True,
        entry="mintage.lm.mrt5:MrT5",
        study="mintage.studies.mrt5:MrT5Study",
        trainings=(
            Trains("mrt5", "mintage.lm.training.mrt5:MrT5Training", "A ByT5 that deletes bytes, or its rivals."),
        ),
        summary="A learned gate deletes bytes inside a ByT5 encoder.",
        claim=("ByT5-small with half the bytes deleted: 32% less run time, English loss 0.568 to 0.596 nats per byte."),
    ),
    Method(
        name="hat",
        job="lm",
        title=(
            "Hierarchical Autoregressive Transformers: Combining Byte- and Word-Level Processing for Robust, "
            "Adaptable Language Models"
        ),
        entry="mintage.lm.hat:Hat",
        study="mintage.studies.hat:HatStudy",
        trainings=(Trains("hat", "mintage.lm.training.hat:HatTraining", "Bytes into words, and back."),),
        arxiv="2501.10322",
        year=2025,
        trains=True,
        summary="Bytes into words, a backbone over words, words back into bytes.",
        claim=(
            "Accuracy of a BPE model up to 7B (39.0 against 39.2), far more robust to typos and capitals; "
            "adapts to German 1.9x faster."
        ),
    ),
    Method(
        name="magnet",
        job="lm",
        title=(
            "MAGNET: Improving the Multilingual Fairness of Language Models with Adaptive Gradient-Based Tokenization"
        ),
        arxiv="2407.08818",
        year=2024,
        trains=True,
        entry="mintage.lm.magnet:Magnet",
        study="mintage.studies.magnet:MagnetStudy",
        trainings=(Trains("magnet", "mintage.lm.training.magnet:MagnetTraining", "Bytes in segments, by script."),),
        summary=("Learned byte boundaries with one predictor per script, for equal compression across languages."),
        claim=(
            "More equal segment counts over nine languages in three scripts than one shared predictor or "
            "BPE, faster than bytes."
        ),
    ),
    Method(
        name="lexinvariant",
        job="lm",
        title="Lexinvariant Language Models",
        arxiv="2305.16349",
        year=2023,
        trains=True,
        entry="mintage.lm.lexinvariant:Lexinvariant",
        study="mintage.studies.lexinvariant:LexinvariantStudy",
        trainings=(
            Trains("lexinvariant", "mintage.lm.training.lexinvariant:LexinvariantTraining", "Symbols without meaning."),
        ),
        summary="A language model without fixed token meanings: every sequence gets fresh random embeddings.",
        claim=(
            "Perplexity comparable to a standard model given enough context; 4x accuracy on synthetic in-context tasks."
        ),
    ),
    Method(
        name="pycoder",
        job="lm",
        title="Syntax-Aware On-the-Fly Code Completion",
        entry="mintage.lm.pycoder:PyCoder",
        study="mintage.studies.pycoder:PyCoderStudy",
        trainings=(
            Trains("pycoder", "mintage.lm.training.pycoder:PyCoderTraining", "Code, and its token types along."),
        ),
        arxiv="2211.04673",
        year=2022,
        trains=True,
        summary="Code completion trained jointly on tokens and token types.",
        claim=("PY150: token accuracy 77.12 against CodeGPT's 75.69, exact lines 43.37 against UniXcoder's 40.68."),
    ),
    Method(
        name="dnabert2",
        job="lm",
        title="DNABERT-2: Efficient Foundation Model and Benchmark for Multi-Species Genome",
        entry="mintage.lm.dnabert2:DNABERT2ForMaskedLM",
        study="mintage.studies.dnabert2:DNABERT2Study",
        trainings=(
            Trains("dnabert2", "mintage.lm.training.dnabert2:DNABERT2Training", "An encoder of DNA, by masked tokens."),
            Trains("dna-tokenizer", "mintage.lm.training.dna_tokenizer:DNATokenizerTraining", "BPE tokens of DNA."),
            Trains(
                "dna-classifier",
                "mintage.lm.training.dna_classifier:DNAClassifierTraining",
                "Classes of DNA, by a DNABERT-2.",
            ),
        ),
        arxiv="2306.15006",
        year=2023,
        trains=True,
        summary="A DNA encoder over BPE tokens with ALiBi.",
        claim=(
            "Level with the state of the art on GUE with 21x fewer parameters and about 92x less pre-training GPU time."
        ),
    ),
    Method(
        name="btm",
        job="lm",
        title="Branch-Train-Merge: Embarrassingly Parallel Training of Expert Language Models",
        entry="mintage.lm.btm:ExpertForest",
        study="mintage.studies.btm:BTMStudy",
        arxiv="2208.03306",
        year=2022,
        trains=True,
        trainings=(
            Trains("btm", "mintage.lm.training.btm:ForestTraining", "Experts of domains from one seed, in parallel."),
            Trains("expert", "mintage.lm.training.expert:ExpertTraining", "One expert of a forest, from its seed."),
        ),
        summary="Experts branched from a seed model, trained apart, mixed by a domain posterior or averaged.",
        claim=(
            "Perplexity below compute-matched dense models at all four sizes; 64 experts match a dense model "
            "with 2.5x the compute."
        ),
    ),
    Method(
        name="byte-transformer",
        job="lm",
        title="Transformer over bytes",
        entry="mintage.lm.baselines:ByteTransformer",
        role="baseline",
        trains=True,
        trainings=(
            Trains("byte-transformer", "mintage.lm.training.baselines:ByteTransformerTraining", "A Llama over bytes."),
        ),
        summary="Predicts every byte from all bytes before it.",
    ),
    Method(
        name="bpe-transformer",
        job="lm",
        title="Transformer over BPE tokens",
        entry="mintage.lm.baselines:BPETransformer",
        role="baseline",
        trains=True,
        trainings=(
            Trains("bpe-transformer", "mintage.lm.training.baselines:BPETransformerTraining", "A Llama over BPE."),
        ),
        summary="Cuts text by byte-level BPE and predicts token by token.",
    ),
    Method(
        name="dynamic-pooling",
        job="lm",
        title="Dynamic token pooling",
        entry="mintage.lm.baselines:DynamicPooling",
        role="baseline",
        trains=True,
        trainings=(
            Trains(
                "dynamic-pooling",
                "mintage.lm.training.segment_baselines:DynamicPoolingTraining",
                "Bytes in segments, one rate for all.",
            ),
        ),
        summary="Learned byte boundaries with one predictor for all scripts.",
    ),
    Method(
        name="entropy-patches",
        job="lm",
        title="Entropy patches",
        entry="mintage.lm.baselines:EntropyPatches",
        role="baseline",
        trains=True,
        trainings=(
            Trains(
                "entropy-patches",
                "mintage.lm.training.segment_baselines:EntropyPatchesTraining",
                "Bytes in patches that end where the next byte is unsure.",
            ),
        ),
        summary="Cuts bytes where a small byte model is unsure of the next one, as BLT.",
    ),
    Method(
        name="blt",
        job="lm",
        title="Byte Latent Transformer: Patches Scale Better Than Tokens",
        entry="mintage.lm.blt:Blt",
        arxiv="2412.09871",
        year=2024,
        role="baseline",
        trains=True,
        trainings=(Trains("blt", "mintage.lm.training.peers:BltTraining", "The model of transformers, from scratch."),),
        summary="Transformers' model over entropy patches of bytes, a peer.",
    ),
    Method(
        name="h-net",
        job="lm",
        title="Dynamic Chunking for End-to-End Hierarchical Sequence Modeling",
        entry="mintage.lm.hnet:HNet",
        arxiv="2507.07955",
        year=2025,
        role="baseline",
        trains=True,
        trainings=(
            Trains("h-net", "mintage.lm.training.peers:HNetTraining", "Bytes in chunks, by h-net-dynamic-chunking."),
        ),
        summary="Bytes in learnt chunks, by the package h-net-dynamic-chunking, a peer.",
        needs="h_net_dynamic_chunking",
    ),
)

__getattr__, __dir__ = lazy_attributes(
    __name__,
    METHODS,
    ByteLanguageModel="mintage.lm.contract:ByteLanguageModel",
    Sampling="mintage.lm.core.sampling:Sampling",
    load_byte_lm="mintage.lm.core.folder:load_byte_lm",
    rewrite="mintage.lm.core.rewriting:rewrite",
)
