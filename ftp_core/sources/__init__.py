"""Where examples come from: files, data sets, tasks of lm-evaluation-harness, and the model itself."""
