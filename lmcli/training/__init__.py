"""One loop: pretraining, fine-tuning and resuming are three starts of it. Knows no text."""
