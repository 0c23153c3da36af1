"""The asynchronous functions as torch operators, so that what torch records has them in it.

Importing this module registers `torch.ops.nsa_kernel.<function>` for each public function that fills arrays and
returns nothing. From then on these functions trace into their operators under `torch.compile(fullgraph=True)` and
strict `torch.export`; in eager mode they stay the very same objects. `torch.jit.trace`, `make_fx` and non-strict
`torch.export` record operators alone: call `torch.ops.nsa_kernel.<function>` there. The run of a plan breaks the graph
of `torch.compile`, and is refused by all the others.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo.decorators
from torch import library

import nsa_kernel

from ._ext import signatures

_OPERATORS: Any = library  # the parts used below have no types
_LIBRARY = _OPERATORS.Library("nsa_kernel", "DEF")

# torch's tracing passes a `mode` of its own by keyword, so ours has another name here and goes by position.
_OTHER_NAMES = {"mode": "step"}

# Below autograd, where writes are counted, and what comes after it.
_BELOW_COUNTING = torch._C._after_ADInplaceOrView_keyset


def _is_output(row: dict[str, Any]) -> bool:
    return "output" in row["role"]


def _schema(function: str) -> str:
    """The parameters of a function in the language of torch's schemas; what is written has a letter of its own."""
    parameters, by_name, written = [], False, 0
    for row in signatures()[function]["arguments"]:
        if row["role"] == "stream":
            continue
        if row["keyword_only"] and not by_name:
            parameters.append("*")
            by_name = True
        kind = {"number": "SymInt", "word": "str", "flag": "bool"}.get(row["role"], "Tensor")
        if _is_output(row):
            kind += f"({chr(ord('a') + written)}!)"
            written += 1
        parameter = f"{kind} {_OTHER_NAMES.get(row['name'], row['name'])}"
        if not row["required"]:
            nullable = "?" if row["default"] is None else ""
            parameter = f"{kind}{nullable} {row['name']}={row['default']!r}"
        parameters.append(parameter)
    return ", ".join(parameters)


def _count_writes(operator: Any, outputs: list[tuple[int, str]]) -> Callable[..., None]:
    """A kernel that raises the version of each output, by which autograd notices writes, and calls the next one."""

    def counting(keys: Any, *args: Any, **kwargs: Any) -> None:
        given = [args[i] if i < len(args) else kwargs.get(name) for i, name in outputs]
        torch.autograd.graph.increment_version([tensor for tensor in given if tensor is not None])
        with torch._C._AutoDispatchBelowADInplaceOrView():
            operator.redispatch(keys & _BELOW_COUNTING, *args, **kwargs)

    return counting


def _register(name: str) -> None:
    """Defines the operator of a public function, and has the compiler put it where the function is called."""
    function = getattr(nsa_kernel, name)
    rows = signatures()[name]["arguments"]
    _LIBRARY.define(f"{name}({_schema(name)}) -> ()", tags=torch.Tag.pt2_compliant_tag)
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    _OPERATORS.register_fake(f"nsa_kernel::{name}", lambda *args, **kwargs: None, lib=_LIBRARY)
    operator = getattr(torch.ops.nsa_kernel, name)
    outputs = [(i, row["name"]) for i, row in enumerate(rows) if _is_output(row)]
    _LIBRARY.impl(name, _count_writes(operator.default, outputs), "ADInplaceOrView", with_keyset=True)

    def traced(*args: Any, stream: None = None, **kwargs: Any) -> None:
        if stream is not None:
            raise TypeError(f"{name}: stream is given, must be absent under torch.compile")
        if "mode" in kwargs:
            args = (kwargs.pop("mode"), *args)
        operator(*args, **kwargs)

    torch.compiler.substitute_in_graph(function, skip_signature_check=True)(traced)


for _name, _signature in signatures().items():
    if _name in nsa_kernel.__all__ and _signature["returns"] == "None":
        _register(_name)
