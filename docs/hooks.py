"""What the site takes from elsewhere, so that nothing is said twice: `{{ readme HEADING }}`,
`{{ file NAME }}`, and pages made from the schema, the recipes, the binaries and the errors.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOB = "https://github.com/tfft/tfft/blob/main/"


def on_page_markdown(markdown, page, config, files):
    """Fill in what a page asks for."""
    made = {
        "readme": readme,
        "file": lambda name: (ROOT / name).read_text(encoding="utf-8"),
        "config": lambda _: config_keys(),
        "recipes": lambda _: recipes(),
        "commands": lambda _: commands(),
        "errors": lambda _: errors(),
    }
    filled = re.sub(
        r"^\{\{ (\w+) ?(.*?) \}\}$", lambda m: made[m[1]](m[2]), markdown, flags=re.MULTILINE
    )
    return relinked(filled)


def relinked(text):
    """Links of the README as the site has them."""
    text = text.replace("](docs/", "](").replace("](CONTRIBUTING.md", "](contribute.md")
    return re.sub(r"\]\((?=configs|colab|benchmarks|README)", f"]({BLOB}", text)


def readme(heading):
    """The section of the README under a heading; of `#` all before the first section."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    if heading == "#":
        return text.split("\n## ")[0].split("\n", 1)[1]
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.S | re.M)
    if found is None:
        raise ValueError(f"README.md has no section {heading!r}")
    return re.sub(r"^###", "##", found[1], flags=re.MULTILINE)


def config_keys():
    """A table for each section of the YAML, from the schema."""
    from tfft.config import schema

    found = schema()
    sections, parts, done = dict(found["properties"]), [], set()
    for name, value in sections.items():
        parts.append(f"## {name}\n\n{value.get('description', '')}")
        parts += section(value, name, found["$defs"], done)
    return "\n\n".join(parts)


def section(value, path, defs, done):
    """The tables of a section and of those within it, each once."""
    parts = []
    for key in references(value):
        if key in done or (key == "Search" and path != "tune"):
            continue
        done.add(key)
        part = whole(defs[key])
        head = (
            f"**{path}**: {part['properties']['name']['const']}" if _named(part) else f"**{path}**"
        )
        parts.append(f"{head}. {part.get('description', '')}\n\n{table(part)}")
        for inner, its in part.get("properties", {}).items():
            parts += section(its, f"{path}.{inner}", defs, done)
    return parts


def whole(part):
    """The long form of what has a short one."""
    return next((p for p in part.get("anyOf", []) if "properties" in p), part)


def _named(part):
    return "const" in part.get("properties", {}).get("name", {})


def references(value):
    """Names of the sections that a value may be."""
    if isinstance(value, dict):
        found = [value["$ref"].rsplit("/", 1)[1]] if "$ref" in value else []
        inner = [v for k, v in value.items() if k not in ("discriminator", "default")]
    else:
        found, inner = [], value if isinstance(value, list) else []
    return found + [name for one in inner for name in references(one)]


def table(part):
    """Keys, what they take, defaults, meaning."""
    rows = ["| key | takes | default | meaning |", "|---|---|---|---|"]
    for key, value in part.get("properties", {}).items():
        default = f"`{json.dumps(value['default'])}`" if "default" in value else "required"
        if key not in part.get("required", []) and "default" not in value:
            default = ""
        cells = [f"`{key}`", kind(value), default, value.get("description", "")]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def kind(value):
    """What a key takes, in words."""
    if "$ref" in value:
        return value["$ref"].rsplit("/", 1)[1]
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    for union in ("anyOf", "oneOf"):
        if union in value:
            kinds = [kind(one) for one in value[union]]
            return " or ".join(dict.fromkeys(k for k in kinds if k != "Search"))
    if value.get("type") == "array":
        return f"list of {kind(value.get('items', {}))}"
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {value[name]}" for name, sign in limits.items() if name in value]
    examples = [f"`{one}`" for one in value.get("examples", [])]
    kinds = value.get("type", "anything")
    kinds = " or ".join(kinds) if isinstance(kinds, list) else kinds
    return " ".join([kinds, *bounds, *examples])


def recipes():
    """The headers of the recipes."""
    parts = []
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        head, body = text.split("\ndata:", 1)
        told = "\n".join(line.removeprefix("#").removeprefix(" ") for line in head.splitlines())
        name = path.relative_to(ROOT)
        parts.append(f"## {name}\n\n{told}\n\n```yaml\ndata:{body}```")
    return "\n\n".join(parts)


def commands():
    """Return the `--help` of each command."""
    from tfft.cli.__main__ import COMMANDS

    parts = []
    for name in COMMANDS:
        command = [sys.executable, "-m", "tfft.cli", name, "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        parts.append(f"## tfft {name}\n\n```text\n{done.stdout.rstrip()}\n```")
    return "\n\n".join(parts)


def errors():
    """Every message that a user's mistake gets, by the module that says it."""
    parts = []
    for path in sorted((ROOT / "tfft").rglob("*.py")):
        found = messages(ast.parse(path.read_text(encoding="utf-8")))
        if found:
            name = path.relative_to(ROOT)
            lines = "\n".join(f"- {message}" for message in found)
            parts.append(f"### {name}\n\n{lines}")
    return "\n\n".join(parts)


def messages(tree):
    """The texts of `UserError(...)`, with ... in place of what is filled in."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError" and node.args:
            text = words(node.args[0]).strip()
            if re.search(r"\w{3}", text.replace("...", "")):
                code = "``" if "`" in text else "`"
                found.append(
                    f"{code}{' ' if '`' in text else ''}{text}{' ' if '`' in text else ''}{code}"
                )
    return list(dict.fromkeys(found))


def words(node):
    """A string of the source, `...` where it is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value).replace("\n", " ")
    if isinstance(node, ast.JoinedStr):
        return "".join(words(one) for one in node.values)
    if isinstance(node, ast.BinOp):
        return words(node.left) + words(node.right)
    return "..."
