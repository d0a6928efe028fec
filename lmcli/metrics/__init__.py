"""Each metric is a Score: a value with the signature that says how it was made."""
