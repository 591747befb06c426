"""The page *Messages and what to do*, read from the source of the modules; nothing is run.

Each message is a heading: the site's search ranks headings first, so a message that is pasted into
it is found.
"""

import ast
import html
import re
from itertools import product

from notebooks import Module, Site, assigned

PAGE = "messages.md"
ERRORS = set(
    "InputError NoPlan NoRoom Diverged SamplesMissing Preempted StdinNotImplementedError "
    "FileNotFoundError KeyboardInterrupt RuntimeError ValueError".split()
)
INTERNAL = ("formulas", "readings")  # their errors are caught: a text that is not a formula
VAGUE = {"e": "reason", "strerror": "reason", "n": "number", "np": "number"}
VAGUE |= dict.fromkeys(("self", "cfg", "course"), "value")  # getattr(cfg, name)
OWNERS = ("name", "path", "value", "iloc", "self")  # say less than what they belong to
HINT = "[did you mean '<em>name</em>'? / valid: <em>names</em>]"  # of did_you_mean()
INTRO = """---
tags: [message]
search:
  boost: 0.4
---

# Messages and what to do

What r1nb prints when something is wrong, read from its code. Paste a message into the search of
this site to find it here.

*Italic* words stand for values. What is printed only sometimes is in [brackets], with / between
alternatives. A message says what is wrong, where, and what to do; the messages of a function stand
below its name. At the end: the [signs of a GRPO run](#signs) and [`r1nb doctor`](#doctor)."""


def words(text: str) -> int:
    "How many words of the HTML `text` are not values."
    return len(re.findall(r"[^\W\d]{2,}", re.sub(r"<em>.*?</em>|&\w+;", " ", text)))


def label(node: ast.AST) -> str:
    "A name for the value of an expression, the first that is in it; … if there is none."
    text = ast.unparse(node)
    if call := re.match(r"(len|type)\(", text):
        return "number" if call[1] == "len" else "type"
    if key := re.search(r"(?:\[|\.\w+\()'(\w+)'", text):
        return key[1]
    text = re.sub(r".*\bfor .+ in |'[^']*'\.?|\b(map|str)\b", "", text)
    found = re.findall(r"\b([A-Za-z_][\w.]*)(\(?)", text)
    found = [name.rpartition(".")[0] if call else name for name, call in found]
    parts = [p.strip("_") for p in next(filter(None, found), "…").lower().split(".")]
    name = next((p for p in reversed(parts) if p not in OWNERS), parts[-1])
    return VAGUE.get(name, name if len(name) > 1 else "…")


class Reader:
    "Reads which texts an expression in `module` can have, as HTML."

    def __init__(self, module: Module):
        nodes = list(ast.walk(module.tree))
        self.functions = {n.name: n for n in nodes if isinstance(n, ast.FunctionDef)}
        self.calls = [n for n in nodes if isinstance(n, ast.Call)]
        top = [n for n in module.tree.body if isinstance(n, ast.Assign)]
        self.constants = {name: n.value for n in top for name in assigned(n)}

    def sources(self, node: ast.AST, inside: ast.AST, known: dict) -> list[tuple]:
        """The expressions that a name or a call in the function `inside` gets its value from.

        Each is a tuple, the arguments of `texts`. `known`: those of the parameters of `inside`."""
        if isinstance(node, ast.Call):
            function = self.functions.get(ast.unparse(node.func))
            if not function:
                return []
            given = zip(function.args.args, node.args, strict=False)
            passed = {a.arg: (value, inside, known) for a, value in given}
            returns = [n for n in ast.walk(function) if isinstance(n, ast.Return) and n.value]
            return [(n.value, function, passed) for n in returns]
        if node.id in known:
            return [known[node.id]]
        sets = (ast.Assign, ast.AnnAssign, ast.NamedExpr)
        here = [n for n in ast.walk(inside) if isinstance(n, sets) and n.value]
        found = [n.value for n in here if node.id in assigned(n)]
        names = [a.arg for a in inside.args.args]
        if not found and node.id in names:  # a parameter: what callers pass
            at = names.index(node.id)
            calls = [c for c in self.calls if ast.unparse(c.func) == inside.name]
            found = [c.args[at] for c in calls if len(c.args) > at]
        return [(value, inside, {}) for value in found]

    def texts(self, node: ast.AST, inside: ast.AST, known: dict, seen=()) -> list[str]:
        "The texts of `node`, an expression in the function `inside` with the arguments `known`."

        def every(*parts):
            found = [t for part in parts for t in self.texts(part, inside, known, seen)]
            return list(dict.fromkeys(found))

        match node:
            case ast.Constant(value):
                return [html.escape(str(value), quote=False)] if value is not None else []
            case ast.JoinedStr():
                return joined([every(part) for part in node.values])
            case ast.BinOp(op=ast.Add()) if re.search("['\"]", ast.unparse(node)):
                return joined([every(node.left), every(node.right)])
            case ast.FormattedValue():
                quote = "'" * (node.conversion == ord("r"))
                return [f"{quote}{text}{quote}" for text in every(node.value)]
            case ast.IfExp():
                return every(node.body, node.orelse)
            case ast.Tuple(elts=[first, *_]):
                return every(first)
            case ast.Call(func=ast.Name("did_you_mean")):
                return [HINT]
            case ast.Name(name) if isinstance(self.constants.get(name), ast.Constant):
                return every(self.constants[name])
        name = ast.unparse(node)
        if isinstance(node, ast.Name | ast.Call) and name not in seen:
            sources = self.sources(node, inside, known)
            found = [t for source in sources for t in self.texts(*source, (*seen, name))]
            if max(map(words, found), default=0) > 1:
                return found
        shown = label(node)
        return [shown if shown == "…" else f"<em>{html.escape(shown)}</em>"]


