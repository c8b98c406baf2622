"""What a network runs: its convolutions, their depth and folding, their filters."""
