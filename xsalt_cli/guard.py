"""How every script ends: 0 done, 2 a user's error in one line, 130 or 143 stopped, 1 a bug with its traceback."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType

from xsalt.errors import UserError


class Terminated(BaseException):
    """SIGTERM came, at a place that doesn't wait for it: like ``KeyboardInterrupt``."""


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    raise Terminated


def guard(prog: str, main: Callable[[], int | None]) -> int:
    """Runs ``main`` and gives the exit code. The last line on stderr of a user's error is ``PROG: error: MESSAGE``."""
    try:
        before = signal.signal(signal.SIGTERM, _terminate)
    except ValueError:  # not in the main thread
        before = None
    try:
        code = main() or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        return _say(prog, f"error: {error}", 2)
    except KeyboardInterrupt:
        return _say(prog, "interrupted", 130)
    except Terminated:
        return _say(prog, "terminated", 143)
    except BrokenPipeError:
        # The reader of a pipe went away, as `head` does. Python flushes again at exit, hence the empty device.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception:
        sys.stdout.flush()
        traceback.print_exc()
        return 1
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _say(prog: str, text: str, code: int) -> int:
    sys.stdout.flush()
    print(f"{prog}: {' '.join(text.split())}", file=sys.stderr, flush=True)
    return code
