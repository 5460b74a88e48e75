"""Rules for requests, and the errors of those that break them."""
