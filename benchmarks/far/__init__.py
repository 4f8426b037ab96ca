"""Stores that are far away: a server with a delay and faults of its own, and what is measured against it."""
