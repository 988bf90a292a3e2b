"""The English training frames of the quick-start set."""

from __future__ import annotations

from examples.quickstart_data import train_frames_flipped
from examples.quickstart_data.schema import Frame

FRAMES: tuple[Frame, ...] = (*train_frames_flipped.STRAIGHT, *train_frames_flipped.FRAMES)
