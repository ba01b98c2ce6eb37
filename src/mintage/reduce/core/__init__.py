"""The plumbing of the reduce job: what its methods stand on."""
