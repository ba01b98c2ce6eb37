"""The claim checks of the job, one module per method (hyphens as underscores), each with ``run``, which gives rows."""
