"""Guess tokens ahead and verify them in one forward, keeping the target model's distribution.

Use::

    from mintage.draft import TokenRecycling, generate
    out = generate(model, input_ids, TokenRecycling(), max_new_tokens=128)   # out.sequences, out.stats
    model.generate(input_ids, custom_generate=TokenRecycling())              # the same loop inside transformers
"""

from mintage.catalog import Method, lazy_attributes

METHODS = (
    Method(
        name="token-recycling",
        job="draft",
        entry="mintage.draft.token_recycling:TokenRecycling",
        title="Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token Recycling",
        arxiv="2408.08696",
        year=2024,
        summary="Drafts a tree from a table of each token's last seen top-k successors; no draft model, no training.",
        claim="About 2x wall clock on Spec-Bench at 7B-33B; about 30% over earlier train-free drafters.",
    ),
    Method(
        name="dyspec",
        job="draft",
        entry="mintage.draft.dyspec:DySpec",
        title="DySpec: Faster Speculative Decoding with Dynamic Token Tree Structure",
        arxiv="2410.11744",
        year=2024,
        summary="Grows the draft tree where the draft model's own probability says a token will be accepted.",
        claim="Up to 9.1x throughput over autoregressive decoding (Llama-2-70B, offloaded, low temperature).",
    ),
    Method(
        name="rsd",
        job="draft",
        entry="mintage.draft.rsd:RSD",
        title="Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without Replacement",
        arxiv="2402.14160",
        year=2024,
        summary="Draws sibling drafts without replacement and verifies them by recursive rejection.",
        claim="Beats single-chain speculative decoding and SpecTr at equal draft length, mostly also at equal budget.",
    ),
    Method(
        name="spectr",
        job="draft",
        entry="mintage.draft.spectr:SpecTr",
        title="SpecTr: Fast Speculative Decoding via Optimal Transport",
        arxiv="2310.15141",
        year=2023,
        summary="Selects among K independent drafts by K-SEQ, within 1-1/e of the optimal transport plan.",
        claim="2.13x wall clock over autoregressive and 1.37x over speculative decoding (PaLM-2, LM1B, K=L=8).",
    ),
    Method(
        name="ppd",
        job="draft",
        entry="mintage.draft.ppd:PPD",
        title="Hardware-Aware Parallel Prompt Decoding for Memory-Efficient Acceleration of LLM Inference",
        arxiv="2405.18628",
        year=2024,
        trains=True,
        summary="A few trained prompt-token embeddings make the frozen model guess several tokens ahead.",
        claim="Up to 2.49x over autoregressive decoding with 0.0002% trained parameters (Vicuna, MobileLLaMA).",
    ),
    Method(
        name="plain",
        job="draft",
        entry="mintage.draft.baselines:Plain",
        title="Autoregressive decoding",
        summary="Drafts nothing: one token per forward, in the same loop as the others.",
        role="baseline",
    ),
    Method(
        name="speculative",
        job="draft",
        entry="mintage.draft.baselines:Chain",
        title="Accelerating Large Language Model Decoding with Speculative Sampling",
        arxiv="2302.01318",
        year=2023,
        summary="Drafts one chain of tokens with a small model and keeps its prefix by rejection sampling.",
        role="baseline",
    ),
    Method(
        name="specinfer",
        job="draft",
        entry="mintage.draft.baselines:SpecInfer",
        title="SpecInfer: Accelerating Generative Large Language Model Serving with Tree-based Speculative Inference",
        arxiv="2305.09781",
        year=2023,
        summary="Drafts a tree of independently drawn siblings and verifies them one after the other.",
        role="baseline",
    ),
    Method(
        name="prompt-lookup",
        job="draft",
        entry="mintage.draft.baselines:PromptLookup",
        title="Prompt lookup decoding",
        year=2023,
        summary="Drafts the continuation of the last n-gram's earlier occurrence in the context.",
        role="baseline",
    ),
    Method(
        name="union",
        job="draft",
        entry="mintage.draft.union:Union",
        title="Union of drafters",
        summary="Merges several drafters' trees under one node budget, shared prefixes once.",
        role="combinator",
    ),
)

__getattr__, __dir__ = lazy_attributes(
    __name__,
    generate="mintage.draft.core.loop:generate",
    Generation="mintage.draft.core.loop:Generation",
    Stats="mintage.draft.core.loop:Stats",
    Drafter="mintage.draft.contract:Drafter",
    Context="mintage.draft.contract:Context",
    TokenTree="mintage.draft.core.tree:TokenTree",
    Topology="mintage.draft.core.tree:Topology",
    Verifier="mintage.draft.contract:Verifier",
    Warp="mintage.draft.core.warp:Warp",
    TokenRecycling="mintage.draft.token_recycling:TokenRecycling",
    Plain="mintage.draft.baselines:Plain",
    DySpec="mintage.draft.dyspec:DySpec",
    Chain="mintage.draft.baselines:Chain",
    SpecInfer="mintage.draft.baselines:SpecInfer",
    PromptLookup="mintage.draft.baselines:PromptLookup",
    RSD="mintage.draft.rsd:RSD",
    SpecTr="mintage.draft.spectr:SpecTr",
    Union="mintage.draft.union:Union",
    PPD="mintage.draft.ppd:PPD",
)
