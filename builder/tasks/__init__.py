"""Fixed tasks for people who learn from weights: their examples, and what predictions score."""
