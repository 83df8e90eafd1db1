"""From files to batches: readers, splits, token cache, batches."""
