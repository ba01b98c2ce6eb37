"""The plumbing of the draft job: what its methods stand on."""
