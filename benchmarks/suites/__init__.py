"""Suites for asv. ``ANNBATCH_BENCH_QUICK=1`` shrinks every size, so that all of them run once in well under two minutes."""
