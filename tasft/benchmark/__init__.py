"""Prompts to ask a model."""
