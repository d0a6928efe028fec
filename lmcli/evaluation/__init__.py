"""From a split to scores, through the one engine."""
