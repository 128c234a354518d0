"""What runs when, and where it is written: studies, search, scheduling, tracking and the command line."""
