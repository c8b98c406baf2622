"""A release for training loops of torch: sharded, shuffled, resumable."""
