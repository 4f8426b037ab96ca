"""Every format as a chunk table."""
