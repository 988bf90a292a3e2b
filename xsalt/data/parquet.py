"""Rows of parquet files, with bounds on what a small file may unfold to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xsalt.errors import UserError
from xsalt.files import open_file, some

UNFOLDS = 100
"""Times its size on the disk that a file's text may have: parquet compresses plain text three to thirty times."""
_ALLOWED = 1 << 25
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
            metadata = pyarrow.parquet.read_metadata(file)
            there = metadata.schema.to_arrow_schema().names
            names = [name for name in there if name in wanted]
            if len(set(names)) < len(names):
                raise UserError(f"{path}: the column {max(names, key=names.count)} stands twice")
            if _unfolded(metadata) > most:
                raise too_much
            leaves = {metadata.schema.column(i).path for i in range(len(metadata.schema))}
            table = pyarrow.parquet.ParquetFile(
                file, metadata=metadata, read_dictionary=sorted(leaves & set(names)), page_checksum_verification=True
            )
            seen = 0
            for batch in table.iter_batches(_ROWS, columns=names) if names else ():
                seen += sum(_length(column) for column in batch.columns)
                if seen > most:
                    raise too_much
                columns = [c.dictionary_decode() if hasattr(c, "dictionary") else c for c in batch.columns]
                yield from pyarrow.RecordBatch.from_arrays(columns, names).to_pylist()
        # Damaged metadata make pyarrow raise errors of many kinds.
        except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{path}: not a readable parquet file: {reason}") from error
        if not names:
            raise UserError(f"{path}: has none of the columns {', '.join(wanted)}; it has {some(there, 20)}")


def _length(column: Any) -> int:
    """Bytes of a column's values when each is written out; a dictionary holds equal ones once."""
    import pyarrow.compute  # type: ignore[import-untyped, unused-ignore]

    if not hasattr(column, "dictionary"):
        return int(column.nbytes)
    lengths = pyarrow.compute.binary_length(column.dictionary).cast("int64")
    return int(pyarrow.compute.sum(lengths.take(column.indices)).as_py() or 0)


def _unfolded(metadata: Any) -> int:
    """Bytes of the file when decompressed, by what it says of itself.

    Not by column: pyarrow ends the process at statistics of a column that are damaged.
    """
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    return sum(max(0, group.total_byte_size) for group in groups)
