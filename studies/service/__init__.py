"""Records of the service beside studies: queue, runners, tokens."""