def joined(parts: list[list[str]]) -> list[str]:
    "Texts of an f-string from those of its parts: alternatives in brackets, or one text for each."
    fixed = sum(words(part[0]) for part in parts if len(part) == 1)
    for i, part in enumerate(parts):
        if 1 < len(part) <= 3 and fixed > 2:
            parts[i] = [f"[{' / '.join(filter(None, part))}]"]
    return list(map("".join, product(*parts)))


def told(function: ast.AST):
    "The expressions in `function` whose texts a person reads: of errors and warnings."
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).split(".")[-1]
            to_stderr = any("stderr" in ast.unparse(k) for k in node.keywords if k.arg == "file")
            if name in ERRORS or name == "warn" or (name == "print" and to_stderr):
                yield from (a for a in node.args if not isinstance(a, ast.Starred))


def messages(module: Module) -> dict[str, tuple]:
    "The messages of `module`, as HTML, each with the name and the docstring of its function."
    reader, found = Reader(module), {}
    for top in module.tree.body:
        inner = top.body if isinstance(top, ast.ClassDef) else [top]
        for function in (n for n in inner if isinstance(n, ast.FunctionDef)):
            about = top.name, ast.get_docstring(function) or ast.get_docstring(top) or ""
            for part in told(function):
                for text in reader.texts(part, function, {}):
                    text = re.sub(r"^r1nb: |<em></em>", "", " ".join(text.split()))
                    if words(text) > 2:
                        found.setdefault(text, about)
    return found


def signs(module: Module) -> list[tuple[str, list[str], str]]:
    "The name of each sign of diagnose, what is said about a run that has it, and the remedy."
    reader, found = Reader(module), []
    for function in reader.functions.values():
        for mark in function.decorator_list:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "sign":
                remedy = next(k.value for k in mark.keywords if k.arg == "remedy")
                returns = [n.value for n in ast.walk(function) if isinstance(n, ast.Return)]
                said = [r for r in returns if isinstance(r, ast.Tuple | ast.Call)]
                said = [text for r in said for text in reader.texts(r, function, {})]
                found.append((mark.args[0].value, said, remedy.value))
    return found


def checks(module: Module) -> list[tuple[str, str]]:
    "The name and the remedy of each check of `r1nb doctor` that has one."
    calls = Reader(module).constants["CHECKS"].elts
    rows = [[a.value for a in c.args if isinstance(a, ast.Constant)] for c in calls]
    return [row[:2] for row in rows if len(row) > 1]


def marked(text: str) -> str:
    "A docstring or remedy as HTML: what is in backticks as code."
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def heading(text: str, prefix: str, taken: set, style: str = "message") -> str:
    "The HTML heading `text` with an anchor of its first words, which is added to `taken`."
    first = re.findall(r"\w+", html.unescape(re.sub(r"<[^>]+>", "", text)).lower())[:8]
    anchor = "-".join([prefix, *first])
    while anchor in taken:
        anchor += "-"
    taken.add(anchor)
    link = f'<a class="headerlink" href="#{anchor}" title="Link to this message">&para;</a>'
    return f'<h3 class="{style}" id="{anchor}">{text}{link}</h3>'


def caption(site: Site, module: str, name: str, docstring: str) -> str:
    "A line about a function: a link to it, and the first paragraph of its docstring."
    target = site.symbols.get(f"{module}.{name}", site.rooms[module]).replace(".md", ".html")
    summary = marked(" ".join(docstring.split("\n\n")[0].split()))
    who = f'<a href="{target}"><code>{name}</code></a>' + ": " * bool(summary)
    return f'<p class="about giver" data-search-exclude>{who}{summary}</p>'


def page(site: Site) -> str:
    "The Markdown of the page."
    parts, taken = [INTRO], set()
    for name, module in site.modules.items():
        found = {} if name in INTERNAL else messages(module)
        if not found:
            continue
        parts += [
            f"## {name}",
            f"[notebook]({site.rooms[name]}) · [API](api/{name}.md)\n{{ .about }}",
        ]
        block, last = "", None
        for text, about in found.items():
            if about != last:
                block += caption(site, name, *about)
            block += heading(text, name, taken)
            last = about
        parts.append(site.raw(block))
    parts += [
        "## Signs of a GRPO run { #signs }",
        "[diagnose](44_diagnose.md) prints them to the log as it trains: step, sign, what is seen, "
        "and what to do.",
    ]
    block = ""
    for name, said, remedy in signs(site.modules["diagnose"]):
        block += heading(html.escape(name), "sign", taken, "sign")
        block += "".join(f"<p>{text}</p>" for text in said)
        block += f"<p>To do: {marked(remedy)}</p>"
    rows = checks(site.modules["cli"])
    table = [f"| {name} | {remedy} |".replace("<", "&lt;") for name, remedy in rows]
    head = ["| if this does not work | what to do |", "|---|---|"]
    doctor = "`r1nb doctor` says what works on this machine. For what does not:"
    parts += [site.raw(block), "## r1nb doctor { #doctor }", doctor, "\n".join(head + table)]
    return "\n\n".join(parts) + "\n"
