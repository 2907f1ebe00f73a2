"""Rows, examples, tokens and step batches."""
