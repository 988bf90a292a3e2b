"""``--multirun``: Hydra's own sweepers and launchers around the job."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xsalt.config import Composed
from xsalt.errors import UserError
from xsalt_cli.front import Request, Script, finish, job_run, one_line, prepare, quoted
from xsalt_cli.plugins import load_plugins


def sweep(script: Script, request: Request, job: Callable[[Composed], int | None]) -> int:
    """Runs the job for every combination of comma-separated values, by the launcher that Hydra is told to use."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    overrides = prepare(script, request)
    _launcher_is_there(request.hydra)
    folders = [Path(folder).resolve() for folder in request.flags.user_dir]

    def one(config: Any) -> None:
        # A launcher may have carried this to another process, which knows no plug-in yet.
        load_plugins(folders)
        mapping: Any = OmegaConf.to_container(config, resolve=True)
        number, task = HydraConfig.get().job.num, HydraConfig.get().overrides.task
        print(f"{script.prog}: job {number}: {' '.join(task)}", file=sys.stderr, flush=True)
        code = job(job_run(finish(script, request, mapping)))
        if code:
            raise SystemExit(code)

    parent = request.overrides.get("run", "runs")
    words = ["--multirun", *overrides, f"hydra.sweep.dir={quoted(parent)}", *request.hydra]
    saved, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [script.prog, *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets errors through to the script instead of printing them itself
    try:
        with one_line():
            hydra.main(version_base="1.3", config_path="pkg://xsalt.conf", config_name="train")(one)()
    finally:
        sys.argv = saved
        os.environ.pop("HYDRA_FULL_ERROR") if full is None else os.environ.update(HYDRA_FULL_ERROR=full)
    return 0


def _launcher_is_there(words: Sequence[str]) -> None:
    """Raises ``UserError`` with the command to type if the launcher asked for is submitit's and not installed."""
    asked = [word for word in words if word.startswith("hydra/launcher=submitit")]
    if asked and importlib.util.find_spec("submitit") is None:
        raise UserError(f"{asked[0]}: needs submitit: pip install 'xsalt[slurm]'")
