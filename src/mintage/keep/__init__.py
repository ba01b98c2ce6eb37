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
        claim="Attention 14.1x and end-to-end 1.9x faster at 1/16 token and channel sparsity.",
    ),
    Method(
        name="ems",
        job="keep",
        title="EMS: Adaptive Evict-then-Merge Strategy for Head-wise KV Cache Compression Based on Global-Local Importance",
        arxiv="2412.08521",
        year=2024,
        summary="Evicts cache entries per head by a global-local score, then merges the evicted into the kept.",
    ),
    Method(
        name="token-select",
        job="keep",
        title="TokenSelect: Efficient Long-Context Inference and Length Extrapolation for LLMs via Dynamic Token-Level KV Cache Selection",
        arxiv="2411.02886",
        year=2024,
        summary="Selects cached tokens per query by soft head voting and reuses the selection for similar queries.",
    ),
    Method(
        name="token-ring",
        job="keep",
        title="TokenRing: An Efficient Parallelism Framework for Infinite-Context LLMs via Bidirectional Communication",
        arxiv="2412.20501",
        year=2024,
        summary="Sequence-parallel attention that sends queries and outputs both ways round the ring.",
    ),
)
