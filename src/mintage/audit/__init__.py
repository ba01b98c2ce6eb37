"""What tokens reveal about models and data."""

from mintage.catalog import Method, lazy_attributes

METHODS = (
    Method(
        name="data-mixture",
        job="audit",
        entry="mintage.audit.data_mixture:DataMixture",
        study="mintage.studies.data_mixture:DataMixtureStudy",
        title="Data Mixture Inference: What do BPE Tokenizers Reveal about their Training Data?",
        arxiv="2407.16607",
        year=2024,
        summary="Reads the training mixture of a BPE tokenizer from its merge list by linear programming.",
        claim=(
            "log10 MSE -7.3 to -7.7 on language mixtures; a random guess reaches -1.39 (5 languages) to -3.82 (112)."
        ),
    ),
    Method(
        name="number-tokens",
        job="audit",
        entry="mintage.audit.number_tokens:NumberTokens",
        study="mintage.studies.number_tokens:NumberTokensStudy",
        title="Tokenization counts: the impact of tokenization on arithmetic in frontier LLMs",
        arxiv="2402.14903",
        year=2024,
        summary="How a tokenizer cuts numbers, and what right-to-left cutting does for arithmetic.",
        claim=(
            "GPT-3.5 adds with 97.8% accuracy when digits are cut from the right, 75.6% cut from the left (8 shots)."
        ),
    ),
    Method(
        name="utf",
        job="audit",
        title="Hiding Text in Large Language Models: Introducing Unconditional Token Forcing Confusion",
        arxiv="2406.02481",
        year=2024,
        summary="Extracts text hidden in a fine-tuned model by forcing every first token.",
        claim=(
            "Forcing every first token puts the hidden text on top (0.994, Llama-2-7B); confusion training "
            "hides it, trigger intact."
        ),
    ),
    Method(
        name="needle-threading",
        job="audit",
        entry="mintage.audit.needle_threading:NeedleThreading",
        study="mintage.studies.needle_threading:NeedleThreadingStudy",
        title="Needle Threading: Can LLMs Follow Threads through Near-Million-Scale Haystacks?",
        arxiv="2411.05000",
        year=2024,
        summary="Five thread-following tasks and the context length up to which a model still solves them.",
        claim=(
            "Many models follow several threads at once without loss; effective context is often far shorter "
            "than advertised."
        ),
    ),
)

BENCH = "mintage.bench.audit.claims:AuditBench"

_DIGITS = ["format_numbers", "group_digits", "number_split", "number_tokenizer", "tokenizer_cut"]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    METHODS,
    Audit="mintage.audit.contract:Audit",
    Report="mintage.audit.contract:Report",
    **{name: f"mintage.audit.core.digits:{name}" for name in _DIGITS},
    to_r2l="mintage.audit.core.r2l:to_r2l",
    save_tokenizer="mintage.audit.core.r2l:save_tokenizer",
)
