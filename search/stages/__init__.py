"""The stages of a pipeline, each of which continues where the study stands."""
