"""Benches of the keep job."""
