"""Training: standard counterparts of a cohort, and the mini zoo again."""
