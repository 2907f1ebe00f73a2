"""Base models, adapters and output heads."""
