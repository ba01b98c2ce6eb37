"""The plumbing of the retrofit job: what its methods stand on."""
