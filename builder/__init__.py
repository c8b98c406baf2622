"""Robust Filter Lens: every 3x3 filter of robust and standard CNNs, as a dataset."""

__version__ = "0.1.0"
