"""Rows of parquet files, with bounds on what a small file may unfold to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xsalt.errors import UserError
from xsalt.files import open_file

UNFOLDS = 200
"""Times its size on the disk that a file's text may have: parquet compresses plain text three to thirty times."""
_ALLOWED = 1 << 26
"""Bytes of text that any file may have, however small it is."""
_ROWS = 1024
"""Rows decoded at a time."""


def read_mappings(path: Path, wanted: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows as ``name -> value`` of those columns among ``wanted`` that there are.

    Raises:
        UserError: if pyarrow is missing, or the file is damaged, names a column twice, or unfolds to far more than its
            own size.
    """
    try:
        import pyarrow  # type: ignore[import-untyped, unused-ignore]
        import pyarrow.parquet  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise UserError(f"{path}: parquet files need pyarrow: pip install 'xsalt[parquet]'") from error
    with open_file(path) as file:
        most = _ALLOWED + UNFOLDS * os.fstat(file.fileno()).st_size
        too_much = UserError(f"{path}: unfolds to more than {most:,} bytes of text, {UNFOLDS} times its size: refused")
        try:
            table = pyarrow.parquet.ParquetFile(file, page_checksum_verification=True)
            names = [name for name in table.schema_arrow.names if name in wanted]
            if len(set(names)) < len(names):
                raise UserError(f"{path}: the column {max(names, key=names.count)} stands twice")
            if names and _unfolded(table.metadata, names) > most:
                raise too_much
            seen = 0
            for batch in table.iter_batches(_ROWS, columns=names) if names else ():
                seen += batch.get_total_buffer_size()
                if seen > most:
                    raise too_much
                yield from batch.to_pylist()
        # Damaged metadata make pyarrow raise errors of many kinds.
        except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{path}: not a readable parquet file: {reason}") from error
        if not names:
            there = ", ".join(table.schema_arrow.names[:20])
            raise UserError(f"{path}: has none of the columns {', '.join(wanted)}; it has {there or 'none'}"[:900])


def _unfolded(metadata: Any, names: Sequence[str]) -> int:
    """Bytes of these columns when decompressed, by what the file says of itself."""
    total = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema in names:
                total += max(0, column.total_uncompressed_size)
    return total
