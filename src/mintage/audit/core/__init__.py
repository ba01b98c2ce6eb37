"""The plumbing of the audit job: what its methods stand on."""
