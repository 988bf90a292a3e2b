"""Studies: what ``arms.yaml`` says, the runs that it means, and their result files."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from xsalt.checkpoint import read_json
from xsalt.config import unhashed_keys
from xsalt.errors import UserError, did_you_mean

HERE = Path(__file__).resolve().parent
ARMS, RESULTS = HERE / "arms.yaml", HERE / "results"
RESULT_KEYS = {"seed", "words", "more", "languages", "average", "average_without_source", "source_languages"}
_KEYS = {"about", "words", "seeds", "arms", "baseline"}


@dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
        words: for ``xsalt-train``, without the seed; they may hold ``{data}`` and ``{work}``.
        more: the last of them, which all arms have from the command line of the study.
    """

    study: str
    arm: str
    seed: int
    words: tuple[str, ...]
    more: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.study}/{self.arm}-s{self.seed}"

    def result(self, results: Path) -> Path:
        return results / self.study / f"{self.arm}-s{self.seed}.json"

    def command_line(self, data: Path, work: Path) -> list[str]:
        """The words for ``xsalt-train``. The run folder is left out: it is under ``work`` whatever they say."""
        filled = [word.replace("{data}", str(data)).replace("{work}", str(work)) for word in self.words]
        return [*filled, f"seed={self.seed}"]


@dataclass(frozen=True)
class Study:
    """A study: arms that differ in their words alone, and the seeds of each."""

    name: str
    about: str
    baseline: str
    seeds: tuple[int, ...]
    arms: Mapping[str, tuple[str, ...]]

    def against(self, arm: str) -> Study:
        """The study with another baseline. Raises ``UserError`` if it has no such arm."""
        self._check(arm)
        return replace(self, baseline=arm)

    def _check(self, arm: str) -> None:
        if arm not in self.arms:
            raise UserError(
                f"study {self.name} has no arm {arm!r}: {did_you_mean(arm, self.arms)}it has {', '.join(self.arms)}"
            )

    def runs(self, arms: Sequence[str] = (), seeds: Sequence[int] = (), more: Sequence[str] = ()) -> list[Run]:
        """Runs of these arms and seeds (none given: all), seed by seed, so that a stopped study has whole pairs.

        Args:
            more: words after those of the arm; a key set again has its last value.

        Raises:
            UserError: for an arm that the study hasn't.
        """
        for arm in arms:
            self._check(arm)
        chosen = [arm for arm in self.arms if arm in (arms or self.arms)]
        return [
            Run(self.name, arm, seed, (*self.arms[arm], *more), tuple(more))
            for seed in seeds or self.seeds
            for arm in chosen
        ]


def read_studies(path: Path = ARMS) -> dict[str, Study]:
    """Studies by name. Raises ``UserError`` for what the file has wrong, naming the study and the key."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("studies"), dict):
        raise UserError(f"{path}: needs a mapping 'studies' of names to studies")
    common = _words(content.get("words", ""), f"{path}: words")
    return {
        str(name): _study(str(name), study, common, f"{path}: {name}") for name, study in content["studies"].items()
    }


def _study(name: str, content: Any, common: Sequence[str], where: str) -> Study:
    if not isinstance(content, dict) or not isinstance(content.get("arms"), dict) or not content["arms"]:
        raise UserError(f"{where}: needs a mapping 'arms' of names to words")
    for key in content.keys() - _KEYS:
        raise UserError(
            f"{where}: unknown key {key!r}: {did_you_mean(str(key), _KEYS)}known: {', '.join(sorted(_KEYS))}"
        )
    seeds = content.get("seeds")
    if not isinstance(seeds, list) or not seeds or not all(isinstance(s, int) and s >= 0 for s in seeds):
        raise UserError(f"{where}: seeds: a list of whole numbers is needed, not {seeds!r}")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{where}: seeds: one is there twice in {seeds}")
    shared = [*common, *_words(content.get("words", ""), f"{where}: words")]
    arms = {str(arm): (*shared, *_words(words, f"{where}: {arm}")) for arm, words in content["arms"].items()}
    for arm in arms:
        if not arm.replace("-", "").replace("_", "").replace("+", "").replace(".", "").isalnum():
            raise UserError(f"{where}: arm {arm!r} names files: use letters, digits and - _ + .")
    baseline = str(content.get("baseline", next(iter(arms))))
    if baseline not in arms:
        raise UserError(f"{where}: baseline {baseline!r} is no arm: it has {', '.join(arms)}")
    return Study(name, str(content.get("about", "")), baseline, tuple(seeds), arms)


def _words(content: Any, where: str) -> tuple[str, ...]:
    """Words from text as on a command line, or from a list of words."""
    if content is None:
        return ()
    if isinstance(content, str):
        try:
            return tuple(shlex.split(content))
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
    if isinstance(content, list) and all(isinstance(word, str) for word in content):
        return tuple(content)
    raise UserError(f"{where}: words of a command line are needed, not {content!r}")


def find_study(name: str, path: Path = ARMS) -> Study:
    studies = read_studies(path)
    if name not in studies:
        raise UserError(f"{path}: no study {name!r}: {did_you_mean(name, studies)}it has {', '.join(studies)}")
    return studies[name]


def experiment(words: Iterable[str]) -> list[str]:
    """The words without the keys that change no result, as ``device`` or ``log_every``."""
    skip = unhashed_keys()
    return [word for word in words if word.partition("=")[0] not in skip]


def read_result(run: Run, results: Path) -> dict[str, Any] | None:
    """The result of a run, None if there is none yet.

    Raises:
        UserError: if the file is damaged, or was made with other words than the run now has.
    """
    path = run.result(results)
    if not path.exists():
        return None
    result = read_file(path)
    old, new = experiment(result["words"]), experiment(run.words)
    if old != new:
        changed = [word for word in (*old, *new) if (word in old) != (word in new)] or ["their order"]
        raise UserError(
            f"{path}: made with other words than arm {run.arm} has now ({' '.join(changed)}): "
            "give the changed arm another name, or delete its results"
        )
    return result


def read_file(path: Path) -> dict[str, Any]:
    """A result file. Raises ``UserError`` if it is damaged or lacks a key."""
    result = read_json(path)
    missing = RESULT_KEYS - result.keys()
    if missing:
        raise UserError(f"{path}: lacks {', '.join(sorted(missing))}: delete it, and run.py makes the run again")
    return result


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Writes a result whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)
