"""What all tests share."""

from __future__ import annotations

import os

# Before anything imports triton: without a GPU its kernels run in its interpreter.
os.environ.setdefault("TRITON_INTERPRET", "1")
