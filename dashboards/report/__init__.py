"""The report: a page that opens offline, Markdown, CSV and JSON."""
