"""Measures training on 1, 2 and 4 ranks of this machine, fits a model of an update, and projects it to GPUs.

python examples/scaling/measure.py --json scaling.json            # some 15 minutes on two cores
python examples/scaling/measure.py --from scaling.json            # the tables alone, from measurements made before
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from model import Encoder, Heaps, Line, Machine, fit_heaps, fit_line, update

E5 = Encoder("multilingual-e5-small", 21.5e6, 250_037, 384)
PROJECTED = (
    Encoder("mBERT", 86.0e6, 119_547, 768),
    Encoder("XLM-R large", 303.9e6, 250_002, 1024),
)
GPU = Machine(
    "H100 SXM: 40 % of 989 TFLOP/s, 3.35 TB/s; NVLink 900 GB/s (450 each way, 80 % of it reached), one 400 Gbit/s "
    "card a GPU between nodes of 8 (90 %), 10 µs a hop, 15 ms of launches an update (assumed)",
    flops=0.40 * 989e12,
    memory=0.8 * 3.35e12,
    near=0.8 * 450e9,
    far=0.9 * 50e9,
    node=8,
    latency=10e-6,
    overhead=15e-3,
)
RANKS = (8, 16, 32, 64, 128, 256, 512)
PAIRS = 40.0
"""Tokens of an XNLI pair."""
ACTIVE = 60_000


def run(command: list[str], threads: int) -> str:
    """Standard output. Raises ``SystemExit`` with the last lines if the command fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit("\n".join((done.stdout + done.stderr).splitlines()[-8:]))
    return done.stdout


def torchrun(ranks: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]


def train(options: argparse.Namespace, ranks: int, threads: int, batch: int, *keys: str) -> dict[str, float]:
    """Medians over the logged windows of a short run, the first left out."""
    folder = Path(tempfile.mkdtemp(prefix="xsalt-scaling-"))
    script = shutil.which("xsalt-train", path=str(Path(sys.executable).parent)) or "xsalt-train"
    words = ["--task", "xnli", f"run={folder / 'run'}", f"batch.size={batch}", f"max_updates={options.updates}"]
    words += ["log_every=5", "checkpoint.keep=none", "eval.every=100000", "languages=[]", *options.keys, *keys]
    try:
        run([*(torchrun(ranks) if ranks > 1 else [sys.executable]), script, *words], threads)
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [json.loads(line) for line in lines][2:]
    found = {key: statistics.median(row[key] for row in rows) for key in ("pairs_per_s", "tokens_per_s")}
    for key in ("balance", "traffic_mb", "word_traffic_mb"):
        if key in rows[0]:
            found[key] = statistics.median(row[key] for row in rows)
    found["seconds"] = batch / found["pairs_per_s"]
    found["tokens"] = found["tokens_per_s"] * found["seconds"]
    return found


