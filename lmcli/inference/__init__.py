"""Generation and scoring of token ids; knows no text."""
