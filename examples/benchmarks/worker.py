"""A contestant in a process of its own: it waits for commands, one JSON object a line, and answers each with one.

Processes keep memory and threads of the contestants apart; a contestant that waits uses no processor.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def serve(commands: dict[str, Callable[..., Any]]) -> None:
    """Answers commands from stdin until it closes. What the contestant prints goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        answer = commands[request.pop("do")](**request)
        print(json.dumps(answer), file=out, flush=True)


def peak_memory_gb() -> float:
    """Most resident memory of this process so far, in 10**9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Worker:
    """The other end: ``worker(do="name", **arguments)`` returns the answer."""

    def __init__(self, script: str, arguments: dict[str, Any], threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / script), json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __call__(self, **request: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(
                f"benchmark: a contestant ended with {self.process.wait()} at {request}; see its error above"
            )
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
