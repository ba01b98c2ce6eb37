"""Give a trained model other tokens."""

from mintage.catalog import Method

METHODS = (
    Method(
        name="zett",
        job="retrofit",
        title="Zero-Shot Tokenizer Transfer",
        arxiv="2405.07883",
        year=2024,
        trains=True,
        summary="A hypernetwork predicts the embeddings of any new tokenizer for a trained model.",
    ),
    Method(
        name="dynamic-tokens",
        job="retrofit",
        title="Retrofitting Large Language Models with Dynamic Tokenization",
        arxiv="2411.18553",
        year=2024,
        trains=True,
        summary="Merges frequent subwords of the batch at run time and predicts their embeddings.",
    ),
    Method(
        name="exact-bytes",
        job="retrofit",
        title="Exact Byte-Level Probabilities from Tokenized Language Models for FIM-Tasks and Model Ensembles",
        arxiv="2410.09303",
        year=2024,
        summary="Turns a token model into the exactly equivalent byte model.",
    ),
)
