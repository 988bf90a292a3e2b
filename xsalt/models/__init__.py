"""Pretrained encoders: architectures, weights from folders and packages, conversion."""
