"""Judges: what a response is, given its prompt."""
