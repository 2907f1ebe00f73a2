"""Losses: pure functions from the response tokens of B sequences to one number per sequence."""
