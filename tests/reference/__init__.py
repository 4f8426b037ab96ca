"""Plain NumPy twins of the kernels: slow, obvious, and never optimised."""
