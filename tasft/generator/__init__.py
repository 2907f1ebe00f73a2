"""Generators: models that write seemingly toxic prompts, and models that answer them."""
