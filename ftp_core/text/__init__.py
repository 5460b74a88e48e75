"""Examples and prompts, from JSON Lines to batches of token ids."""
