"""One vector from many tokens."""

from mintage.catalog import Method

METHODS = (
    Method(
        name="whitened-cse",
        job="embed",
        title="WhitenedCSE: Whitening-based Contrastive Learning of Sentence Embeddings",
        arxiv="2305.17746",
        year=2023,
        trains=True,
        summary="Contrastive sentence embeddings with shuffled group whitening.",
        claim="Unsupervised BERT-base averages 78.78 Spearman on seven STS tasks, SimCSE 76.25.",
    ),
    Method(
        name="dupmae",
        job="embed",
        title="RetroMAE v2: Duplex Masked Auto-Encoder For Pre-Training Retrieval-Oriented Language Models",
        arxiv="2211.08769",
        year=2022,
        trains=True,
        summary="Pre-trains both the [CLS] vector and the ordinary tokens for retrieval.",
        claim="BEIR average NDCG@10 49.1 against RetroMAE's 45.2; MS MARCO MRR@10 42.58 against 41.6.",
    ),
)
