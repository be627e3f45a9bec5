"""Training: the loop, and for each task its data, its loss and its scores."""

import os

# Before the first import of torch below, which reads it at its first tensor: large tensors in pages
# of 2 MB, where Linux gives them to whoever asks. benchmarks/training.py says what it is worth.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
