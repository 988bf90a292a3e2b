"""Makes the table of a study from its results: every arm against the baseline with the same seeds, then by language.

python examples/salt_ablation/table.py xnli --out docs/ablation-xnli.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies import ARMS, RESULTS, Study, experiment, find_study, read_file

from xsalt.errors import UserError
from xsalt.evaluation.significance import WILCOXON_FROM, Comparison, Spread, compare, spread
from xsalt_cli.guard import guard

Result = dict[str, Any]
ByArm = dict[str, dict[int, Result]]
SEEN = ("fr", "de", "ru", "zh", "sw")
"""Target languages that the settings were searched on; a gain in another one owes nothing to the search."""


def read_results(study: Study, results: Path) -> ByArm:
    """Arm -> seed -> result, in the order of the study; arms without results are left out.

    Raises:
        UserError: if there are none, one is damaged, runs of an arm differ in words or substitution table, or runs in
            what ``--set`` gave to all.
    """
    found: ByArm = {}
    more: tuple[Path, list[str]] | None = None
    for arm in study.arms:
        for path in sorted((results / study.name).glob(f"{arm}-s*.json")):
            if not path.stem.removeprefix(f"{arm}-s").isdecimal():
                continue
            result = read_file(path)
            of_arm = found.setdefault(arm, {})
            first = next(iter(of_arm.values()), result)
            if experiment(first["words"]) != experiment(result["words"]):
                raise UserError(f"{path}: made with other words than seed {first['seed']}: delete what is out of date")
            if len({run["table"] for run in (*of_arm.values(), result) if run.get("table")}) > 1:
                raise UserError(
                    f"{path}: made with another substitution table than the seeds before it (another encoder, "
                    "vocabulary, text or version): delete what is out of date"
                )
            more = more or (path, experiment(result["more"]))
            if experiment(result["more"]) != more[1]:
                raise UserError(f"{path}: made with another --set than {more[0]}: delete what is out of date")
            of_arm[int(result["seed"])] = result
    if study.baseline not in found:
        raise UserError(f"{results / study.name}: no result of {study.baseline}: run.py {study.name} makes them")
    return found


def of_source(result: Result) -> float:
    """Mean accuracy of the source languages."""
    scores = [result["languages"][language]["accuracy"] for language in result["source_languages"]]
    return float(sum(scores) / len(scores))


def scores(runs: Mapping[int, Result], measure: Callable[[Result], float]) -> dict[int, float]:
    """Seed -> a measure in per cent."""
    return {seed: 100 * measure(result) for seed, result in runs.items()}


@dataclass(frozen=True)
class Gain:
    """Mean difference over the seeds that an arm shares with the baseline, and its tests from two of them on."""

    mean: float | None = None
    tests: Comparison | None = None

    @property
    def text(self) -> str:
        return "–" if self.mean is None else f"{self.mean:+.2f}"

    @property
    def p(self) -> str:
        return p_shown(self.tests.p if self.tests else None)


def against(arm: Mapping[int, Result], baseline: Mapping[int, Result], measure: Callable[[Result], float]) -> Gain:
    """What an arm gains over the baseline; nothing where they share no seed."""
    ours, theirs = scores(arm, measure), scores(baseline, measure)
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return Gain()
    mean = spread([ours[seed] - theirs[seed] for seed in shared]).mean
    tested = len(shared) > 1
    return Gain(mean, compare({s: ours[s] for s in shared}, {s: theirs[s] for s in shared}) if tested else None)


def shown(found: Spread) -> str:
    return f"{found.mean:.2f}" + (f" ± {found.sd:.2f}" if found.sd is not None else "")


def p_shown(p: float | None) -> str:
    return "–" if p is None else "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def rows_of(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table, everything but its first column to the right."""
    line = "| " + " | ".join(["---", *["--:"] * (len(header) - 1)]) + " |"
    return ["| " + " | ".join(header) + " |", line, *("| " + " | ".join(row) + " |" for row in rows)]


