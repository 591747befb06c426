"""Compare r1nb's decontamination with two simpler ways, on synthetic problems with planted ones.

    R1NB_BENCHMARKS=folder python scripts/bench/decontaminate.py
        [--rows 100000 1000000] [--ngram_size 8]

`reading`: only reads the file. The times and memory of the other ways are those beyond it.
`dictionary`: one dictionary of all word 8-grams of the benchmarks and a loop over the rows.
`open-r1`: what open-r1's script does: for each benchmark a dictionary and a `datasets.map` in two
processes.

Each way runs in a separate process, reads the same parquet file and returns the contaminated rows.
Memory is the peak (children included) minus what the process used before it began.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

BENCHMARKS = ["math_500", "aime24", "amc23", "gsm8k"]


def make(path: Path, rows: int, planted: float, problems: list[str], seed: int = 0) -> list[int]:
    """Write `rows` synthetic problems, a share `planted` of them with a whole test problem inside.

    Returns the indices of the planted rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    words = np.array([f"w{i}" if i % 3 else f"value{i}" for i in range(20_000)])
    weights = 1 / np.arange(1, len(words) + 1)
    weights /= weights.sum()
    dirty = np.sort(rng.choice(rows, int(rows * planted), replace=False))
    which = dict(
        zip(dirty.tolist(), rng.integers(len(problems), size=len(dirty)).tolist(), strict=True)
    )
    schema = pa.schema([("id", pa.int64()), ("problem", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 20_000):
            size = min(20_000, rows - start)
            lengths = rng.integers(20, 70, size)
            drawn = words[rng.choice(len(words), int(lengths.sum()), p=weights)]
            ends = np.cumsum(lengths)
            texts = [" ".join(drawn[e - n : e]) for e, n in zip(ends, lengths, strict=True)]
            for i in range(size):
                if (number := which.get(start + i)) is not None:
                    texts[i] = texts[i][:60] + " " + problems[number].upper() + " " + texts[i][60:]
            writer.write_table(pa.table([list(range(start, start + size)), texts], schema=schema))
    return dirty.tolist()


def read(path: str):
    "Yield the problems in lists of up to 8192."
    from r1nb.problems import parquet_batches

    for batch in parquet_batches(path, 8192, ["problem"]):
        yield batch["problem"].to_pylist()


def reading(path: str, problems: dict, n: int):
    def run():
        return [0 for texts in read(path) if not texts]

    return run


def ours(path: str, problems: dict, n: int):
    from r1nb.overlap import NgramIndex

    def run():
        index, start, found = NgramIndex(problems, n), 0, []
        for texts in read(path):
            found += sorted({start + m.row for m in index.find(texts)})
            start += len(texts)
        return found

    return run


def words_of(text: str) -> list[str]:
    return text.lower().split()


def lookup(texts: list[str], n: int) -> dict:
    grams = {}
    for number, text in enumerate(texts):
        words = words_of(text)
        for i in range(len(words) - n + 1):
            grams.setdefault(" ".join(words[i : i + n]), set()).add(number)
    return grams


def grams_of(text: str, n: int) -> set[str]:
    words = words_of(text)
    return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}


def dictionary(path: str, problems: dict, n: int):
    def run():
        grams, start, found = lookup([p for texts in problems.values() for p in texts], n), 0, []
        for texts in read(path):
            found += [
                start + i for i, t in enumerate(texts) if any(g in grams for g in grams_of(t, n))
            ]
            start += len(texts)
        return found

    return run


def open_r1(path: str, problems: dict, n: int):
    from datasets import load_dataset

    def run():
        with tempfile.TemporaryDirectory() as cache:
            rows = load_dataset("parquet", data_files=path, split="train", cache_dir=cache)
            for name, texts in problems.items():
                grams = lookup(texts, n)

                def mark(row, grams=grams, name=name):
                    row[f"contaminated_{name}"] = any(
                        g in grams for g in grams_of(row["problem"], n)
                    )
                    return row

                rows = rows.map(mark, num_proc=2)
            marks = [rows[f"contaminated_{name}"] for name in problems]
            return [i for i, some in enumerate(zip(*marks, strict=True)) if any(some)]

    return run


def index_sizes(problems: dict, n: int) -> dict[str, float]:
    "MiB that the index and the dictionary take, added up object by object."
    from r1nb.overlap import NgramIndex

    index = NgramIndex(problems, n)
    grams = lookup([p for texts in problems.values() for p in texts], n)
    arrays = sum(a.nbytes for a in (index.keys, index.owners, index.maybe, index.sizes))
    objects = sys.getsizeof(grams) + sum(
        sys.getsizeof(k) + sys.getsizeof(v) for k, v in grams.items()
    )
    return {"ours": arrays / 2**20, "dictionary": objects / 2**20}


WAYS = {"reading": reading, "ours": ours, "dictionary": dictionary, "open-r1": open_r1}


def resident() -> float:
    "Resident MiB of this process and its children."
    pids, total = [os.getpid()], 0
    for pid in pids:
        try:
            pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
        except (OSError, ValueError):
            pass
    return total / 2**20


def work(way: str, path: str, n: int) -> None:
    "Runs in a separate process: prints seconds, memory and the rows that were found."
    from r1nb.curate import benchmark_problems

    problems = {
        b: [p for p in texts if len(p.split()) >= n]
        for b, texts in benchmark_problems(BENCHMARKS).items()
    }
    run, peak, done = WAYS[way](path, problems, n), [0.0], threading.Event()
    before = resident()

    def watch():
        while not done.wait(0.05):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    found = run()
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    print(json.dumps({"seconds": seconds, "mib": peak[0] - before, "rows": found}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--ngram_size", type=int, default=8)
    parser.add_argument(
        "--planted", type=float, default=0.001, help="share of rows with a planted test problem"
    )
    parser.add_argument("--ways", nargs="+", choices=list(WAYS)[1:], default=list(WAYS)[1:])
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(args.work[0], args.work[1], int(args.work[2]))
    from r1nb.curate import benchmark_problems

    known = benchmark_problems(BENCHMARKS)
    texts = [p for some in known.values() for p in some if len(p.split()) >= args.ngram_size]
    size = index_sizes(known, args.ngram_size)
    print(
        f"{len(texts)} test problems; "
        + ", ".join(f"{way} {mib:.1f} MiB" for way, mib in size.items())
    )
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            path, first = Path(folder) / "problems.parquet", None
            planted = make(path, rows, args.planted, texts)
            size = path.stat().st_size / 2**20
            print(f"{rows:,} problems, {size:.0f} MiB, {len(planted)} with a test problem")
            alone = None
            for way in ["reading", *args.ways]:
                done = subprocess.run(
                    [sys.executable, __file__, "--work", way, str(path), str(args.ngram_size)],
                    capture_output=True,
                    text=True,
                )
                if done.returncode:
                    sys.exit(done.stderr)
                told = json.loads(done.stdout.splitlines()[-1])
                if alone is None:
                    alone = told
                    print(f"  {way:11s} {told['seconds']:8.2f} s            {told['mib']:7.0f} MiB")
                    continue
                for what in ("seconds", "mib"):
                    told[what] -= alone[what]
                first = first or told
                found = set(told["rows"])
                hits, others = len(found & set(planted)), len(found - set(planted))
                slower = told["seconds"] / first["seconds"]
                larger = told["mib"] / max(first["mib"], 1e-9)
                print(
                    f"  {way:11s} {told['seconds']:8.2f} s ({slower:6.1f} x)"
                    f"  {told['mib']:7.0f} MiB ({larger:5.1f} x)"
                    f"  found {hits} of {len(planted)}, {others} others",
                    flush=True,
                )


if __name__ == "__main__":
    main()
