"""What records say: verdict, retention, speed-ups, and whether the clock can be trusted."""
