"""One Transformer for both families; knows token ids and tensors, not text or files."""
