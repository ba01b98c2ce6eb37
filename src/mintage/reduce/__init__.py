"""Fewer vision tokens inside a ViT or a vision-language model."""

from mintage.catalog import Method

METHODS = (
    Method(
        name="pitome",
        job="reduce",
        title="Accelerating Transformers with Spectrum-Preserving Token Merging",
        arxiv="2405.16148",
        year=2024,
        summary="Merges redundant tokens by an energy score and protects isolated ones.",
    ),
    Method(
        name="diffrate",
        job="reduce",
        title="DiffRate: Differentiable Compression Rate for Efficient Vision Transformers",
        arxiv="2305.17997",
        year=2023,
        trains=True,
        summary="Learns by gradient how many tokens each layer prunes and merges.",
    ),
    Method(
        name="zero-tprune",
        job="reduce",
        title="Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph in Pre-Trained Transformers",
        arxiv="2305.17328",
        year=2023,
        summary="Prunes tokens by a weighted PageRank over the attention graph, without training.",
    ),
    Method(
        name="sparsifiner",
        job="reduce",
        title="Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers",
        arxiv="2303.13755",
        year=2023,
        trains=True,
        summary="Predicts a sparse attention mask per image with a low-rank connectivity predictor.",
    ),
    Method(
        name="sit-slim",
        job="reduce",
        title="Self-slimmed Vision Transformer",
        arxiv="2111.12624",
        year=2021,
        trains=True,
        summary="Re-weights all tokens into fewer by a learned slimming module, distilled densely.",
    ),
    Method(
        name="mustdrop",
        job="reduce",
        title="Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model",
        arxiv="2411.10803",
        year=2024,
        summary="Drops vision tokens in the encoder, the prefill and the decode of a VLM.",
    ),
    Method(
        name="fopru",
        job="reduce",
        title="FoPru: Focal Pruning for Efficient Large Vision-Language Models",
        arxiv="2411.14164",
        year=2024,
        summary="Prunes a VLM's vision tokens by the vision encoder's attention, in rows or ranks.",
    ),
    Method(
        name="globalcom2",
        job="reduce",
        title="Compression with Global Guidance: Towards Training-free High-Resolution MLLMs Acceleration",
        arxiv="2501.05179",
        year=2025,
        summary="Lets the global thumbnail decide how many tokens each crop of a high-resolution image keeps.",
    ),
)
