"""Numbers of one layer, and histograms over the stored filters."""
