"""The cohort robustbench, made from the installed registry and RobustBench's facts."""
