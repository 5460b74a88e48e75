"""What the service keeps beside studies: queue, runners, tokens."""
