"""Settings of a run: one class, from which command line, files, HTTP and form are derived."""
