"""What the wings have in common, each with one owner."""
