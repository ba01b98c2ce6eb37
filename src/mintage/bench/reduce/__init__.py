"""Benches of the reduce job."""
