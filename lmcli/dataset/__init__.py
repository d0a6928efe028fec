"""Memory-mapped token ids and the batches drawn from them; no torch."""
