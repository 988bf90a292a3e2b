"""Measures xsalt against named peers in one run: ``python examples/benchmarks/benchmark.py training evaluation ...``.

Contestants take turns, each in a process of its own, for several rounds; medians count. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import kernels
import numpy as np
import torch
from models import bert_folder, e5_folder, e5_masked_folder, write_synthetic_pairs
from worker import Worker

from xsalt.training.throughput import matrix_product_flops

LOSS_STEPS = 100
Results = dict[str, Any]


def ceilings() -> dict[str, float]:
    """Matrix products in GFLOP/s and copies in GB/s (reads and writes), as of now."""
    matrix_product_flops.cache_clear()
    cpu = torch.device("cpu")
    source = torch.ones(64 * 2**20)
    target, times = torch.empty_like(source), []
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return {
        "fp32_gflops": matrix_product_flops(cpu, "fp32") / 1e9,
        "bf16_gflops": matrix_product_flops(cpu, "bf16") / 1e9,
        "copy_gb_per_s": 2 * source.nbytes / min(times) / 1e9,
    }


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def by_round(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """The ratio in each round, to see how far the machine's drift carries the ratio of the medians."""
    return [round(a / b, 3) for a, b in zip(ours, theirs, strict=True)]


def in_turn(workers: dict[str, Worker], updates: dict[str, int], rounds: int, warm_up: int) -> Results:
    """Trains the contestants in turn: medians of tokens/s and pairs/s, and all losses."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    machine = []
    for worker in workers.values():
        worker(do="train", updates=warm_up)
    for number in range(rounds):
        machine.append(ceilings())
        for name, worker in workers.items():
            answer = worker(do="train", updates=updates[name])
            found[name].append(answer)
            print(f"  round {number + 1} {name}: {answer['tokens'] / answer['seconds']:.0f} tokens/s", file=sys.stderr)
    results: Results = {"machine": medians(machine), "contestants": {}}
    for name, answers in found.items():
        facts = workers[name](do="facts")
        speeds = [{key: a[key] / a["seconds"] for key in ("tokens", "pairs")} for a in answers]
        middle = medians(speeds)
        results["contestants"][name] = {
            "tokens_per_s": middle["tokens"],
            "pairs_per_s": middle["pairs"],
            "rounds_tokens_per_s": [round(s["tokens"], 1) for s in speeds],
            "mean_loss": statistics.mean(loss for a in answers for loss in a["losses"]),
            **facts,
        }
    return results


def with_mfu(results: Results, precision: str) -> None:
    """xsalt counts what it computes: in the last layer, first tokens alone. The others compute all tokens."""
    ceiling = results["machine"][f"{precision}_gflops"] * 1e9
    rows = results["contestants"]
    for row in rows.values():
        row["mfu"] = row["tokens_per_s"] * row.get("flops_per_token", rows["xsalt"]["all_flops_per_token"]) / ceiling


def compare_losses(workers: dict[str, Worker], names: list[str], steps: int) -> Results:
    """Trains ``steps`` updates without dropout and asserts that the curves of these contestants agree.

    Products are rounded to bfloat16 at other places, so single losses differ by a percent; means must not.
    """
    curves = {}
    for name in names:
        workers[name](do="dropout", p=0.0)
        curves[name] = np.array(workers[name](do="train", updates=steps)["losses"])
        workers[name](do="dropout", p=0.1)
        print(f"  {name}: mean loss {curves[name].mean():.4f}", file=sys.stderr)
    first = curves[names[0]]
    gaps = {name: float(np.abs(curve - first).mean()) for name, curve in curves.items()}
    means = {name: float(curve.mean()) for name, curve in curves.items()}
    for name in names[1:]:
        assert gaps[name] < 0.02, f"the losses of {name} and {names[0]} differ by {gaps[name]:.4f} on average"
        assert abs(means[name] - means[names[0]]) < 0.01, f"mean losses: {means}"
    return {"steps": steps, "mean_loss": means, "mean_absolute_difference": gaps}


def training(options: argparse.Namespace, work: Path) -> Results:
    """Fine-tuning of e5-small on pairs: xsalt with and without augmentation, Trainer tuned and as it comes, a loop."""
    folder = e5_folder(work)
    more = {"xsalt codeswitch,mixup": ["--augmenter", "codeswitch,mixup"]}
    return contest(options, work, str(folder), options.train, more, options.updates, trainer_as_it_comes=True)


WITHOUT = {
    "active rows": {},
    "rows touched alone": {},
    "one-pass AdamW": {},
    "batches of similar length": {},
    "drawing ahead": {},
    "fused kernels": {"words": ["kernels=reference"]},
    "bfloat16": {"words": ["precision=fp32"]},
}


def ablation(options: argparse.Namespace, work: Path) -> Results:
    """Fine-tuning of e5-small with everything, against it with one thing left out: how much longer a token takes."""
    words = ["--task", "xnli", f"data.train=[{','.join(options.train)}]", f"pretrained={e5_folder(work)}"]
    words += ["optim.lr=2e-5", "dropout=0.1", *([f"data.root={options.data}"] if options.data else []), *options.keys]
    found: Results = {}
    for name, change in WITHOUT.items():  # in pairs: all at once would not fit into memory
        less = {"words": [*words, *change.get("words", [])], "without": name}
        workers = {
            "everything": Worker("ours.py", {"words": words}, options.threads),
            "without": Worker("ours.py", less, options.threads),
        }
        rows = in_turn(workers, dict.fromkeys(workers, max(2, options.updates // 2)), options.rounds, warm_up=3)
        both, alone = rows["contestants"]["everything"], rows["contestants"]["without"]
        found[name] = {
            "time_against_everything": both["tokens_per_s"] / alone["tokens_per_s"],
            "memory_against_everything": alone["peak_memory_gb"] / both["peak_memory_gb"],
            **rows,
        }
        print(f"  without {name}: {found[name]['time_against_everything']:.2f} x the time", file=sys.stderr)
        for worker in workers.values():
            worker.close()
    return found


VIEWS = ["--augmenter", "codeswitch", "augmenter.codeswitch.clean=true", "--criterion", "cross_entropy,consistency"]


def views(options: argparse.Namespace, work: Path) -> Results:
    """The time of an update with the clean view kept beside the switched one, against one view and two clean ones."""
    words = ["--task", "xnli", f"data.train=[{','.join(options.train)}]", f"pretrained={e5_folder(work)}"]
    words += ["optim.lr=2e-5", "dropout=0.1", *([f"data.root={options.data}"] if options.data else []), *options.keys]
    more = {"one view": [], "two clean views": [*VIEWS, "augmenter.codeswitch.ratio=0"], "clean and switched": VIEWS}
    workers = {name: Worker("ours.py", {"words": [*words, *extra]}, options.threads) for name, extra in more.items()}
    results = in_turn(workers, dict.fromkeys(workers, options.updates), options.rounds, warm_up=3)
    for worker in workers.values():
        worker.close()
    speeds = {name: row["rounds_tokens_per_s"] for name, row in results["contestants"].items()}
    ours = speeds.pop("clean and switched")
    results["time_against"] = {n: statistics.median(s) / statistics.median(ours) for n, s in speeds.items()}
    results["time_against_by_round"] = {name: by_round(rounds, ours) for name, rounds in speeds.items()}
    return results


def bert(options: argparse.Namespace, work: Path) -> Results:
    """A training step at the size of mBERT: random weights, 119,547 pieces, synthetic pairs of log-normal lengths."""
    folder = bert_folder(work, options.bert_layers, options.bert_width)
    data = write_synthetic_pairs(work / "synthetic.tsv", 4000, pieces=119_547)
    return contest(options, work, str(folder), [str(data)], {}, max(2, options.updates // 5), trainer_as_it_comes=False)


def contest(
    options: argparse.Namespace,
    work: Path,
    folder: str,
    train: list[str],
    more: dict[str, list[str]],
    updates: int,
    *,
    trainer_as_it_comes: bool,
) -> Results:
    lr = 2e-5
    words = ["--task", "xnli", f"data.train=[{','.join(train)}]", f"pretrained={folder}", "dropout=0.1"]
    words += [f"optim.lr={lr}", "batch.size=32", "optim.clip=1", *options.keys]
    if options.data:
        words += [f"data.root={options.data}"]
    needed = LOSS_STEPS + (options.rounds + 2) * updates * 2
    dtype = "bf16" if not options.fp32 else "fp32"
    words += [f"precision={dtype}"]
    theirs = {"folder": folder, "dtype": dtype, "lr": lr}
    workers = {"xsalt": Worker("ours.py", {"words": words}, options.threads)}
    print(f"  {workers['xsalt'](do='dump', file=str(work / 'work.npz'), updates=needed)}", file=sys.stderr)
    tuned = {"kind": "trainer", "grouped": True, "attention": "eager", **theirs}
    workers["Trainer tuned"] = Worker("theirs.py", tuned, options.threads)
    workers["loop by hand"] = Worker("theirs.py", {"kind": "loop", "attention": "eager", **theirs}, options.threads)
    if options.compile:
        compiled = {"kind": "loop", "attention": "sdpa", "compiled": True, **theirs}
        workers["loop by hand, compiled"] = Worker("theirs.py", compiled, options.threads)
    if trainer_as_it_comes:
        plain = {"kind": "trainer", "grouped": False, "attention": None, **theirs}
        workers["Trainer bf16"] = Worker("theirs.py", plain, options.threads)
    for name, worker in workers.items():
        if name != "xsalt":
            worker(do="load", file=str(work / "work.npz"))
    same = [name for name in workers if name != "Trainer bf16"]
    losses = compare_losses(workers, same, options.loss_steps)
    for name, extra in more.items():
        workers[name] = Worker("ours.py", {"words": [*words, *extra]}, options.threads)
        workers[name](do="skip", updates=options.loss_steps)
    slow = ("Trainer bf16", "loop by hand, compiled")
    many = {name: max(2, updates // 2) if name in slow else updates for name in workers}
    results = in_turn(workers, many, options.rounds, warm_up=3)
    with_mfu(results, dtype)
    results["losses_without_dropout"] = losses
    peers = [name for name in workers if not name.startswith("xsalt")]
    ours = results["contestants"]["xsalt"]
    rounds = {n: row["rounds_tokens_per_s"] for n, row in results["contestants"].items()}
    results["speed_against"] = {n: ours["tokens_per_s"] / results["contestants"][n]["tokens_per_s"] for n in peers}
    results["speed_against_by_round"] = {n: by_round(rounds["xsalt"], rounds[n]) for n in peers}
    results["memory_against"] = {n: ours["peak_memory_gb"] / results["contestants"][n]["peak_memory_gb"] for n in peers}
    results["time_against_no_augmentation"] = {
        n: ours["tokens_per_s"] / results["contestants"][n]["tokens_per_s"] for n in more
    }
    for worker in workers.values():
        worker.close()
    return results


def evaluation(options: argparse.Namespace, work: Path) -> Results:
    """Classifying the dev set in all languages against a loop sorted by length, both from tokens."""
    folder = e5_folder(work)
    data = [f"data.root={options.data}"] if options.data else []
    train = f"data.train=[{','.join(options.train)}]"
    dtype = "bf16" if not options.fp32 else "fp32"
    words = ["--task", "xnli", train, *data, f"pretrained={folder}", f"precision={dtype}"]
    ours = Worker("ours.py", {"words": words}, options.threads)
    facts = ours(do="read", split="dev", rows=options.eval_rows, file=str(work / "dev.npz"))
    theirs = {
        f"loop, {kind}": Worker(
            "theirs.py", {"kind": "loop", "attention": kind, "folder": str(folder), "dtype": dtype}, options.threads
        )
        for kind in ("eager", "sdpa")
    }
    times: dict[str, list[float]] = {name: [] for name in ("xsalt", *theirs)}
    for number in range(options.rounds + 1):  # the first one is to warm up
        answers = {"xsalt": ours(do="evaluate", file=str(work / "ours.npy"))["seconds"]}
        for name, worker in theirs.items():
            request = {"data": str(work / "dev.npz"), "file": str(work / "theirs.npy"), "batch": options.eval_batch}
            answers[name] = worker(do="evaluate", **request)["seconds"]
        for name, seconds in answers.items():
            if number:
                times[name].append(seconds)
                print(f"  round {number} {name}: {facts['tokens'] / seconds:.0f} tokens/s", file=sys.stderr)
    gap = float(np.abs(np.load(work / "ours.npy") - np.load(work / "theirs.npy")).mean())
    assert gap < 0.01, f"probabilities differ by {gap:.4f} on average"
    for worker in (ours, *theirs.values()):
        worker.close()
    middle = {name: statistics.median(seconds) for name, seconds in times.items()}
    return {
        **facts,
        "seconds": middle,
        "mean_difference_of_probabilities": gap,
        "speed_against": {name: middle[name] / middle["xsalt"] for name in theirs},
        "speed_against_by_round": {name: by_round(times[name], times["xsalt"]) for name in theirs},
    }


def augmentation(options: argparse.Namespace, work: Path) -> Results:
    """Substitutions in all languages from one pass, against a pass and a whole softmax a language; float32."""
    folder = str(e5_masked_folder(work))
    data = [f"data.root={options.data}"] if options.data else []
    words = ["--task", "xnli", f"data.train=[{','.join(options.train)}]", *data, f"pretrained={folder}", *options.keys]
    ours = Worker("ours.py", {"words": [*words, "precision=fp32"]}, options.threads)
    theirs = Worker("theirs.py", {"kind": "masked", "folder": folder}, options.threads)
    files = {"vocabularies": str(work / "vocabularies.npz"), "tokens": str(work / "few.npz")}
    ours(do="augment", rows=options.augment_rows // 4, few=options.augment_few, **files)
    speeds: dict[str, list[float]] = {"xsalt": [], "a pass a language": []}
    for number in range(options.rounds):
        answers = {"xsalt": ours(do="augment", rows=options.augment_rows, few=options.augment_few, **files)}
        languages = answers["xsalt"]["languages"]
        answers["a pass a language"] = theirs(do="substitute", batch=16, **files)
        for name, answer in answers.items():
            speeds[name].append(answer["tokens"] / answer["seconds"])
            print(f"  round {number + 1} {name}: {speeds[name][-1]:.1f} tokens/s in all languages", file=sys.stderr)
    memory = {"xsalt": ours(do="facts")["peak_memory_gb"], "a pass a language": theirs(do="facts")["peak_memory_gb"]}
    ours.close()
    theirs.close()
    middle = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        "languages": languages,
        "tokens_per_s": middle,
        "peak_memory_gb": memory,
        "speed_against": {"a pass a language": middle["xsalt"] / middle["a pass a language"]},
    }


def scaling(options: argparse.Namespace, work: Path) -> Results:
    """Seconds an update as its tokens grow from 1,024 to 16,384."""
    folder = e5_folder(work)
    found = {}
    for tokens in (1024, 2048, 4096, 8192, 16384):
        words = ["--task", "xnli", f"data.train=[{','.join(options.train)}]", f"pretrained={folder}"]
        words += [f"batch.max_tokens={tokens}", "optim.lr=2e-5", "dropout=0.1", *options.keys]
        worker = Worker("ours.py", {"words": words}, options.threads)
        worker(do="train", updates=2)
        answers = [worker(do="train", updates=max(2, 16384 // tokens)) for _ in range(options.rounds)]
        per_update = statistics.median(a["seconds"] / len(a["losses"]) for a in answers)
        real = statistics.median(a["tokens"] / len(a["losses"]) for a in answers)
        found[tokens] = {"tokens": real, "seconds": per_update, "us_per_token": 1e6 * per_update / real}
        worker.close()
        print(f"  {tokens}: {per_update:.3f} s an update, {real:.0f} tokens", file=sys.stderr)
    x = np.array([row["tokens"] for row in found.values()])
    y = np.array([row["seconds"] for row in found.values()])
    # relative errors count alike at all sizes
    slope, start = np.linalg.lstsq(np.stack([x / y, 1 / y], 1), np.ones(len(x)), rcond=None)[0]
    return {
        "sizes": found,
        "seconds_per_token": float(slope),
        "seconds_per_update_besides": float(start),
        "largest_deviation_from_the_line": float(np.abs((slope * x + start) / y - 1).max()),
    }


def startup(options: argparse.Namespace, work: Path) -> Results:
    """Seconds until a command answers, in a fresh process each time."""

    def seconds(code: str) -> float:
        taken = []
        for _ in range(options.rounds):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    script = "import sys; from xsalt_cli.{} import main; sys.argv = {!r}; sys.exit(main())"
    return {
        "python": seconds("pass"),
        "import xsalt": seconds("import xsalt"),
        "xsalt-train --help": seconds(script.format("train", ["xsalt-train", "--help"])),
        "xsalt-list": seconds(script.format("list", ["xsalt-list"])),
        "import torch": seconds("import torch"),
        "import xsalt.training.run": seconds("import xsalt.training.run"),
        "from transformers import Trainer": seconds("from transformers import Trainer"),
    }


BENCHMARKS: dict[str, Callable[[argparse.Namespace, Path], Results]] = {
    "training": training,
    "ablation": ablation,
    "views": views,
    "bert": bert,
    "evaluation": evaluation,
    "augmentation": augmentation,
    "kernels": lambda options, work: kernels.measure(options.rounds, ceilings()["copy_gb_per_s"]),
    "scaling": scaling,
    "startup": startup,
}


def main() -> None:
    shipped = Path(__file__).parents[2] / "xsalt" / "data" / "quickstart" / "train-en.tsv"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[*BENCHMARKS, []], help="default: all")
    parser.add_argument("--train", nargs="+", default=[str(shipped)], help="training files; default: the embedded data")
    parser.add_argument("--data", help="data folder with a dev set; default: the embedded data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=20, help="of a round of training")
    parser.add_argument("--loss-steps", type=int, default=LOSS_STEPS, help="updates whose losses must agree")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--eval-rows", type=int, default=200, help="of each language")
    parser.add_argument("--eval-batch", type=int, default=64, help="sentences in a batch of the peers")
    parser.add_argument("--augment-rows", type=int, default=2000, help="examples scored by xsalt")
    parser.add_argument("--augment-few", type=int, default=32, help="examples scored by its peer, which is slow")
    parser.add_argument("--bert-layers", type=int, default=12)
    parser.add_argument("--bert-width", type=int, default=768, help="a multiple of 64")
    parser.add_argument("--compile", action="store_true", help="also a loop through torch.compile")
    parser.add_argument("--fp32", action="store_true", help="float32 in place of bfloat16")
    parser.add_argument(
        "--keys", nargs="*", default=[], help="more keys for xsalt-train, for instance kernels=reference"
    )
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.train = [str(Path(file).resolve()) for file in options.train]
    versions = {name: __import__(name).__version__ for name in ("torch", "transformers", "xsalt", "numpy")}
    results: Results = {"threads": options.threads, "processor": platform.processor() or platform.machine()}
    results |= {"versions": versions, "machine": ceilings()}
    for name in options.what or BENCHMARKS:
        print(f"{name}: {BENCHMARKS[name].__doc__ or kernels.__doc__}", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="xsalt-benchmark-") as work:
            results[name] = BENCHMARKS[name](options, Path(work))
        print(json.dumps({name: results[name]}, indent=1))
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
