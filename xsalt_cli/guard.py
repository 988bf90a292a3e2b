"""How every script ends: 0 done, 2 a user's error in one line, 130 or 143 stopped, 1 a bug with its traceback."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType

from xsalt.errors import UserError


class Terminated(BaseException):
    """SIGTERM came, at a place that doesn't wait for it: like ``KeyboardInterrupt``."""


STOPPED: dict[type[BaseException], tuple[str, int]] = {
    KeyboardInterrupt: ("interrupted", 130),
    Terminated: ("terminated", 143),
}
"""What is said of a signal, and the exit code."""


def _stopped(error: BaseException) -> tuple[str, int] | None:
    """What to say if the error came up while a signal was being handled."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause) in STOPPED:
            return STOPPED[type(cause)]
        cause = cause.__cause__ or cause.__context__
    return None


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    raise Terminated


def guard(prog: str, main: Callable[[], int | None], *, last: bool = False) -> int:
    """Runs ``main`` and gives the exit code. The last line on stderr of a user's error is ``PROG: error: MESSAGE``.

    Of several ranks that fail, the first alone says why; only rank 0 prints.

    Args:
        last: nothing comes after it, so the process of a rank ends here: threads of gloo may live on, and one that
            wants Python's lock while Python is taken down ends the process by SIGABRT.
    """
    code = _guard(prog, main)
    if last and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _guard(prog: str, main: Callable[[], int | None]) -> int:
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    try:
        before = signal.signal(signal.SIGTERM, _terminate)
    except ValueError:  # not in the main thread
        before = None
    try:
        code = (main() or 0) if alone else _as_a_rank(main)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _say(prog, f"error: {error}", 2)
    except (KeyboardInterrupt, Terminated) as error:
        return _say(prog, *STOPPED[type(error)])
    except BrokenPipeError:
        # The reader of a pipe went away, as `head` does. Python flushes again at exit, hence the empty device.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        sys.stdout.flush()
        if before is not None:  # torchrun ends the ranks that are left, while this one still says why
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if (stopped := _stopped(error)) is not None:  # a library failed to clean up after a signal
            return _say(prog, *stopped)
        if not alone and _is_echo(error):
            return 1
        if not alone and _lost_contact(error):
            return _say(prog, f"error: another rank has ended without a word, or the network has ({error})", 1)
        if alone or _fails_first():
            traceback.print_exc()
        return 1
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _as_a_rank(main: Callable[[], int | None]) -> int:
    """Runs ``main`` within the group of ranks that ``torchrun`` started."""
    from xsalt import distributed  # late: it imports torch

    with contextlib.ExitStack() as stack:
        if not distributed.is_first():
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        stack.enter_context(distributed.joined())
        return main() or 0


def _is_echo(error: Exception) -> bool:
    """Whether the error only is that another rank has failed, which has said why."""
    from xsalt import distributed

    return distributed.is_lost_contact(error) and distributed.another_failed()


def _lost_contact(error: Exception) -> bool:
    from xsalt import distributed

    return distributed.is_lost_contact(error)


def _fails_first() -> bool:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    from xsalt import distributed

    return distributed.fails_first()


def _say(prog: str, text: str, code: int) -> int:
    sys.stdout.flush()
    if _fails_first():
        print(f"{prog}: {' '.join(text.split())}", file=sys.stderr, flush=True)
    return code
