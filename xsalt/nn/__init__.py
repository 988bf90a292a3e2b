"""Layers of the encoder: no configuration files, no registry."""
