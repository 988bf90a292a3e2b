"""Augmenters: what changes batches before the model sees them."""
