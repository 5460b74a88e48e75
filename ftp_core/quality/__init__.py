"""KL, perplexity and accuracy against the dense model, with intervals."""
