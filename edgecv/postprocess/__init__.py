"""From raw output tensors to answers, in plain NumPy."""
