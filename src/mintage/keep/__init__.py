"""Hold or read fewer cached tokens, or share them over ranks."""

from mintage.catalog import Method

METHODS = (
    Method(
        name="double-sparsity",
        job="keep",
        title="Post-Training Sparse Attention with Double Sparsity",
        arxiv="2408.07092",
        year=2024,
        summary="Reads only the cached tokens that a few calibrated key channels mark as heavy.",
        claim=(
            "Up to 14.1x faster attention and 1.9x end to end at 1/16 of tokens and channels, perplexity "
            "nearly unchanged."
        ),
    ),
    Method(
        name="ems",
        job="keep",
        title=(
            "EMS: Adaptive Evict-then-Merge Strategy for Head-wise KV Cache Compression Based on "
            "Global-Local Importance"
        ),
        arxiv="2412.08521",
        year=2024,
        summary=("Evicts cache entries per head by a global-local score, then merges the evicted into the kept."),
        claim=(
            "+1.28 points on LongBench over the best rival at 256 entries; 95% needle retrieval with under "
            "2% of the context."
        ),
    ),
    Method(
        name="token-select",
        job="keep",
        title=(
            "TokenSelect: Efficient Long-Context Inference and Length Extrapolation for LLMs via Dynamic "
            "Token-Level KV Cache Selection"
        ),
        arxiv="2411.02886",
        year=2024,
        summary=("Selects cached tokens per query by soft head voting and reuses the selection for similar queries."),
        claim=(
            "Up to 23.84x faster attention and 2.28x lower end-to-end latency at better long-context "
            "accuracy (6-8B models)."
        ),
    ),
    Method(
        name="token-ring",
        job="keep",
        title=(
            "TokenRing: An Efficient Parallelism Framework for Infinite-Context LLMs via Bidirectional Communication"
        ),
        arxiv="2412.20501",
        year=2024,
        summary="Sequence-parallel attention that sends queries and outputs both ways round the ring.",
        claim=(
            "About 2x shorter steps than ring attention (7.6 ms to 3.5-4.6 ms, 24k tokens, four A10), exact result."
        ),
    ),
)
