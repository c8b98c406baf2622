"""Which models: a cohort is a CSV, one line a model."""
