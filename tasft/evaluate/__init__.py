"""Generating answers and judging them."""
