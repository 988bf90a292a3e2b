"""Plain text, one passage a line, for masked language modelling."""

from __future__ import annotations

from xsalt.tasks.base import DataTask


class MLM(DataTask):
    """Plain text, one passage a line, for masked language modelling: ``LL.txt`` (train) or ``{train,dev}-LL.txt``."""
