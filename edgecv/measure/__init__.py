"""Timing, memory, comparison and the records of them. NumPy only."""
