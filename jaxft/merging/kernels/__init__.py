"""The formula of one leaf of each merge, on the array namespace of its inputs: NumPy or JAX, bit for bit the same."""
