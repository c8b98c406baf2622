"""A release on disk: its manifest, its tables, how they are written and read."""
