"""Fine-tuning, and training of a base model from scratch."""
