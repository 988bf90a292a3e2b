"""``xsalt-convert``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from xsalt.errors import UserError
from xsalt_cli.guard import guard

PROG = "xsalt-convert"
ABOUT = """example: xsalt-convert runs/first exported

SRC is e5-small, a run, a checkpoint or a Hugging Face folder; what it is shows from what is in it. The new folder DST
is a Hugging Face folder (weights, config.json with label names, tokenizer) that transformers loads, or with --to xsalt
a checkpoint."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    parser = _Parser(
        prog=PROG, description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("src", metavar="SRC", help="e5-small, or a folder")
    parser.add_argument("dst", metavar="DST", help="a new folder")
    parser.add_argument("--to", choices=["hf", "xsalt"], default="hf", help="format of DST (default: hf)")

    def job() -> int:
        options = parser.parse_args(argv)
        from xsalt.models.convert import convert  # late: --help must not wait for torch

        convert(options.src, options.dst, options.to)
        print(f"{options.dst}: written")
        return 0

    return guard(PROG, job)
