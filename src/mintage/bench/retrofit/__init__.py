"""Benches of the retrofit job."""
