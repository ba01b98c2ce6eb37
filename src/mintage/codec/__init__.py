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
        claim=(
            "One tokenizer reaches gFID below 2 on ImageNet-256 with any length from 8 to 128 tokens "
            "(TiTok-L-32: 2.77)."
        ),
    ),
    Method(
        name="one-d-piece",
        job="codec",
        title="One-D-Piece: Image Tokenizer Meets Quality-Controllable Compression",
        arxiv="2501.10064",
        year=2025,
        trains=True,
        summary="A 1-D image tokenizer trained with tail drop, so that length is the quality dial.",
        claim=("rFID 1.08 at 256 tokens; at equal bytes better perceptual quality and accuracy than JPEG and WebP."),
    ),
    Method(
        name="seed",
        job="codec",
        title="Planting a SEED of Vision in Large Language Model",
        arxiv="2307.08041",
        year=2023,
        trains=True,
        summary="Causal, semantic image tokens that a language model can read and write.",
        claim=(
            "Causal, semantic codes let OPT-2.7B with LoRA caption, answer and draw; tokenizer trained in "
            "5.7 days on 64 V100."
        ),
    ),
    Method(
        name="vat-3d",
        job="codec",
        title=("3D representation in 512-Byte: Variational tokenizer is the key for autoregressive 3D generation"),
        arxiv="2412.02202",
        year=2024,
        trains=True,
        summary="Shapes as coarse-to-fine tokens by residual quantisation over scales.",
        claim="A 1 MB mesh in 3.9 kB at 96% F-score (250x), in 512 bytes at 92% (2000x).",
    ),
    Method(
        name="dm-codec",
        job="codec",
        title="DM-Codec: Distilling Multimodal Representations for Speech Tokenization",
        arxiv="2410.15017",
        year=2024,
        trains=True,
        summary="A speech codec distilled from a language model and a speech model.",
        claim=(
            "WER 13.46% and WIL 9.82% lower, ViSQOL 5.84% and STOI 1.85% higher than state-of-the-art speech "
            "tokenizers."
        ),
    ),
    Method(
        name="xar",
        job="codec",
        title="Beyond Next-Token: Next-X Prediction for Autoregressive Visual Generation",
        arxiv="2502.20388",
        year=2025,
        trains=True,
        summary="Autoregressive image generation over cells of patches with noisy context learning.",
        claim=("ImageNet-256 FID 1.72 with 172M parameters, 20x faster than DiT-XL (2.27); FID 1.24 with 1.1B."),
    ),
)
