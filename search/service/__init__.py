"""The service: studies over HTTP, and the runners that work on them."""
