"""A drafter of one's own for mintage. Importing this loads nothing heavy: `ROW` says where everything is."""

from mintage.catalog import Method, Trains

ROW = Method(
    name="last-successor",
    job="draft",
    entry="my_tokens.drafter:LastSuccessor",
    study="my_tokens.study:LastSuccessorStudy",
    trainings=(
        Trains("successors", "my_tokens.training:SuccessorTraining", "Which token follows which, for last-successor."),
    ),
    title="Last successor",
    summary="Drafts what followed each token the last time it occurred.",
    role="baseline",
)
