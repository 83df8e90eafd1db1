"""How examples become batches: batches, token cache, table readers."""
