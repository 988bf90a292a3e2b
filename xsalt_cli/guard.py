"""How every script ends: 0 done, 2 a user's error in one line, 130 interrupted, 1 a bug with its traceback."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable

from xsalt.errors import UserError


def guard(prog: str, main: Callable[[], int | None]) -> int:
    """Runs ``main`` and gives the exit code. The last line on stderr of a user's error is ``PROG: error: MESSAGE``."""
    try:
        code = main() or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        return _say(prog, f"error: {error}", 2)
    except KeyboardInterrupt:
        return _say(prog, "interrupted", 130)
    except BrokenPipeError:
        # The reader of a pipe went away, as `head` does. Python flushes again at exit, hence the empty device.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception:
        sys.stdout.flush()
        traceback.print_exc()
        return 1


def _say(prog: str, text: str, code: int) -> int:
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(1)  # torchrun starts all ranks with one command line: of a mistake in it the first one speaks
    sys.stdout.flush()
    print(f"{prog}: {' '.join(text.split())}", file=sys.stderr, flush=True)
    return code
