"""Random numbers that are pure functions of their key, never of process state.

Philox-4x32-10 (Salmon, Moraes, Dror, Shaw: *Parallel random numbers: as easy as 1, 2, 3*, SC 2011), vectorised: a draw
depends on (seed, epoch, purpose) as the key and (example uid, view, index) as the counter, so a run that is
resumed mid-epoch, split over other ranks or batched otherwise draws the same numbers.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

_MULTIPLIER = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)


def philox(counter: tuple[npt.ArrayLike, ...], key: tuple[int, int], rounds: int = 10) -> list[npt.NDArray[np.uint64]]:
    """Four arrays of 32-bit words (held in uint64) for counters c0..c3 (below 2**32, broadcast) and a 64-bit key."""
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(c, dtype=np.uint64) & _LOW for c in counter))
    k0, k1 = key[0] & 0xFFFFFFFF, key[1] & 0xFFFFFFFF
    for _ in range(rounds):
        p0, p1 = c0 * _MULTIPLIER[0], c2 * _MULTIPLIER[1]
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def uniform(
    seed: int, epoch: int, purpose: str, uid: npt.ArrayLike, view: npt.ArrayLike = 0, index: npt.ArrayLike = 0
) -> npt.NDArray[np.float32]:
    """Numbers in [0, 1) of float32 (24 bits), of the shape that uid, view and index broadcast to.

    Args:
        purpose: what the number is for ("codeswitch/token", "mixup/r" ...): two purposes never share a stream.
        uid: example numbers, below 2**64. view: below 2**16. index: token position, dimension ..., below 2**32.
    """
    uid_ = np.asarray(uid, dtype=np.uint64)
    salt = zlib.crc32(purpose.encode())
    key = ((seed ^ salt) & 0xFFFFFFFF, ((seed >> 32) ^ (epoch * 0x85EBCA6B) ^ (salt * 0xC2B2AE35)) & 0xFFFFFFFF)
    words = philox((index, uid_ & _LOW, uid_ >> np.uint64(32), np.asarray(view, dtype=np.uint64)), key)
    draws: npt.NDArray[np.float32] = (words[0] >> np.uint64(8)).astype(np.float32) * np.float32(2**-24)
    return draws


def permutation(seed: int, epoch: int, purpose: str, n: int) -> npt.NDArray[np.int64]:
    """A permutation of 0..n-1 that depends on its key alone."""
    draws = philox((np.arange(n), 0, 0, 0), ((seed ^ zlib.crc32(purpose.encode())) & 0xFFFFFFFF, (seed >> 32) ^ epoch))
    return np.lexsort((draws[1], draws[0])).astype(np.int64)
