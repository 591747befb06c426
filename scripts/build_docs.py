"""Build the documentation site from the notebooks into `_docs/`, offline.

Worked cases show the outputs stored in the notebooks. With `--run` the notebooks whose code has
changed are executed first (without the cells that nbdev-test skips); their outputs are cached in
`_proc/run` under the code's hash.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts" / "docs"))
os.environ["NO_MKDOCS_2_WARNING"] = "1"


def execute(notebook: Path, target: Path) -> None:
    "Run the cells that nbdev-test would run, in this process, and write the result to `target`."
    from execnb.shell import CaptureShell
    from fastcore.nbio import write_nb
    from nbdev.config import get_config
    from nbdev.process import NBProcessor
    from nbdev.test import nb_test_cells

    flags = get_config().tst_flags
    wanted = {
        c.id for c in nb_test_cells(notebook, flags.split() if isinstance(flags, str) else flags)
    }
    nb = NBProcessor(notebook, rm_directives=False, process=True).nb
    os.environ["IN_TEST"] = "1"
    notebook, target = notebook.absolute(), target.absolute()
    os.chdir(notebook.parent)
    shell = CaptureShell(notebook)
    try:
        shell.run_all(
            nb,
            exc_stop=True,
            preproc=lambda cell: cell.cell_type != "code" or cell.id not in wanted,
        )
    except Exception:
        sys.exit(shell.prettytb(fname=notebook))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_nb(nb, target.with_suffix(".part"))
    target.with_suffix(".part").rename(target)


def execute_changed(fresh: bool) -> None:
    "Execute the module notebooks that have changed, each in a separate process."
    from notebooks import NBS, RUN, key, rooms

    failed = []
    for notebook in [n for n in rooms() if n.parent == NBS]:
        target = RUN / key(notebook)
        if target.exists() and not fresh:
            continue
        for old in RUN.glob(f"{notebook.stem}-*"):
            old.unlink()
        start = time.monotonic()
        code = subprocess.run(
            [sys.executable, __file__, "--execute", notebook, target], cwd=ROOT
        ).returncode
        print(
            f"{notebook.name}: {'failed' if code else 'run'} in {time.monotonic() - start:.0f} s",
            flush=True,
        )
        failed += [notebook.name] * bool(code)
    if failed:
        sys.exit(f"docs: {', '.join(failed)} failed")


def gallery(runs: Path | None, out: Path) -> None:
    "Write the gallery of the completed runs below `runs`, if there are any, to `out`."
    from r1nb.gallery import build_gallery
    from r1nb.runs import list_runs
    from r1nb.settings import settings

    root = (runs or settings().runs).absolute()
    complete = [r for r in list_runs(root) if r.status == "completed"]
    if runs and not complete:
        sys.exit(f"docs: no complete runs below {root}")
    if complete:
        build_gallery(root, out, complete, home="../index.html")
        print(f"gallery: {len(complete)} complete runs below {root}")


class Links(HTMLParser):
    "What a page links to and which anchors it has."

    def __init__(self, page: Path):
        super().__init__()
        self.targets, self.anchors = [], {""}
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs.get("id"), attrs.get("name")}
        if tag in ("a", "link", "img", "script"):
            self.targets += [attrs[k] for k in ("href", "src") if attrs.get(k)]


def broken_links(site: Path) -> list[str]:
    """Links of the pages below `site` whose file or anchor is missing.

    MkDocs itself checks links in Markdown only.
    """
    pages = {p.resolve(): Links(p) for p in site.rglob("*.html") if p.name != "404.html"}
    broken = []
    for page, links in pages.items():
        for target in set(links.targets):
            if re.match(r"[a-z]+:|//", target):
                continue
            path, _, anchor = target.partition("#")
            there = (page.parent / unquote(path.partition("?")[0])).resolve() if path else page
            if there.is_dir():
                there = there / "index.html"
            if not there.exists() or (
                there in pages and unquote(anchor) not in pages[there].anchors | {"__skip", "top"}
            ):
                broken.append(f"{page.relative_to(site.resolve())}: {target}")
    return sorted(broken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "_docs", help="folder that the pages are written to"
    )
    parser.add_argument(
        "--run", action="store_true", help="execute the notebooks that have changed"
    )
    parser.add_argument("--fresh", action="store_true", help="with --run: execute all of them")
    parser.add_argument(
        "--runs",
        type=Path,
        help="folder of runs for the gallery (default: the settings' runs folder)",
    )
    parser.add_argument(
        "--no-gallery", action="store_true", help="build the site without the gallery"
    )
    parser.add_argument(
        "--serve", action="store_true", help="serve the site and rebuild changed pages"
    )
    parser.add_argument(
        "--address",
        default="127.0.0.1:8000",
        help="with --serve: address (default: 127.0.0.1:8000)",
    )
    parser.add_argument("--execute", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.execute:
        return execute(*args.execute)
    start = time.monotonic()
    if args.run:
        execute_changed(args.fresh)
    with tempfile.TemporaryDirectory() as pages:
        os.environ["R1NB_DOCS_GALLERY"] = pages
        if not args.no_gallery:
            gallery(args.runs, Path(pages))
        from mkdocs.__main__ import cli

        config = ["-f", str(ROOT / "mkdocs.yml")]
        if args.serve:
            return cli(["serve", *config, "--dev-addr", args.address, "--no-strict"])
        cli(
            ["build", *config, "--strict", "--quiet", "--site-dir", str(args.out.absolute())],
            standalone_mode=False,
        )
    if broken := broken_links(args.out):
        sys.exit("docs: broken links\n" + "\n".join(broken))
    (args.out / ".nojekyll").touch()
    files = [p for p in args.out.rglob("*") if p.is_file()]
    size = sum(p.stat().st_size for p in files) / 2**20
    pages = sum(p.suffix == ".html" for p in files)
    seconds = time.monotonic() - start
    print(f"{pages} pages, {size:.1f} MiB, {seconds:.0f} s; start at {args.out / 'index.html'}")


if __name__ == "__main__":
    main()
