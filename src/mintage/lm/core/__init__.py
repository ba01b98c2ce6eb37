"""What the language models of this job share."""
