"""Benches of the draft job."""
