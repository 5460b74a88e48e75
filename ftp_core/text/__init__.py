"""Examples and prompts, from texts to batches of token ids."""
