"""Benches of the audit job."""
