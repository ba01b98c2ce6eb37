"""Benches of the segment job."""
