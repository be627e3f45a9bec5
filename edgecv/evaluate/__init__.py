"""Data sets and metrics of evaluation. NumPy and Pillow only."""
