"""Rows: one way to do an op each. A module of this folder offers the rows of one implementation, ours included.

A module has `draft_extend(device)`, `replay(device)`, `schedule(device)`, and for the functions of SGLang
`sglang_fused(device)` and `sglang_expand(device)`, or some of them, which return rows or raise `MissingError`.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

FLOOR, OURS, PEER = "floor", "ours", "peer"
MODULES = ("floors", "ours", "python_loop", "torch_operators", "triton_kernels", "sglang_kernels")


class MissingError(Exception):
    """The implementation is not on this machine; the message says what to do."""


@dataclass(frozen=True)
class Row:
    """One way to do an op. `bind` takes one set of buffers and returns the call that is timed."""

    name: str
    group: str
    bind: Callable[[Any], Callable[[], object]]
    computes: bool = True  # a floor writes no outputs, so there is nothing to check
    exact: bool = False  # leaves alone what the specification says is left alone
    returns_count: bool = False
    returns_lengths: bool = False  # as a new tensor, in place of any output
    stores_count: bool = False
    host: bool = True
    in_graph: bool = False  # can be captured, and its device time is its own
    narrow: Callable[[Any], Any] = lambda buffers: buffers  # to the outputs that it writes, where not all
    unfit: Callable[[Any], str | None] = lambda case: None  # why a case is not run


def schedule_alone(buffers: Any) -> Any:
    """Narrows buffers of `replay` to the schedule."""
    return buffers.narrowed(lambda name: name == "schedule")


def rows(op: str, device: str) -> tuple[list[Row], list[str]]:
    """Returns the rows of an op on a device, and a line for each implementation that is missing."""
    found: list[Row] = []
    missing: list[str] = []
    for module in MODULES:
        try:
            found += _module_rows(module, op, device)
        except MissingError as reason:
            missing.append(f"{module.replace('_', ' ')}: skipped, {reason}")
    return found, missing


def _module_rows(module: str, op: str, device: str) -> Iterator[Row]:
    try:
        loaded = importlib.import_module(f"{__name__}.{module}")
    except ModuleNotFoundError as error:
        raise MissingError(f"{error.name} is not installed") from None
    return getattr(loaded, op, lambda device: [])(device)
