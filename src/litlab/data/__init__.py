"""From files to batches: readers, splits, labels, token cache, batches."""
