"""Text to ids, and which ids belong to which language."""
