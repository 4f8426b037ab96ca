"""How memory and time grow with the number of rows."""
