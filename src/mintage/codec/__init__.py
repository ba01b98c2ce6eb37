"""Images, 3-D shapes and speech into token sequences and back."""

from mintage.catalog import Method

METHODS = (
    Method(
        name="flextok",
        job="codec",
        title="FlexTok: Resampling Images into 1D Token Sequences of Flexible Length",
        arxiv="2502.13967",
        year=2025,
        trains=True,
        summary="An image as an ordered token sequence of which every prefix decodes.",
    ),
    Method(
        name="one-d-piece",
        job="codec",
        title="One-D-Piece: Image Tokenizer Meets Quality-Controllable Compression",
        arxiv="2501.10064",
        year=2025,
        trains=True,
        summary="A 1-D image tokenizer trained with tail drop, so that length is the quality dial.",
    ),
    Method(
        name="seed",
        job="codec",
        title="Planting a SEED of Vision in Large Language Model",
        arxiv="2307.08041",
        year=2023,
        trains=True,
        summary="Causal, semantic image tokens that a language model can read and write.",
    ),
    Method(
        name="vat-3d",
        job="codec",
        title="3D representation in 512-Byte: Variational tokenizer is the key for autoregressive 3D generation",
        arxiv="2412.02202",
        year=2024,
        trains=True,
        summary="Shapes as coarse-to-fine tokens by residual quantisation over scales.",
    ),
    Method(
        name="dm-codec",
        job="codec",
        title="DM-Codec: Distilling Multimodal Representations for Speech Tokenization",
        arxiv="2410.15017",
        year=2024,
        trains=True,
        summary="A speech codec distilled from a language model and a speech model.",
    ),
    Method(
        name="xar",
        job="codec",
        title="Beyond Next-Token: Next-X Prediction for Autoregressive Visual Generation",
        arxiv="2502.20388",
        year=2025,
        trains=True,
        summary="Autoregressive image generation over cells of patches with noisy context learning.",
    ),
)
