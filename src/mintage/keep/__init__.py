"""Hold or read fewer cached tokens, or share them over ranks.

Use::

    from mintage.keep import SnapKV
    with SnapKV(budget=256)(model) as session:
        model.generate(input_ids, max_new_tokens=128)
    session.cache.nbytes()
"""

from mintage.catalog import Method, lazy_attributes

METHODS = (
    Method(
        name="double-sparsity",
        job="keep",
        entry="mintage.keep.double_sparsity:DoubleSparsity",
        study="mintage.studies.double_sparsity:DoubleSparsityStudy",
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
        entry="mintage.keep.ems:EMS",
        study="mintage.studies.ems:EMSStudy",
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
        entry="mintage.keep.token_select:TokenSelect",
        study="mintage.studies.token_select:TokenSelectStudy",
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
        entry="mintage.keep.token_ring:TokenRing",
        study="mintage.studies.token_ring:TokenRingStudy",
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
    Method(
        name="full-cache",
        job="keep",
        entry="mintage.keep.baselines:FullCache",
        study="mintage.studies.full_cache:FullCacheStudy",
        title="The unmodified key-value cache",
        summary="Keeps and reads every token, measured by the same means as the others.",
        role="baseline",
    ),
    Method(
        name="streaming-llm",
        job="keep",
        entry="mintage.keep.baselines:StreamingLLM",
        title="Efficient Streaming Language Models with Attention Sinks",
        arxiv="2309.17453",
        year=2023,
        summary="Keeps the first few tokens and a window of the newest.",
        role="baseline",
    ),
    Method(
        name="snapkv",
        job="keep",
        entry="mintage.keep.baselines:SnapKV",
        title="SnapKV: LLM Knows What You are Looking for Before Generation",
        arxiv="2404.14469",
        year=2024,
        summary="Keeps what the prompt's last queries attend to.",
        role="baseline",
    ),
    Method(
        name="h2o",
        job="keep",
        entry="mintage.keep.baselines:H2O",
        title="H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
        arxiv="2306.14048",
        year=2023,
        summary="Keeps the entries with the most attention so far, and the newest.",
        role="baseline",
    ),
    Method(
        name="tova",
        job="keep",
        entry="mintage.keep.baselines:TOVA",
        title="Transformers are Multi-State RNNs",
        arxiv="2401.06104",
        year=2024,
        summary="Drops the entry that the newest query attends to least.",
        role="baseline",
    ),
    Method(
        name="knorm",
        job="keep",
        entry="mintage.keep.baselines:Knorm",
        title="A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression",
        arxiv="2406.11430",
        year=2024,
        summary="Drops keys of large norm.",
        role="baseline",
    ),
    Method(
        name="expected-attention",
        job="keep",
        entry="mintage.keep.baselines:ExpectedAttention",
        title="Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution",
        arxiv="2510.00636",
        year=2025,
        summary="Keeps what queries like those so far would attend to.",
        role="baseline",
    ),
    Method(
        name="random-eviction",
        job="keep",
        entry="mintage.keep.baselines:RandomEviction",
        title="Random eviction",
        summary="Keeps the newest tokens and a random choice of the others.",
        role="baseline",
    ),
)

BENCH = "mintage.bench.keep.joint:KeepBench"

__getattr__, __dir__ = lazy_attributes(
    __name__,
    METHODS,
    Policy="mintage.keep.contract:Policy",
    Attachment="mintage.keep.core.attach:Attachment",
    Evictor="mintage.keep.core.evict:Evictor",
    Selector="mintage.keep.core.select:Selector",
    Step="mintage.keep.core.step:Step",
    KeptCache="mintage.keep.core.storage:KeptCache",
    ChannelOrder="mintage.keep.double_sparsity:ChannelOrder",
)
