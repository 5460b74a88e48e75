"""The service: studies over HTTP, and the workers that run them."""
