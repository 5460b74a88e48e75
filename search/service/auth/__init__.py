"""Access to the service: tokens, sessions, limits on attempts."""
