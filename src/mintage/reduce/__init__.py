"""Fewer vision tokens inside a ViT or a vision-language model.

Use::

    from mintage.reduce import PiToMe
    with PiToMe(schedule="ratio=0.9")(model) as session:
        model(pixel_values=pixels)
    session.tokens            # how many went into each layer
"""

from mintage.catalog import Method, Trains, lazy_attributes

METHODS = (
    Method(
        name="pitome",
        job="reduce",
        entry="mintage.reduce.pitome:PiToMe",
        study="mintage.studies.pitome:PiToMeStudy",
        title="Accelerating Transformers with Spectrum-Preserving Token Merging",
        arxiv="2405.16148",
        year=2024,
        summary="Merges redundant tokens by an energy score and protects isolated ones.",
        claim=(
            "40-60% fewer FLOPs; ViT-MAE-H loses 0.5 points on ImageNet-1k where other mergers lose 2.6 (off "
            "the shelf)."
        ),
    ),
    Method(
        name="diffrate",
        job="reduce",
        entry="mintage.reduce.diffrate:DiffRate",
        study="mintage.studies.diffrate:DiffRateStudy",
        title="DiffRate: Differentiable Compression Rate for Efficient Vision Transformers",
        arxiv="2305.17997",
        year=2023,
        trains=True,
        trainings=(
            Trains(
                "diffrate",
                "mintage.reduce.training.diffrate:DiffRateTraining",
                "How many tokens each block prunes and merges, for a budget of multiply-adds.",
            ),
        ),
        summary="Learns by gradient how many tokens each layer prunes and merges.",
        claim=(
            "ViT-H (MAE): 40% fewer FLOPs and 1.5x images/s for 0.16 points of ImageNet-1k top-1, backbone "
            "not fine-tuned."
        ),
    ),
    Method(
        name="zero-tprune",
        job="reduce",
        entry="mintage.reduce.zero_tprune:ZeroTPrune",
        study="mintage.studies.zero_tprune:ZeroTPruneStudy",
        title=(
            "Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph in Pre-Trained Transformers"
        ),
        arxiv="2305.17328",
        year=2023,
        summary="Prunes tokens by a weighted PageRank over the attention graph, without training.",
        claim=("DeiT-S: 34.7% fewer FLOPs and 45.3% more images/s for 0.4 points of top-1, without any training."),
    ),
    Method(
        name="sparsifiner",
        job="reduce",
        entry="mintage.reduce.sparsifiner:Sparsifiner",
        study="mintage.studies.sparsifiner:SparsifinerStudy",
        title="Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers",
        arxiv="2303.13755",
        year=2023,
        trains=True,
        trainings=(
            Trains(
                "sparsifiner",
                "mintage.reduce.training.sparsifiner:SparsifinerTraining",
                "Predictors of sparse attention, then the transformer under their masks.",
            ),
        ),
        summary="Predicts a sparse attention mask per image with a low-rank connectivity predictor.",
        claim=(
            "48-69% fewer attention FLOPs for at most 0.4 points of top-1; with token sparsity over 60% "
            "fewer ViT FLOPs."
        ),
    ),
    Method(
        name="sit-slim",
        job="reduce",
        entry="mintage.reduce.sit_slim:SelfSlimmed",
        study="mintage.studies.sit_slim:SitSlimStudy",
        title="Self-slimmed Vision Transformer",
        arxiv="2111.12624",
        year=2021,
        trains=True,
        trainings=(
            Trains(
                "sit-slim",
                "mintage.reduce.training.sit_slim:SitSlimTraining",
                "A transformer that slims its own tokens.",
            ),
        ),
        summary="Re-weights all tokens into fewer by a learned slimming module, distilled densely.",
        claim="1.7x images/s with negligible drop, 3.6x at 97% of the accuracy (LV-ViT, ImageNet-1k).",
    ),
    Method(
        name="mustdrop",
        job="reduce",
        title="Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model",
        arxiv="2411.10803",
        year=2024,
        summary="Drops vision tokens in the encoder, the prefill and the decode of a VLM.",
        claim="88.5% fewer FLOPs on LLaVA with 92.2% of the vision tokens gone, at comparable accuracy.",
    ),
    Method(
        name="fopru",
        job="reduce",
        title="FoPru: Focal Pruning for Efficient Large Vision-Language Models",
        arxiv="2411.14164",
        year=2024,
        summary="Prunes a VLM's vision tokens by the vision encoder's attention, in rows or ranks.",
        claim="Prunes a large number of redundant vision tokens at high accuracy, without training.",
    ),
    Method(
        name="globalcom2",
        job="reduce",
        title="Compression with Global Guidance: Towards Training-free High-Resolution MLLMs Acceleration",
        arxiv="2501.05179",
        year=2025,
        summary=("Lets the global thumbnail decide how many tokens each crop of a high-resolution image keeps."),
        claim=(
            "Over 90% of the score with 90% of the vision tokens gone; 9.1% of the FLOPs, 60% of the peak "
            "memory (LLaVA-NeXT)."
        ),
    ),
    Method(
        name="tome",
        job="reduce",
        entry="mintage.reduce.baselines:ToMe",
        title="Token Merging: Your ViT But Faster",
        arxiv="2210.03461",
        year=2022,
        summary="Merges the most similar pairs between two alternating sets of tokens.",
        role="baseline",
    ),
    Method(
        name="random-drop",
        job="reduce",
        entry="mintage.reduce.baselines:RandomDrop",
        title="Random dropping",
        summary="Drops patches at random.",
        role="baseline",
    ),
    Method(
        name="class-attention",
        job="reduce",
        entry="mintage.reduce.baselines:ClassAttention",
        title="Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations",
        arxiv="2202.07800",
        year=2022,
        summary="Keeps the patches that the class token attends to most (EViT without its fused token).",
        role="baseline",
    ),
    Method(
        name="average-pool",
        job="reduce",
        entry="mintage.reduce.baselines:AveragePool",
        title="Average pooling",
        summary="Averages neighbouring patches, whatever they hold.",
        role="baseline",
    ),
)

BENCH = "mintage.bench.reduce.joint:ReduceBench"

TRAININGS = (Trains("vit", "mintage.reduce.training.vit:ViTTraining", "A small classifier to reduce tokens in."),)

__getattr__, __dir__ = lazy_attributes(
    __name__,
    METHODS,
    Reducer="mintage.reduce.contract:Reducer",
    Scheduled="mintage.reduce.core.scheduled:Scheduled",
    Schedule="mintage.reduce.core.schedule:Schedule",
    Anatomy="mintage.reduce.core.schedule:Anatomy",
    TokenState="mintage.reduce.core.state:TokenState",
    Evidence="mintage.reduce.core.state:Evidence",
    Attachment="mintage.reduce.core.attach:Attachment",
)
