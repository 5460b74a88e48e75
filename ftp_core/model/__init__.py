"""A pruned model as transformers has models: generate, save, load."""
