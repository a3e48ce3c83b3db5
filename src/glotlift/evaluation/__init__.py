"""Constrained decoding in many languages, and what its numbers mean."""
