"""Render the notebooks as HTML pages into `_docs/`, with an index in reading order.

Offline; one self-contained file a notebook.
"""

import argparse
import html
import json
from pathlib import Path

from r1nb.report import export_html

ROOT = Path(__file__).resolve().parent.parent


def summary(notebook: Path) -> tuple[str, str]:
    "Title and one-line description of a notebook, from its first cell."
    lines = [line.strip() for line in "".join(json.loads(notebook.read_text())["cells"][0]["source"]).splitlines()]
    title = next((line.lstrip("# ") for line in lines if line.startswith("#")), notebook.stem)
    text = next((line.lstrip("> ") for line in lines if line and not line.startswith("#")), "")
    return title, text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "_docs", help="folder that the pages are written to")
    out = parser.parse_args().out
    rows = []
    for notebook in sorted((ROOT / "nbs").glob("*.ipynb")) + sorted((ROOT / "nbs/jobs").glob("*.ipynb")):
        page = out / notebook.relative_to(ROOT / "nbs").with_suffix(".html")
        export_html(notebook, page, hide_code=False)
        page.write_text(page.read_text(encoding="utf-8").replace('.ipynb"', '.html"'), encoding="utf-8")
        title, text = summary(notebook)
        rows.append(f'<li><a href="{page.relative_to(out)}">{html.escape(title)}</a>: {html.escape(text)}</li>')
        print(page.relative_to(out))
    (out / "index.html").write_text(
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>r1nb</title>"
        "<style>body{font:16px/1.5 sans-serif;max-width:46em;margin:3em auto;padding:0 1em}</style>"
        f"<h1>r1nb</h1><ul>{''.join(rows)}</ul></html>",
        encoding="utf-8",
    )
    print(f"{len(rows)} pages; start at {out / 'index.html'}")


if __name__ == "__main__":
    main()
