"""From a line of a cohort to checked bytes, a network and its weights."""
