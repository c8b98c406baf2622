"""One network's numbers beside those of robust and of standard models."""
