"""The plumbing of the keep job: what its methods stand on."""
