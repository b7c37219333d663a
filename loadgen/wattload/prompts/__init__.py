"""What prompts are made of: reproducible random streams and tokenizers."""
