"""Benchmarks: numbers to quote as ratios of one run, since machines are noisy. Never a test."""
