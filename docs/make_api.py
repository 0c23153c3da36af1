"""Writes docs/api.md from the docstrings of the public names and the rows of their arguments.

python docs/make_api.py
"""

import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nsa_kernel
from nsa_kernel._ext import signatures

PAGE = Path(__file__).with_name("api.md")
HEAD = """\
# Every public name

Made from the docstrings by `docs/make_api.py`. What the words mean: [concepts](concepts.md).

An **array** is anything that exports DLPack or a buffer, on the CPU or on a CUDA device: torch, NumPy, CuPy, JAX
(inputs). All arrays of one call live on one device. An output is allocated by the caller, is written in place, and
overlaps no other array. A shape with `>=` is the least that is needed. An argument without a default has to be given;
those after `*` go by name. Array values are not validated: negative lengths count as 0, sums saturate at INT32_MAX.

Errors say `<op>: <argument> <what it is>, must <what it should be>`, and nothing is written before a refusal. A
drop-in function that returns the count says after what fits is written that the count exceeds the capacity; other
errors of the drop-in functions have the name of the op that they call.\
"""
WIDTH = 100
KINDS = {"number": "int", "flag": "bool", "stream": "stream"}
MODULES = ("nsa_kernel.torch_ops", "nsa_kernel.sglang", "nsa_kernel.vllm")


def sections(doc: str) -> dict[str, str]:
    """The parts of a docstring by their headings; what stands before the first has none."""
    parts = re.split(r"^(Args|Returns|Raises|Attributes):\n", doc, flags=re.MULTILINE)
    return {
        "": parts[0].strip(),
        **dict(zip(parts[1::2], (textwrap.dedent(part).strip() for part in parts[2::2]), strict=True)),
    }


def definition(name: str, parameters: list[str], returns: str) -> list[str]:
    """A signature as code, in several lines where it is long."""
    end = f" -> {returns}" if returns else ""
    line = f"{name}({', '.join(parameters)}){end}"
    if len(line) > WIDTH:
        lines = [""]
        for parameter in parameters:
            if len(lines[-1]) + len(parameter) + 6 > WIDTH:
                lines.append("")
            lines[-1] += f"{' ' if lines[-1] else '    '}{parameter},"
        line = "\n".join([f"{name}(", *lines, f"){end}"])
    return ["```text", line, "```", ""]


def parameters(rows: list[dict[str, Any]]) -> list[str]:
    """The parameters of a signature."""
    found = []
    for row in rows:
        if row["keyword_only"] and "*" not in found:
            found.append("*")
        found.append(row["name"] if row["required"] else f"{row['name']}={row['default']!r}")
    return found


def takes(row: dict[str, Any]) -> str:
    """What an argument is: its words, its type, or its shape and dtype."""
    if row["words"]:
        return ", ".join(f"`{word}`" for word in row["words"])
    if row["role"] in KINDS:
        return KINDS[row["role"]]
    kind = f"{row['shape']} {'int32 or int64' if row['role'] == 'lengths' else 'int32'}"
    return f"out, {kind}" if "output" in row["role"] else kind


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each argument."""
    lines = ["| argument | takes | default | |", "|---|---|---|---|"]
    for row in rows:
        default = "" if row["required"] else f"`{row['default']!r}`"
        lines.append(f"| `{row['name']}` | {takes(row)} | {default} | {row['sentence']} |")
    return [*lines, ""]


def items(text: str) -> list[str]:
    """The entries of Raises or Attributes as a list."""
    entries = [" ".join(entry.split()) for entry in re.split(r"\n(?!\s)", text)]
    return [f"- `{name}`:{meaning}" for name, _, meaning in (entry.partition(":") for entry in entries)]


def body(text: str) -> list[str]:
    """The text of a docstring, its indented parts as code."""
    lines: list[str] = []
    for block in re.split(r"\n\n", text):
        indented = block.startswith("    ")
        lines += ["```text", textwrap.dedent(block), "```", ""] if indented else [block, ""]
    return lines


class Arguments:
    """The tables so far, so that equal ones stand once."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    def lines(self, name: str, rows: list[dict[str, Any]]) -> list[str]:
        """The table of a callable, or the callable that has the same arguments."""
        if not rows:
            return []
        others = [row for row in rows if row["role"] != "stream"]
        first = self.known.setdefault(repr(others or name), name)
        if first == name:
            return table(rows)
        return [f"Arguments: those of `{first}`{', but for `stream`' if others == rows else ''}.", ""]


def public_name(name: str, value: Any, signature: dict[str, Any], arguments: Arguments, level: str) -> Iterator[str]:
    """The section of a callable of the extension."""
    found = sections(inspect.getdoc(value) or "")
    rows = signature["arguments"]
    yield f"{level} {name}"
    yield ""
    returns = "" if signature["returns"] == "Self" else signature["returns"]
    yield from definition(name, parameters(rows), returns)
    yield from body(found[""])
    yield from arguments.lines(name, rows)
    if "Returns" in found:
        yield from ("Returns: " + " ".join(found["Returns"].split()), "")
    if "Raises" in found:
        yield from ("Raises:", "", *items(found["Raises"]), "")


def module(name: str) -> Iterator[str]:
    """The section of a module that adapts the package to a framework."""
    found = importlib.import_module(name)
    yield f"## {name}"
    yield ""
    yield from body(inspect.getdoc(found) or "")
    for public in getattr(found, "__all__", ()):
        function = getattr(found, public)
        rows = inspect.signature(function).parameters.values()
        names = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in rows]
        yield f"### {name}.{public}"
        yield ""
        yield from definition(public, names, "")
        yield from body(sections(inspect.getdoc(function) or "")[""].replace("``", "`"))


def page() -> str:
    """The whole page."""
    lines, arguments, known = [HEAD, ""], Arguments(), signatures()
    public = {name: getattr(nsa_kernel, name) for name in nsa_kernel.__all__}
    for name, signature in known.items():
        owner, _, method = name.partition(".")
        if owner in public:
            value = getattr(public[owner], method) if method else public[owner]
            lines += public_name(name, value, signature, arguments, "###" if method else "##")
            aliases = [other for other in public if public[other] is value and other != name]
            if aliases:
                lines += [f"Also under the name `{aliases[0]}`.", ""]
    for name, value in public.items():
        if isinstance(value, type) and issubclass(value, Exception):
            found = sections(inspect.getdoc(value) or "")
            bases = ", ".join(f"`{base.__name__}`" for base in value.__bases__)
            lines += [f"## {name}", "", f"A {bases}. {found['']}", "", *items(found["Attributes"]), ""]
        elif isinstance(value, str):
            lines += [f"## {name}", "", "The version of the package, as `nsa_kernel.get_kernel_info()` has it.", ""]
    for name in MODULES:
        lines += module(name)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
