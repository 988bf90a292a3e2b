"""Embedding mixup: the reference implementation that every faster one is compared with."""
