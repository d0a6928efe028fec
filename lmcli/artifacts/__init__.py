"""The artifact directory: names, hashes, the only writer, locks."""