def distinct_rows(options: argparse.Namespace) -> dict[str, list[float]]:
    """Distinct word rows of batches of the training set, by their tokens."""
    from xsalt.training.run import Setup
    from xsalt_cli.front import compose
    from xsalt_cli.train import SCRIPT

    setup = Setup.open(compose(SCRIPT, ["--task", "xnli", "run=unused", *options.keys]))
    dataset = setup.tokenise(setup.read_train())
    draw, found = np.random.default_rng(0), {"tokens": [], "distinct": []}
    for pairs in (16, 64, 256, 1024, 4096):
        if pairs > len(dataset):
            break
        sizes = []
        for _ in range(5):
            rows = draw.choice(len(dataset), pairs, replace=False)
            ids = np.concatenate([dataset.ids[dataset.offsets[row] : dataset.offsets[row + 1]] for row in rows])
            sizes.append((len(ids), len(np.unique(ids))))
        found["tokens"].append(float(np.mean([size[0] for size in sizes])))
        found["distinct"].append(float(np.mean([size[1] for size in sizes])))
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that takes time; rounds in turn, so that a slow minute meets all alike."""
    layouts: dict[str, tuple[int, int, list[str]]] = {
        "1 rank, 1 thread": (1, 1, []),
        "1 rank, 2 threads": (1, 2, []),
        "2 ranks": (2, 1, []),
        "2 ranks, sums in bf16": (2, 1, ["distributed.compress=bf16"]),
        "4 ranks": (4, 1, []),
    }
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in layouts}
    for number in range(options.rounds):
        for name, (ranks, threads, keys) in layouts.items():
            rounds[name].append(train(options, ranks, threads, options.batch, *keys))
            print(f"round {number + 1}: {name}: {rounds[name][-1]['pairs_per_s']:.1f} pairs/s", file=sys.stderr)
    sizes = [train(options, 1, 1, size) for size in (options.batch // 4, options.batch // 2, options.batch * 2)]
    exchange = Path(__file__).with_name("exchange.py")
    return {
        "layouts": {
            name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in rounds.items()
        },
        "rounds": {name: [row["pairs_per_s"] for row in rows] for name, rows in rounds.items()},
        "sizes": sizes,
        "exchange": {str(n): json.loads(run([*torchrun(n), str(exchange)], 1)) for n in (2, 4)},
        "rows": distinct_rows(options),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "batch": options.batch,
    }


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def here(found: dict[str, Any]) -> str:
    """Measured points, and what the model makes of them."""
    layouts, cores = found["layouts"], found["cores"]
    one = layouts["1 rank, 1 thread"]
    points = [*found["sizes"], one]
    compute = fit_line([row["tokens"] for row in points], [row["seconds"] for row in points])
    links = {
        (int(n), compress): fit_line(row["bytes"], seconds)
        for n, row in found["exchange"].items()
        for compress, seconds in row["seconds"].items()
    }
    base = layouts["1 rank, 2 threads"]["pairs_per_s"]
    rows = []
    for name, row in layouts.items():
        ranks = int(name.split()[0])
        link = links.get((ranks, "bf16" if "bf16" in name else "none"))
        expected = predicted(compute, link, ranks, cores, row)
        error = f"{100 * (expected / row['seconds'] - 1):+.0f} %" if name != "1 rank, 2 threads" else "–"
        shown = f"{expected:.3f}" if name != "1 rank, 2 threads" else "–"
        sent = f"{row['traffic_mb']:.1f}" if "traffic_mb" in row else "–"
        balance = f"{row['balance']:.3f}" if "balance" in row else "–"
        speed, of_base = f"{row['pairs_per_s']:.1f}", f"{row['pairs_per_s'] / base:.2f}"
        rows.append([name, speed, of_base, f"{row['seconds']:.3f}", shown, error, sent, balance])
    header = ["", "pairs/s", "of 2 threads", "s an update", "by the model", "error", "MB sent", "balance"]
    said = f"One rank of one thread: {1e3 * compute.start:.0f} ms an update and {1e6 * compute.slope:.0f} µs a token. "
    for (n, compress), link in links.items():
        how = " in bf16" if compress == "bf16" else ""
        said += f"Sums over {n} ranks{how}: {1e3 * link.start:.1f} ms and {1e-9 / link.slope:.1f} GB/s of gradients. "
    return table(header, rows) + "\n" + said + "\n"


def predicted(compute: Line, link: Line | None, ranks: int, cores: int, row: dict[str, float]) -> float:
    """Seconds of an update on ranks of one thread of one machine.

    Ranks that outnumber the cores share them. What an update costs besides its tokens (weights cast, gradients written)
    each rank has for itself; of the optimizer, which is part of it, a share. The CPU does the adding up, so nothing of
    it is hidden.
    """
    crowd = max(1.0, ranks / cores)
    own = crowd * (compute.start + compute.slope * row["tokens"] / ranks * row.get("balance", 1.0))
    waits = 2  # the sum and the update's end in ``link``, and two more: counts, the norm
    return own if link is None else own + waits * link.start + link.slope * 4 * E5.weights


def projection(rows_of: Heaps) -> str:
    """Two questions: the same batch on more GPUs, and a batch that grows with them."""
    text = f"\n{GPU.name}.\n"
    for title, batch_of in (("A batch of 256 pairs, whatever the GPUs", None), ("32 pairs a GPU", 32)):
        for encoder in PROJECTED:
            lines = []
            for ranks in (1, *RANKS):
                pairs = batch_of * ranks if batch_of else 256
                if pairs < ranks:
                    lines.append([str(ranks), "more GPUs than pairs", *["–"] * 5])
                    continue
                tokens = PAIRS * pairs
                touched = min(rows_of(tokens), ACTIVE)
                whole, half = (update(encoder, GPU, ranks, tokens, touched, ACTIVE, size) for size in (4, 2))
                alone = update(encoder, GPU, 1, tokens / ranks if batch_of else tokens, touched, ACTIVE)
                gain = alone.seconds / whole.seconds / (1 if batch_of else ranks)
                waiting = whole.gradients + whole.rows + whole.latency
                line = [str(ranks), f"{1e3 * whole.seconds:.1f}", f"{pairs / whole.seconds:,.0f}"]
                line += [f"{100 * gain:.0f} %", f"{1e3 * waiting:.1f}", f"{1e3 * half.seconds:.1f}"]
                lines.append([*line, whole.largest_cost])
            header = ["GPUs", "ms an update", "pairs/s", "efficiency", "ms waiting for others", "ms with bf16 sums"]
            text += f"\n**{title}, {encoder.name}**\n\n" + table([*header, "largest besides compute"], lines)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, help="measurements made before")
    parser.add_argument("--json", type=Path, help="keep the measurements in this file")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--updates", type=int, default=40, help="of a run; default: %(default)s")
    parser.add_argument("--batch", type=int, default=32, help="pairs of a global batch; default: %(default)s")
    parser.add_argument("--keys", nargs="*", default=[], metavar="KEY=VALUE", help="more for xsalt-train")
    options = parser.parse_args()
    found = json.loads(options.source.read_text()) if options.source else measure(options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    rows_of = fit_heaps(found["rows"]["tokens"], found["rows"]["distinct"])
    print(here(found))
    print(f"Word rows of a batch of T tokens: {rows_of.k:.2f} T^{rows_of.beta:.2f}.")
    print(projection(rows_of))


if __name__ == "__main__":
    main()
