"""Conclusions from records: verdict, retention, speed-ups, reliability of the clock."""
