"""Who gets in: tokens, sessions, limits on attempts."""
