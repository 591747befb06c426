"""Notebooks as Markdown pages, and API pages from the exported modules.

Files are only read; nothing is imported or run.
"""

import ast
import base64
import hashlib
import html
import json
import os
import posixpath
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import latex2mathml.converter

ROOT = Path(__file__).resolve().parent.parent.parent
NBS = ROOT / "nbs"
RUN = ROOT / "_proc" / "run"  # executed notebooks, named by their content
LONG = 30  # lines; a longer exported cell is folded
FENCE = re.compile(
    r"(?ms)^ *(`{3,}|~{3,}).*?^ *\1 *$|(`+)(?!`).+?(?<!`)\2(?!`)"
)  # code, in Markdown
# a fenced block, a link, a name in backticks (group 2)
SKIP_OR_NAME = re.compile(
    r"(?ms)^ *(`{3,}).*?^ *\1 *$|\[[^\]\n]*\]\([^)]*\)|(?<!TRL's )(?<!`)`([\w.]+?)(?:\(\))?`(?!`)"
)
PLOT_LABEL = r"\b(?:set_)?%s *[(=]\s*f?r?(['\"])(.+?)\1"


def rooms() -> list[Path]:
    "The numbered notebooks and the job notebooks, in reading order."
    jobs = ["generate", "curate", "sft", "grpo", "evaluate", "report"]
    order = {name: number for number, name in enumerate(jobs)}
    found = sorted(NBS.glob("jobs/*.ipynb"), key=lambda p: (order.get(p.stem, len(jobs)), p.stem))
    return [*sorted(NBS.glob("[0-9][0-9]_*.ipynb")), *found]


def page_of(notebook: Path) -> str:
    return notebook.relative_to(NBS).with_suffix(".md").as_posix()


def key(notebook: Path) -> str:
    "Name of the executed notebook: it changes when the code cells do."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = "\0".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    return f"{notebook.stem}-{hashlib.sha256(code.encode()).hexdigest()[:16]}.ipynb"


