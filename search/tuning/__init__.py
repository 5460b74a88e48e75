"""Hyperparameters of a router's training, tuned with Ray Tune."""
