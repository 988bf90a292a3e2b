"""xsalt: zero-shot cross-lingual transfer with self-augmentation (SALT)."""

__version__ = "0.1.0"
