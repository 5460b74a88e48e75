"""Sources of examples: files, data sets, tasks of lm-evaluation-harness, and the model itself."""
