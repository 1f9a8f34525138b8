"""Rankers that a library trained and saved: served as that library computes them, with its own modules."""
