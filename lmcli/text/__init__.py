"""From files to documents and from text to token ids; no torch."""
