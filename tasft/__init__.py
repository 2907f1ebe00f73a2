"""TA-SFT: fine-tune a language model on safe answers while pushing it away from its own harmful ones."""
