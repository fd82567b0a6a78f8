"""Ways to solve a batch of symmetric eigenproblems; `kernels.dispatch` holds the table that chooses."""
