"""A network of the user's, measured: recognised, traced, its layers. Writes no release."""