@cache
def repository() -> str:
    "URL of the files at this revision on GitHub; '' if unknown: then the site shows them itself."
    server, name = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
    if not (server and name):
        return ""
    sha = (
        os.environ.get("GITHUB_SHA")
        or subprocess.run(
            ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    return f"{server}/{name}/blob/{sha}"


class Site:
    "What pages refer to: symbols, raw HTML that Markdown must not touch, plots, source files."

    def __init__(self):
        self.blocks, self.images, self.sources = {}, {}, set()
        self.modules = {
            p.stem: Module(p) for p in sorted((ROOT / "r1nb").glob("*.py")) if p.stem[0] != "_"
        }
        self.rooms = {n.stem[3:]: page_of(n) for n in rooms() if n.parent == NBS}
        owners = {}
        for module in self.modules.values():
            for name in module.public:
                owners.setdefault(name, []).append(module.name)
        # nbdev's own index has private names too, and cannot tell names that two modules share
        self.symbols = {n: f"api/{m[0]}.md#{n}" for n, m in owners.items() if len(m) == 1}
        for m in self.modules.values():
            self.symbols |= {f"{m.name}.{n}": f"api/{m.name}.md#{n}" for n in m.public}
            self.symbols |= {f"r1nb.{m.name}.{n}": f"api/{m.name}.md#{n}" for n in m.public}
            self.symbols[f"r1nb.{m.name}"] = f"api/{m.name}.md"

    def raw(self, text: str) -> str:
        "A placeholder for the HTML `text`, which is put in after Markdown has been rendered."
        name = hashlib.sha256(text.encode()).hexdigest()[:20]
        self.blocks[name] = text
        return f'<div data-block="{name}"></div>'

    def fill(self, page: str) -> str:
        """`page` with its placeholders replaced by their HTML.

        Inside a `<details>` Markdown wraps a placeholder in a paragraph; that is removed too.
        """
        block = r'(<p>)?<div data-block="(\w+)"></div>(?(1)</p>)'
        return re.sub(block, lambda m: self.blocks[m[2]], page)

    def file(self, path: str, page: str, line: int | None = None) -> str:
        "Link from `page` to the repository's file `path`: on GitHub if known, else on this site."
        if repository():
            return f"{repository()}/{path}" + (f"#L{line}" if line else "")
        self.sources.add(path)
        if path.endswith(".ipynb"):
            return relative(path, page)
        return relative(listing(path), page) + (f"#L-{line}" if line else "")

    def links(self, text: str, page: str, folder: str, own: str | None = None) -> str:
        """Markdown of a file in `folder` with links to pages of this site.

        Names in backticks link to the API.
        """

        def link(m):
            target, _, anchor = m[2].partition("#")
            if re.match(r"[a-z]+:|$", target):
                return m[0]
            path = posixpath.normpath(posixpath.join(folder, target))
            anchor = f"#{anchor}" if anchor else ""
            if path in ("README.md", "nbs/index.ipynb"):
                return f"{m[1]}({relative('index.md', page)}{anchor})"
            if path == "CONTRIBUTING.md":
                return f"{m[1]}({relative('contributing.md', page)}{anchor})"
            if path.startswith("nbs/") and path.endswith(".ipynb"):
                return f"{m[1]}({relative(path[4:-6] + '.md', page)}{anchor})"
            if not (ROOT / path).exists():
                raise SystemExit(f"{folder}: link to {m[2]}, which does not exist")
            if path.endswith((".svg", ".png")):
                self.images[f"images/{Path(path).name}"] = (ROOT / path).read_bytes()
                return f"{m[1]}({relative(f'images/{Path(path).name}', page)})"
            return f"{m[1]}({self.file(path, page)})" if (ROOT / path).is_file() else m[1][1:-1]

        def name(m):
            mine = f"api/{own}.md#{m[2]}" if own and m[2] in self.modules[own].public else None
            target = m[2] and (mine or self.symbols.get(m[2]))
            return f"[{m[0]}]({relative(target, page)})" if target and target != page else m[0]

        def prose(part):
            return re.sub(r"(\[[^\]\n]*\])\(([^)\s]+)\)", link, part)

        out, end = [], 0
        for m in FENCE.finditer(text):
            out += [prose(text[end : m.start()]), m[0]]
            end = m.end()
        text = "".join([*out, prose(text[end:])])
        return SKIP_OR_NAME.sub(name, text) if own is not None else text


def relative(target: str, page: str) -> str:
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def in_order(text: str, state: dict) -> str:
    "Headings of a cell so that one h1 opens the page and no level is skipped."

    def heading(m):
        level = len(m[1])
        level = 1 if not state["level"] else min(max(level, 2), state["level"] + 1)
        state["level"] = level
        return "#" * level + m[2]

    parts, end = [], 0
    for m in re.finditer(r"(?ms)^ *(`{3,}).*?^ *\1 *$", text):
        parts += [re.sub(r"(?m)^(#{1,6})( +\S)", heading, text[end : m.start()]), m[0]]
        end = m.end()
    return "".join([*parts, re.sub(r"(?m)^(#{1,6})( +\S)", heading, text[end:])])


def plain(text: str) -> str:
    "The last sentence of Markdown `text` as plain text; empty if it does not end in prose."
    text = re.sub(r"(?s)```.*?```|\$\$.*?\$\$", " ", text).strip()
    last = re.split(r"\n\s*\n", text)[-1]
    if re.match(r"#|\|", last):
        return ""
    last = re.sub(r"(?m)^[>*\s-]+", "", last)
    last = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(last.split()))
    last = re.sub(r"\*\*?|`|\\(?=\W)|\$", "", last)
    return re.split(r"(?<=[.!?]) +(?=[A-Z])", last.rstrip(":").strip())[-1].strip()


def alt_text(code: str, before: str, heading: str) -> str:
    "What a plot shows: its title, labels and section, and the sentence before it."

    def label(what):
        found = re.search(PLOT_LABEL % what, code)
        return re.sub(r"\{[^}]*\}|[$\\]", "", found[2]).strip(" ,:;") if found else ""

    title, x, y = label("(?:sup)?title"), label("(?:sup)?xlabel"), label("(?:sup)?ylabel")
    axes = f"{y} over {x}" if x and y else y or x
    parts = dict.fromkeys(p for p in (title, axes, heading, plain(before)) if p)
    return "Plot: " + "; ".join(parts)


def directives(source: str) -> tuple[dict, str]:
    "The `#|` directives of a cell and the cell without them."
    found, lines = {}, []
    for line in source.splitlines():
        if m := re.match(r"#\| *(\w+):? *(.*)", line):
            found[m[1]] = m[2]
        elif not re.search(r"#\| *hide_line\s*$", line):
            lines.append(line)
    return found, "\n".join(lines).strip("\n")


def fenced(code: str, language: str = "python") -> str:
    fence = "`" * max(3, 1 + max((len(m) for m in re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code}\n{fence}"


def folded(kind: str, title: str, text: str, opened: bool = False) -> str:
    "Markdown `text` in a `<details class=kind>` with the summary `title` (pymdownx.details)."
    body = "\n".join("    " + line if line else "" for line in text.splitlines())
    return f'???{"+" if opened else ""} {kind} "{title}"\n\n{body}'


class Page:
    "One notebook on its way to Markdown."

    def __init__(self, site: Site, notebook: Path):
        self.site, self.notebook, self.page = site, notebook, page_of(notebook)
        executed = RUN / key(notebook)
        self.cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        if executed.exists():
            outputs = json.loads(executed.read_text(encoding="utf-8"))["cells"]
            code = iter([c for c in outputs if c["cell_type"] == "code"])
            for c in self.cells:
                if c["cell_type"] == "code":
                    c["outputs"] = next(code).get("outputs") or c["outputs"]
        self.module = notebook.stem[3:] if notebook.parent == NBS else None
        self.state, self.plots, self.before, self.heading = {"level": 0}, 0, "", ""

    def markdown(self) -> str:
        parts = []
        for cell in self.cells:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                text = in_order(source, self.state)
                parts.append(
                    self.site.links(
                        text,
                        self.page,
                        self.notebook.parent.relative_to(ROOT).as_posix(),
                        self.module or "",
                    )
                )
                self.before = source
                self.heading = (re.findall(r"(?m)^#{1,6} +(.+)$", source) or [self.heading])[-1]
            elif cell["cell_type"] == "code":
                parts += self.code(cell, source)
        note = (
            f"[notebook]({self.site.file(self.notebook.relative_to(ROOT).as_posix(), self.page)})"
        )
        if self.module in self.site.modules:
            note += (
                f" · [API of r1nb.{self.module}]({relative(f'api/{self.module}.md', self.page)})"
            )
        parts.insert(1, f"{note}\n{{ .about }}")
        return "\n\n".join(p for p in parts if p) + "\n"

    def code(self, cell: dict, source: str):
        "The parts of the page that show a code cell and its outputs."
        marks, code = directives(source)
        tags = cell["metadata"].get("tags", [])
        if "hide" in marks or "default_exp" in marks:
            return
        if "answer" in tags:
            yield self.answer(cell, source, code)
            return
        if "export" in marks or "exports" in marks:
            yield self.exported(code)
        elif code and marks.get("echo") != "false":
            language = "bash" if code.startswith(("%%bash", "!")) else "python"
            yield fenced(code, "{ .python .parameters }" if "parameters" in tags else language)
        for output in cell["outputs"]:
            if text := self.output(output, source):
                yield text

    def answer(self, cell: dict, source: str, code: str) -> str:
        "The answer of an exercise: code and outputs in a `<details>` that is closed at first."
        outputs = [self.output(output, source) for output in cell["outputs"]]
        return folded("answer", "Answer", "\n\n".join([fenced(code), *filter(None, outputs)]))

    def exported(self, code: str) -> str:
        names = [n for n in defined(code) if n in self.site.modules[self.module].public]
        lines = code.count("\n") + 1
        title = ", ".join(names) or ("imports" if re.match(r"(from|import) ", code) else "helpers")
        title = f"{title} · {lines} line{'s' if lines > 1 else ''} of r1nb.{self.module}"
        opened = lines <= LONG and not title.startswith("imports")
        return folded("export", title, fenced(code), opened)

    def output(self, output: dict, code: str) -> str:
        data = output.get("data", {})
        if (
            output["output_type"] == "error" or output.get("name") == "stderr"
        ):  # progress bars, libraries' warnings
            return ""
        if image := data.get("image/png") or data.get("image/svg+xml"):
            suffix = "png" if "image/png" in data else "svg"
            content = "".join(image)
            content = base64.b64decode(content) if suffix == "png" else content.encode()
            self.plots += 1
            name = f"plots/{self.page[:-3].replace('/', '-')}-{self.plots}.{suffix}"
            self.site.images[name] = content
            size = f' width="{width_of(content)}"' if suffix == "png" else ""
            alt = html.escape(alt_text(code, self.before, self.heading), quote=True)
            image = f'<img src="{relative(name, self.page)}" alt="{alt}"{size} loading="lazy">'
            return self.site.raw(f'<p class="plot">{image}</p>')
        if "text/html" in data:
            text = re.sub(
                r"(?s)<style[^>]*>.*?</style>|<script.*?</script>", "", "".join(data["text/html"])
            )
            text = re.sub(r' border="1"', "", text)
            return self.site.raw(f'<div class="output table" tabindex="0">{text}</div>')
        if "text/markdown" in data:
            return in_order("".join(data["text/markdown"]), self.state)
        text = "".join(output.get("text") or data.get("text/plain") or "").rstrip()
        text = re.sub(
            r"\x1b\[[0-9;?]*[A-Za-z]|(?m:^\[\d{4}-[^]]*\] \[[A-Z]+\].*\n?)", "", text
        )  # colours, log lines
        if not text or (
            data and re.fullmatch(r"<[\w .]+ (?:object )?at 0x[0-9a-f]+>|<Figure size .*>", text)
        ):
            return ""
        return self.site.raw(f'<pre class="output" tabindex="0">{html.escape(text)}</pre>')


def width_of(png: bytes) -> int:
    """Width of a plot on a page in CSS pixels.

    Plots that matplotlib makes for high-density screens have at least 200 dots an inch; they are
    shown at half their size.
    """
    width, mark = int.from_bytes(png[16:20], "big"), png.find(b"pHYs", 0, 4096)
    density = int.from_bytes(png[mark + 4 : mark + 8], "big") * 0.0254 if mark > 0 else 100
    return round(width / 2) if density > 130 else width


def defined(code: str) -> list[str]:
    "Names that `code` defines at its top level."
    try:
        body = ast.parse(code).body
    except SyntaxError:
        return []
    names = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names += assigned(node)
    return names


def assigned(node: ast.Assign | ast.AnnAssign) -> list[str]:
    "The names that an assignment gives a value, those in tuples too."
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    names = [n for t in targets for n in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return [n.id for n in names if isinstance(n, ast.Name)]


class Module:
    "A module of the package: what its `__all__` names."

    def __init__(self, path: Path):
        self.name, self.path = path.stem, path.relative_to(ROOT).as_posix()
        self.source = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.source)
        self.text = ast.get_docstring(self.tree) or ""
        exported = [
            n.value
            for n in self.tree.body
            if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"
        ]
        named = ast.literal_eval(exported[0]) if exported else []
        self.nodes = {}
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                self.nodes[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                self.nodes |= dict.fromkeys(assigned(node), node)
        self.nodes = {n: node for n, node in self.nodes.items() if n in named}
        self.public = set(self.nodes)

    def markdown(self, site: Site) -> str:
        page = f"api/{self.name}.md"
        parts = [f"# r1nb.{self.name}", site.links(self.text, page, "r1nb", self.name)]
        if self.name in site.rooms:
            where = relative(site.rooms[self.name], page)
            parts.append(f"Explained and tested in [{site.rooms[self.name][:-3]}]({where}).")
        for name, node in self.nodes.items():
            url = site.file(self.path, page, node.lineno)
            parts += [f"## {name} {{ #{name} }}", self.entry(name, node, site, page, url)]
        return "\n\n".join(parts) + "\n"

    def entry(self, name, node, site, page, url) -> str:
        link = f"[source]({url})\n{{ .source }}"
        if isinstance(node, ast.Assign | ast.AnnAssign):
            lines = ast.get_source_segment(self.source, node).splitlines()
            return f"{fenced(chr(10).join(lines[:12] + ['…'] * (len(lines) > 12)))}\n\n{link}"
        text = site.links(docstring(node), page, "r1nb", self.name)
        if not isinstance(node, ast.ClassDef):
            return f"{fenced(signature(node))}\n\n{link}\n\n{text}"
        bases = ", ".join(ast.unparse(b) for b in node.bases)
        marks = "".join(f"@{ast.unparse(d)}\n" for d in node.decorator_list)
        parts = [
            fenced(f"{marks}class {name}" + (f"({bases})" if bases else "")),
            link,
            text,
            fields(node),
        ]
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and (
                method.name[0] != "_" or method.name in ("__init__", "__call__")
            ):
                if method.name[0] == "_" and not docstring(method) and len(method.args.args) < 2:
                    continue
                shown = method.name.replace("__", r"\_\_")
                anchor = f"{name}.{method.name.strip('_')}"
                text = site.links(docstring(method), page, "r1nb", self.name)
                parts += [f"### {name}.{shown} {{ #{anchor} }}", fenced(signature(method)), text]
        return "\n\n".join(p for p in parts if p)


def docstring(node) -> str:
    "A docstring as Markdown; HTML tags outside of code are escaped."
    parts = re.split(r"(`[^`]*`)", ast.get_docstring(node) or "")
    return "".join(p if i % 2 else p.replace("<", "&lt;") for i, p in enumerate(parts))


def signature(node) -> str:
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    marks = "".join(f"@{ast.unparse(d)}\n" for d in node.decorator_list)
    arguments = ast.unparse(node.args)
    if len(node.name) + len(arguments) + len(result) <= 78:
        return f"{marks}def {node.name}({arguments}){result}"
    parts, depth, start = [], 0, 0
    quoted = None
    for i, c in enumerate(arguments):
        if quoted:
            quoted = None if c == quoted else quoted
        elif c in "'\"":
            quoted = c
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == "," and not depth:
            parts.append(arguments[start : i + 1].strip())
            start = i + 1
    parts.append(arguments[start:].strip())
    body = "\n".join("    " + p for p in parts)
    return f"{marks}def {node.name}(\n{body}\n){result}"


def help_of(metadata) -> str:
    "The text under `help` of a field's metadata."
    for node in ast.walk(metadata or ast.Constant("")):
        for k, v in zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ():
            if isinstance(k, ast.Constant) and k.value == "help" and isinstance(v, ast.Constant):
                return v.value
    return ""


def fields(node: ast.ClassDef) -> str:
    "The fields of a dataclass as a table."
    rows = []
    for item in node.body:
        if (
            not isinstance(item, ast.AnnAssign)
            or not isinstance(item.target, ast.Name)
            or item.target.id[0] == "_"
        ):
            continue
        default, text = ast.unparse(item.value) if item.value else "", ""
        if isinstance(item.value, ast.Call):  # field(default=…, metadata={'help': …})
            options = {k.arg: k.value for k in item.value.keywords}
            value = (
                options.get("default")
                or options.get("default_factory")
                or next(iter(item.value.args), None)
            )
            default, text = ast.unparse(value) if value else "", help_of(item.value)
        text = str(text).replace("|", r"\|").replace("<", "&lt;")
        code = [
            f"`{c}`" if c else "" for c in (item.target.id, ast.unparse(item.annotation), default)
        ]
        rows.append("| " + " | ".join([*code, text]).replace("\n", " ") + " |")
    return "\n".join(["| field | type | default | |", "|---|---|---|---|", *rows]) if rows else ""


def listing(path: str) -> str:
    "The page that shows the file `path`; MkDocs leaves out folders that begin with a dot."
    return "source/" + re.sub(r"(^|/)\.", r"\1dot-", path) + ".md"


def source_page(site: Site, path: str) -> str:
    "A file of the repository as a page whose lines have anchors `L-1`, `L-2`, …"
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    body = "\n".join(
        f'<span id="L-{n}">{html.escape(line)}</span>' for n, line in enumerate(lines, 1)
    )
    listing = site.raw(f'<pre class="listing" tabindex="0">{body}</pre>')
    return f"---\nsearch:\n  exclude: true\nhide: [toc]\n---\n\n# {path}\n\n{listing}\n"


@cache
def mathml(page: str) -> str:
    "The formulas of an HTML page, as pymdownx.arithmatex marks them, in MathML."

    def convert(m):
        block = m[1] == "div"
        tex = html.unescape(m[2]).strip()[2:-2].strip()
        result = latex2mathml.converter.convert(tex, display="block" if block else "inline")
        label = html.escape(" ".join(tex.split()), quote=True)
        result = result.replace("<math ", f'<math alttext="{label}" ', 1)
        return f'<div class="formula" tabindex="0">{result}</div>' if block else result

    return re.sub(r'(?s)<(span|div) class="arithmatex">(.*?)</\1>', convert, page)


if __name__ == "__main__":
    print(Page(Site(), Path(sys.argv[1]).resolve()).markdown())
