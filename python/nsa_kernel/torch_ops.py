"""The functions that never wait as torch operators, so that `torch.compile` sees through them.

Importing this module registers `torch.ops.nsa_kernel.fill_draft_extend_metadata` and
`torch.ops.nsa_kernel.fill_replay_metadata`. From then on the public functions of the same names trace into these
operators under `torch.compile(fullgraph=True)`; in eager mode they stay the very same objects.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo.decorators
from torch import library

import nsa_kernel

_TORCH: Any = torch  # the parts used below have no types
_OPERATORS: Any = library
_LIBRARY = _OPERATORS.Library("nsa_kernel", "DEF")


def _register(function: Callable[..., None], parameters: str) -> None:
    """Defines the operator of the public `function`, and has the compiler put it where `function` is called."""
    name = function.__name__
    _LIBRARY.define(f"{name}({parameters}) -> ()", tags=torch.Tag.pt2_compliant_tag)
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    _OPERATORS.register_fake(f"nsa_kernel::{name}", lambda *args, **kwargs: None, lib=_LIBRARY)
    operator = getattr(torch.ops.nsa_kernel, name)

    def traced(*args: Any, stream: None = None, **kwargs: Any) -> None:
        if stream is not None:
            raise TypeError(f"{name}: stream is given, must be absent under torch.compile")
        if "mode" in kwargs:
            args = (kwargs.pop("mode"),)
        operator(*args, **kwargs)

    # substitute_in_graph registers by identity, yet insists on Python's own function types; ours is nanobind's.
    decorators = _TORCH._dynamo.decorators
    is_function = decorators.is_function
    decorators.is_function = callable
    try:
        torch.compiler.substitute_in_graph(function, skip_signature_check=True)(traced)
    finally:
        decorators.is_function = is_function


_register(
    nsa_kernel.fill_draft_extend_metadata,
    "Tensor extend_seq_lens, Tensor seq_lens, SymInt nsa_index_topk, Tensor(a!) out_seqlens_expanded, "
    "Tensor(b!) out_nsa_cache_seqlens, Tensor(c!)? out_num_tokens=None, *, str variant='optimized'",
)
# The mode has another name here and goes by position, because torch's tracing passes a `mode` of its own by keyword.
_register(
    nsa_kernel.fill_replay_metadata,
    "str step, *, Tensor seq_lens, SymInt nsa_index_topk, Tensor? req_pool_indices=None, Tensor? req_to_token=None, "
    "Tensor? extend_seq_lens=None, SymInt? num_draft_tokens=None, SymInt page_size=1, Tensor(a!)? cache_seqlens=None, "
    "Tensor(b!)? cu_seqlens_k=None, Tensor(c!)? seqlens_expanded=None, Tensor(d!)? nsa_cache_seqlens=None, "
    "Tensor(e!)? nsa_cu_seqlens_k=None, Tensor(f!)? page_table=None, Tensor(g!)? real_page_table=None, "
    "Tensor(h!)? ctx_lens_2d=None, Tensor(i!)? num_tokens=None",
)
