"""Scripts under ``torchrun``: the ranks join before the job, and of an error one rank speaks."""

from __future__ import annotations

import time
from collections.abc import Callable

from xsalt.config import Composed
from xsalt.errors import UserError
from xsalt_cli.guard import guard

LOST = "another rank was killed, or its machine is gone; the launcher's report names it: start the same command again"
STOPPING = 10.0
"""Seconds in which the launcher stops ranks that lost a peer, so that its report names the one that failed."""


def ranked(prog: str, job: Callable[[Composed], int | None]) -> Callable[[Composed], int]:
    """The job as one rank of the group that ``torchrun`` started; alone, the job as it is.

    The first rank to fail says why, before the others can notice. What then fails in them follows from it, and they
    say nothing.
    """

    def run(composed: Composed) -> int:
        from xsalt import distributed  # late: --help and --cfg must not wait for torch
        from xsalt.logging import mute
        from xsalt.training.run import pick_device

        if distributed.world_size() == 1:
            return job(composed) or 0
        follows = False

        def once() -> int:
            nonlocal follows
            try:
                return job(composed) or 0
            except Exception as error:
                lost = distributed.is_lost_peer(error)
                if not distributed.is_first_to_fail():
                    follows = True
                    return 2
                follows = lost
                if lost:
                    raise UserError(LOST) from error
                raise

        with distributed.joined(pick_device(composed.train.device)):
            if not distributed.is_first():
                mute()
            code = guard(prog, once)
            if follows:
                time.sleep(STOPPING)
            return code

    return run
