"""Benchmarks: asv suites (``suites/``) and side-by-side runs against other loaders (``versus/``)."""
