"""The paper's published values, and the release made of them alone."""
