"""The composition root: directories in, a live Trainer or Engine out.

The only place that knows artifacts, text, data, model, training and inference.
"""
