"""What models are scored by, and what needs no attention."""
