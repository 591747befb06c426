"""Mark, or remove, the problems of a dataset that share words with a benchmark's.

python scripts/decontaminate.py --dataset open-r1/verifiable-coding-problems-python --split train \\
    --ngram_size 8 --problem_column problem --cleanup
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
from tqdm import tqdm

from r1nb.curate import CurateConfig, arrow_batches, benchmark_problems, decontaminate_batches
from r1nb.jobs import guarded
from r1nb.overlap import NgramIndex
from r1nb.problems import short_name
from r1nb.publish import PublishConfig, check_publish, check_replaceable, front_matter, push_folder
from r1nb.runs import append_jsonl, atomic_path, check_writable, write_text
from r1nb.settings import InputError, settings

BENCHMARKS = CurateConfig().benchmarks


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dataset", required=True, help="a .jsonl or .parquet file, a folder with one, or a Hub id"
    )
    parser.add_argument("--config", help="configuration of a Hub dataset")
    parser.add_argument("--split", default="train", help="split of a Hub dataset (default: train)")
    parser.add_argument(
        "--ngram_size",
        type=int,
        default=8,
        help="length in words of the sequences that must not be shared (default: 8)",
    )
    parser.add_argument(
        "--problem_column", default="problem", help="column with the problem (default: problem)"
    )
    parser.add_argument(
        "--cleanup",
        action="store_true",
        help="remove the contaminated rows instead of marking them",
    )
    parser.add_argument(
        "--new_dataset_name", help="./folder or owner/name (default: ./<name>_decontaminated)"
    )
    parser.add_argument(
        "--benchmarks",
        nargs="+",
        default=BENCHMARKS,
        help=f"benchmarks or files of problems (default: {' '.join(BENCHMARKS)})",
    )
    parser.add_argument(
        "--min_coverage",
        type=float,
        default=0.0,
        help="ignore matches that cover a smaller share of the test problem (default: 0)",
    )
    parser.add_argument("--private", action="store_true", help="push as a private dataset")
    return parser.parse_args()


def decontaminate(args: argparse.Namespace) -> int:
    "Stream the dataset through the index into a dataset repository. Returns the exit code."
    if not 1 <= args.ngram_size <= 64:
        raise InputError(f"--ngram_size: {args.ngram_size} is not between 1 and 64")
    name = args.new_dataset_name or f"./{short_name(args.dataset)}_decontaminated"
    target = PublishConfig(name, private=args.private)
    check_publish(target)
    folder = (
        Path(name).expanduser()
        if target.is_folder
        else settings().runs / "decontaminate" / Path(name).name
    )
    check_replaceable(folder)
    check_writable(folder)
    index = NgramIndex(benchmark_problems(args.benchmarks), args.ngram_size)
    read, kept, sources, writer = 0, 0, Counter(), None
    with atomic_path(folder) as out:
        (out / "data").mkdir(parents=True)
        batches = arrow_batches(args.dataset, args.config, args.split)
        with tqdm(desc="problems", unit=" rows", unit_scale=True) as bar:

            def counted():
                nonlocal read
                for table in batches:
                    yield table
                    read += table.num_rows
                    bar.update(table.num_rows)

            for table, found in decontaminate_batches(
                counted(),
                index,
                args.benchmarks,
                args.problem_column,
                args.cleanup,
                args.min_coverage,
            ):
                writer = writer or pq.ParquetWriter(
                    out / "data/train-00000-of-00001.parquet", table.schema
                )
                writer.write_table(table)
                append_jsonl(out / "matches.jsonl", found)
                sources.update(match["benchmark"] for match in found)
                kept += table.num_rows
        if writer is None:
            raise InputError(f"{args.dataset} has no rows")
        writer.close()
        front = front_matter({"default": {"train": "data/train-*.parquet"}})
        lines = "\n".join(f"- {b}: {sources[b]}" for b in args.benchmarks)
        write_text(
            out / "README.md",
            f"{front}{args.dataset}, compared with test problems by runs of "
            f"{args.ngram_size} words; matches are in `matches.jsonl`.\n\n{lines}\n",
        )
    print(json.dumps({"rows": read, "written": kept, "contaminated": dict(sources)}))
    print(
        folder
        if target.is_folder
        else push_folder(folder, target, f"decontaminated, {args.ngram_size}-grams")
    )
    return 0


if __name__ == "__main__":
    arguments = parse()
    sys.exit(guarded(lambda: decontaminate(arguments)))
