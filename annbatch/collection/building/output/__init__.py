"""The arrays of an output dataset, filled from the first row to the last."""
