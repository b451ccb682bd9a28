"""Training: the loop, its step, and what a run folder remembers."""
