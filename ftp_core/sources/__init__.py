"""Where examples come from: files, data sets, and tasks of lm-evaluation-harness."""
