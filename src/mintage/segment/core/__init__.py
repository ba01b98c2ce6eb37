"""The plumbing of the segment job: what its methods stand on."""
