"""Writes the stub of the extension, from the rows that it hands out: stub.py <folder of the extension> <output>."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

HEAD = '''\
from typing import Any, Literal, Protocol, Self, SupportsIndex, TypeAlias, type_check_only

from typing_extensions import Buffer

__version__: str

@type_check_only
class ExportsDLPack(Protocol):
    """Any array that exports DLPack, on the CPU or on a CUDA device."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...

Array: TypeAlias = ExportsDLPack | Buffer

class CudaError(RuntimeError):
{cuda_error}
    code: int
'''
INDENT = " " * 4


def annotation(row: dict[str, Any]) -> str:
    """The type of one argument."""
    if row["role"] == "stream":
        return "Any"
    if row["words"]:
        kind = f"Literal[{', '.join(map(repr, row['words']))}]"
    else:
        kind = {"number": "SupportsIndex", "flag": "bool"}.get(row["role"], "Array")
    return kind if row["required"] or row["default"] is not None else f"{kind} | None"


def definition(name: str, first: str, signature: dict[str, Any], doc: str | None) -> str:
    """A function, with an argument a line; `first` is self or cls, or empty."""
    parameters, by_name = [first] if first else [], False
    for row in signature["arguments"]:
        if row["keyword_only"] and not by_name:
            parameters.append("*")
            by_name = True
        default = "" if row["required"] else f" = {row['default']!r}"
        parameters.append(f"{row['name']}: {annotation(row)}{default}")
    head = f"def {name}({', '.join(parameters)}) -> {signature['returns']}:"
    if len(head) > 100:
        lines = "".join(f"{INDENT}{parameter},\n" for parameter in parameters)
        head = f"def {name}(\n{lines}) -> {signature['returns']}:"
    return f"{head} ...\n" if doc is None else f"{head}\n{indented(docstring(doc))}"


def docstring(doc: str) -> str:
    """The text as a literal."""
    doc = doc.rstrip()
    return f'"""{doc}\n"""\n' if "\n" in doc else f'"""{doc}"""\n'


def indented(text: str) -> str:
    return "".join(INDENT + line if line.strip() else line for line in text.splitlines(keepends=True))


def stub(extension: ModuleType) -> str:
    """The whole stub."""
    parts = [HEAD.format(cuda_error=indented(docstring(extension.CudaError.__doc__)))]
    signatures = extension.signatures()
    for name, signature in signatures.items():
        if "." in name:
            continue
        value = getattr(extension, name)
        if isinstance(value, type):
            run = definition("run", "self", signatures[f"{name}.run"], value.run.__doc__)
            create = definition("__new__", "cls", signature, None)
            parts.append(f"class {name}:\n{indented(docstring(value.__doc__))}\n{indented(create)}\n{indented(run)}")
        else:
            parts.append(definition(name, "", signature, value.__doc__))
    others = [name for name in vars(extension) if not name.startswith("_") and name not in {*signatures, "CudaError"}]
    parts += [f"{name} = {getattr(extension, name).__name__}\n" for name in others]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    Path(sys.argv[2]).write_text(stub(importlib.import_module("_ext")))
