"""Give a trained model other tokens."""

from mintage.catalog import Method, lazy_attributes

METHODS = (
    Method(
        name="zett",
        job="retrofit",
        title="Zero-Shot Tokenizer Transfer",
        arxiv="2405.07883",
        year=2024,
        trains=True,
        summary="A hypernetwork predicts the embeddings of any new tokenizer for a trained model.",
        claim=(
            "Close to the original models across languages and code, with markedly shorter token sequences, "
            "without retraining."
        ),
    ),
    Method(
        name="dynamic-tokens",
        job="retrofit",
        entry="mintage.retrofit.dynamic_tokens:DynamicTokens",
        title="Retrofitting Large Language Models with Dynamic Tokenization",
        arxiv="2411.18553",
        year=2024,
        trains=True,
        summary="Merges frequent subwords of the batch at run time and predicts their embeddings.",
        claim="XLM-R, XNLI in 14 languages: sequences over 20% shorter for less than 2% of accuracy.",
    ),
    Method(
        name="exact-bytes",
        job="retrofit",
        entry="mintage.retrofit.exact_bytes:ByteLM",
        title=("Exact Byte-Level Probabilities from Tokenized Language Models for FIM-Tasks and Model Ensembles"),
        arxiv="2410.09303",
        year=2024,
        summary="Turns a token model into the exactly equivalent byte model.",
        claim=("About +18% on code fill-in-the-middle; up to +3.7% from ensembles over different vocabularies."),
    ),
)

__getattr__, __dir__ = lazy_attributes(
    __name__,
    ByteEnsemble="mintage.retrofit.exact_bytes:ByteEnsemble",
    ByteLM="mintage.retrofit.exact_bytes:ByteLM",
    ByteSampler="mintage.retrofit.contract:ByteSampler",
    ByteState="mintage.retrofit.contract:ByteState",
    ByteVocabulary="mintage.retrofit.exact_bytes:ByteVocabulary",
    Composer="mintage.retrofit.composer:Composer",
    ComposerTransfer="mintage.retrofit.composer:ComposerTransfer",
    DynamicBatch="mintage.retrofit.merging:DynamicBatch",
    DynamicModel="mintage.retrofit.dynamic_tokens:DynamicModel",
    DynamicTokenizer="mintage.retrofit.merging:DynamicTokenizer",
    DynamicTokens="mintage.retrofit.dynamic_tokens:DynamicTokens",
    LargeVocabHead="mintage.retrofit.large_vocabulary:LargeVocabHead",
    LargeVocabulary="mintage.retrofit.large_vocabulary:LargeVocabulary",
    PartsTransfer="mintage.retrofit.composer:PartsTransfer",
    dynamic_merge="mintage.retrofit.merging:dynamic_merge",
    extended_vocabulary="mintage.retrofit.large_vocabulary:extended_vocabulary",
)
