"""What an input holds, seen as row-aligned fields."""
