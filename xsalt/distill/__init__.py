"""Self-augmentation: the pretrained model scores substitutions for every token of a corpus, once, before training."""

from xsalt.distill.table import build_table, ensure_table

__all__ = ["build_table", "ensure_table"]
