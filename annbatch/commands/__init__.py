"""What the `annbatch` command does besides building: demo, info, bench."""
