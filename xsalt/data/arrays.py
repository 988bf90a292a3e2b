"""Arrays in ``.npy`` files, memory-mapped, of the type that is expected and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xsalt.errors import UserError
from xsalt.files import open_file


def read_array(path: Path, dtype: npt.DTypeLike, dimensions: int) -> npt.NDArray[Any]:
    """The array of a file. Objects, which numpy would unpickle, are refused like every other type than ``dtype``.

    Raises:
        UserError: if the file is missing, damaged, cut short or too long, or holds another kind of array.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # the header is read by Python's own parser, which has errors of many kinds
        raise UserError(f"{path}: not an array in numpy's format, or cut short ({type(error).__name__})") from error
    if not isinstance(array, np.memmap) or array.dtype != np.dtype(dtype) or array.ndim != dimensions:
        raise UserError(f"{path}: not an array of {dimensions} dimensions and type {np.dtype(dtype)}")
    if array.offset + array.nbytes != size or not (array.flags.c_contiguous or 0 in array.shape):
        raise UserError(f"{path}: {size} bytes, {array.offset + array.nbytes} expected, or in another order")
    return array