def summary(study: Study, found: ByArm, languages: int) -> list[str]:
    """Arms against the baseline."""
    baseline = found[study.baseline]
    header = ["arm", f"average of {languages}", "gain", "95 % interval", "t-test p", "Wilcoxon p", "without source"]
    header += ["gain", "t-test p", "source", "gain", "t-test p", "switched", "seeds"]
    rows = []
    for arm, runs in found.items():
        measures = [lambda r: float(r["average"]), lambda r: float(r["average_without_source"]), of_source]
        mean, others, source = (shown(spread(list(scores(runs, measure).values()))) for measure in measures)
        gains = [Gain() if arm == study.baseline else against(runs, baseline, measure) for measure in measures]
        rates = [r["switch_rate"] for r in runs.values() if r.get("switch_rate") is not None]
        tests = gains[0].tests
        interval = f"{tests.low:+.2f} to {tests.high:+.2f}" if tests else "–"
        row = [arm, mean, gains[0].text, interval, gains[0].p, p_shown(tests.wilcoxon_p if tests else None)]
        for score, gain in ((others, gains[1]), (source, gains[2])):
            row += [score, gain.text, gain.p]
        rate = f"{100 * sum(rates) / len(rates):.0f} %" if rates else "–"
        rows.append([*row, rate, _seeds(runs, baseline)])
    return rows_of(header, rows)


def _seeds(runs: Mapping[int, Result], baseline: Mapping[int, Result]) -> str:
    """Number of runs, and of pairs where some have no partner."""
    pairs = len(runs.keys() & baseline.keys())
    return str(len(runs)) if pairs == len(runs) else f"{len(runs)} ({pairs} pairs)"


def by_language(study: Study, found: ByArm, languages: Sequence[str]) -> list[str]:
    """Mean accuracy of the baseline, and the gain of each arm with the p of its t-test in brackets."""
    baseline = found[study.baseline]
    source = next(iter(baseline.values()))["source_languages"]
    others = [arm for arm in found if arm != study.baseline]

    def row(name: str, kind: str, group: Sequence[str]) -> list[str]:
        def mean(result: Result) -> float:
            return float(sum(result["languages"][language]["accuracy"] for language in group) / len(group))

        gains = [against(found[arm], baseline, mean) for arm in others]
        own = shown(spread(list(scores(baseline, mean).values())))
        return [name, kind, own, *(f"{gain.text} ({gain.p})" for gain in gains)]

    def kind(language: str) -> str:
        return "source" if language in source else "seen" if language in SEEN else "unseen"

    rows = [row(language, kind(language), [language]) for language in languages]
    for of_kind in ("seen", "unseen"):
        group = [language for language in languages if kind(language) == of_kind]
        rows += [row(f"mean of {len(group)}", of_kind, group)] if group else []
    return rows_of(["language", "in the search", study.baseline, *others], rows)


def table(study: Study, found: ByArm) -> str:
    """The study's page in Markdown. Raises ``UserError`` if runs were evaluated on different rows."""
    runs = [result for of_arm in found.values() for result in of_arm.values()]
    first = {language: row["n"] for language, row in runs[0]["languages"].items()}
    for result in runs:
        if {language: row["n"] for language, row in result["languages"].items()} != first:
            raise UserError(
                f"{study.name}: {result['arm']}, seed {result['seed']} was evaluated on other rows or languages"
            )
    source = runs[0]["source_languages"]
    languages = [*source, *sorted(set(first) - set(source))]
    devices = sorted({str(result.get("device")) for result in runs})
    lines = [f"# Study {study.name}", "", f"{study.about}.", ""]
    explained = (
        "Accuracy in per cent, mean ± standard deviation over seeds; gains over `{}` in pairs of runs with the same "
        "seed, two-sided p of the paired t-test; Wilcoxon's test from {} pairs on. Rows a language: {}. Device: {}."
    )
    lines += [
        explained.format(study.baseline, WILCOXON_FROM, _rows(first), ", ".join(devices)),
        "",
        *summary(study, found, len(languages)),
        "",
        "By language: the baseline, then gains with the p of the t-test, not corrected for the number of languages.",
        "",
        *by_language(study, found, languages),
        "",
        "Command lines, but for seed and run folder:",
        "",
        "```",
        *(f"{arm}: {' '.join(next(iter(of_arm.values()))['words'])}" for arm, of_arm in found.items()),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _rows(n: Mapping[str, int]) -> str:
    low, high = min(n.values()), max(n.values())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a study of arms.yaml")
    parser.add_argument("--baseline", help="the arm that gains are against; default: the study's, most often none")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: results beside this script")
    parser.add_argument("--studies", type=Path, default=ARMS, help="default: arms.yaml beside this script")
    parser.add_argument("--out", type=Path, help="file for the table; default: standard output")
    options = parser.parse_args(argv)

    def work() -> None:
        study = find_study(options.study, options.studies)
        if options.baseline is not None:
            study = study.against(options.baseline)
        text = table(study, read_results(study, options.results))
        if options.out is None:
            print(text, end="")
        else:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(text, encoding="utf-8")

    return guard("table.py", work)


if __name__ == "__main__":
    sys.exit(main())
