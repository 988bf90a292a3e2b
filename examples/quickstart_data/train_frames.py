"""The English training frames of the quick-start set."""

from __future__ import annotations

from examples.quickstart_data import train_frames_flipped, train_frames_near_a, train_frames_near_b, train_frames_near_c
from examples.quickstart_data.schema import Frame

FRAMES: tuple[Frame, ...] = (
    *train_frames_flipped.STRAIGHT,
    *train_frames_flipped.FRAMES,
    *train_frames_near_a.FRAMES,
    *train_frames_near_b.FRAMES,
    *train_frames_near_c.FRAMES,
)
