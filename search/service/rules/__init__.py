"""What requests may ask for, and what errors they get."""
