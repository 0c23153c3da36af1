"""The functions that never wait as torch operators, so that `torch.compile` sees through them.

Importing this module registers `torch.ops.nsa_kernel.fill_draft_extend_metadata`, `.fill_replay_metadata`,
`.fill_indexer_decode_metadata`, `.fill_indexer_prefill_metadata` and `.fill_token_requests`. From then on the public
functions of the same names trace into these operators under `torch.compile(fullgraph=True)`; in eager mode they stay
the very same objects.
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
        if "output" in row["role"]:
            kind += f"({chr(ord('a') + written)}!)"
            written += 1
        parameter = f"{kind} {_OTHER_NAMES.get(row['name'], row['name'])}"
        if not row["required"]:
            nullable = "?" if row["default"] is None else ""
            parameter = f"{kind}{nullable} {row['name']}={row['default']!r}"
        parameters.append(parameter)
    return ", ".join(parameters)


def _register(function: Callable[..., None]) -> None:
    """Defines the operator of the public `function`, and has the compiler put it where `function` is called."""
    name = function.__name__
    _LIBRARY.define(f"{name}({_schema(name)}) -> ()", tags=torch.Tag.pt2_compliant_tag)
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    _OPERATORS.register_fake(f"nsa_kernel::{name}", lambda *args, **kwargs: None, lib=_LIBRARY)
    operator = getattr(torch.ops.nsa_kernel, name)

    def traced(*args: Any, stream: None = None, **kwargs: Any) -> None:
        if stream is not None:
            raise TypeError(f"{name}: stream is given, must be absent under torch.compile")
        if "mode" in kwargs:
            args = (kwargs.pop("mode"),)
        operator(*args, **kwargs)

    torch.compiler.substitute_in_graph(function, skip_signature_check=True)(traced)


_register(nsa_kernel.fill_draft_extend_metadata)
_register(nsa_kernel.fill_replay_metadata)
_register(nsa_kernel.fill_indexer_decode_metadata)
_register(nsa_kernel.fill_indexer_prefill_metadata)
_register(nsa_kernel.fill_token_requests)
