"""SGLang's metadata functions on this library, and the plug-in that puts them in their place.

The functions have the names, signatures and effects of SGLang 0.5.23's, on CUDA and CPU tensors alike. They take what
SGLang's kernels define and no more: a length that no token fills is 0, a table row is written over its live prefix.

A call on the same buffers again runs the plan of the call before, which `fill_replay_metadata` keeps without keeping a
tensor alive: it knows a plan by the addresses, shapes, strides, dtypes and numbers that it reads from every call. That
costs no Python: a key of the same facts made here would cost more than all the rest of the call.
"""

import contextlib
import importlib
import inspect
import logging
import os
from collections.abc import Callable
from typing import Any

import torch

import nsa_kernel

logger = logging.getLogger(__name__)


def fused_dsa_decode_metadata(
    seq_lens: torch.Tensor,
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    cache_seqlens: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    page_table_1: torch.Tensor | None,
    dsa_cache_seqlens: torch.Tensor,
    dsa_cu_seqlens_k: torch.Tensor,
    real_page_table: torch.Tensor,
    bs: int,
    max_len: int,
    dsa_index_topk: int,
    physical_page_size: int,
) -> None:
    """Refreshes the metadata of a decode step, as SGLang's function of this name does."""
    if _unsaid:
        _say()
    slots, pages = _tables(page_table_1, real_page_table, bs, max_len, physical_page_size)
    nsa_kernel.fill_replay_metadata(
        "decode",
        seq_lens=_head(seq_lens, bs),
        nsa_index_topk=dsa_index_topk,
        req_pool_indices=_head(req_pool_indices, bs),
        req_to_token=req_to_token,
        page_size=physical_page_size,
        cache_seqlens=cache_seqlens,
        cu_seqlens_k=cu_seqlens_k,
        nsa_cache_seqlens=_head(dsa_cache_seqlens, bs),
        nsa_cu_seqlens_k=_head(dsa_cu_seqlens_k, bs + 1),
        page_table=slots,
        real_page_table=pages,
    )


def fused_dsa_target_verify_metadata(
    seq_lens: torch.Tensor,
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    cache_seqlens: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    page_table_1: torch.Tensor | None,
    seqlens_expanded: torch.Tensor,
    dsa_cache_seqlens: torch.Tensor,
    dsa_cu_seqlens_k: torch.Tensor,
    real_page_table: torch.Tensor,
    bs: int,
    max_seqlen_k: int,
    dsa_index_topk: int,
    physical_page_size: int,
    next_n: int,
    paged_mqa_ctx_lens_2d: torch.Tensor | None = None,
) -> None:
    """Refreshes the metadata of a target-verify step, as SGLang's function of this name does."""
    if _unsaid:
        _say()
    rows = bs * next_n
    slots, pages = _tables(page_table_1, real_page_table, rows, max_seqlen_k, physical_page_size)
    nsa_kernel.fill_replay_metadata(
        "target_verify",
        seq_lens=_head(seq_lens, bs),
        nsa_index_topk=dsa_index_topk,
        req_pool_indices=_head(req_pool_indices, bs),
        req_to_token=req_to_token,
        num_draft_tokens=next_n,
        page_size=physical_page_size,
        cache_seqlens=cache_seqlens,
        cu_seqlens_k=cu_seqlens_k,
        seqlens_expanded=_head(seqlens_expanded, rows),
        nsa_cache_seqlens=_head(dsa_cache_seqlens, rows),
        nsa_cu_seqlens_k=_head(dsa_cu_seqlens_k, rows + 1),
        page_table=slots,
        real_page_table=pages,
        ctx_lens_2d=paged_mqa_ctx_lens_2d,
    )


def fused_dsa_draft_extend_metadata(
    seq_lens: torch.Tensor,
    extend_seq_lens: torch.Tensor,
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    cache_seqlens: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    page_table_1: torch.Tensor | None,
    seqlens_expanded: torch.Tensor,
    dsa_cache_seqlens: torch.Tensor,
    dsa_cu_seqlens_k: torch.Tensor,
    real_page_table: torch.Tensor,
    bs: int,
    total_len: int,
    max_seqlen_k: int,
    dsa_index_topk: int,
    physical_page_size: int,
    max_extend_len: int,
    max_total_len: int,
    static_extend_len: bool = False,
) -> None:
    """Refreshes the metadata of a draft-extend step, as SGLang's function of this name does.

    `max_total_len` sizes blocks in SGLang's kernel and means nothing here.
    """
    if _unsaid:
        _say()
    rows = total_len if bs else 0
    # Equal lengths that fill `total_len` are known to the host; the tensor that repeats them need not be read.
    uniform = static_extend_len and total_len == bs * max_extend_len
    slots, pages = _tables(page_table_1, real_page_table, rows, max_seqlen_k, physical_page_size)
    nsa_kernel.fill_replay_metadata(
        "draft_extend",
        seq_lens=_head(seq_lens, bs),
        nsa_index_topk=dsa_index_topk,
        req_pool_indices=_head(req_pool_indices, bs),
        req_to_token=req_to_token,
        extend_seq_lens=None if uniform else _head(extend_seq_lens, bs),
        num_draft_tokens=max_extend_len,
        page_size=physical_page_size,
        cache_seqlens=cache_seqlens,
        cu_seqlens_k=cu_seqlens_k,
        seqlens_expanded=_head(seqlens_expanded, rows),
        nsa_cache_seqlens=_head(dsa_cache_seqlens, rows),
        nsa_cu_seqlens_k=_head(dsa_cu_seqlens_k, rows + 1),
        page_table=slots,
        real_page_table=pages,
    )


def seqlens_expand_triton(
    extend_seq_lens: torch.Tensor,
    seq_lens: torch.Tensor,
    total_len: int,
    max_q_len: int,
) -> torch.Tensor:
    """Returns a new tensor with the length that each token sees, as SGLang's function of this name does.

    `max_q_len` sizes blocks in SGLang's kernel and means nothing here.
    """
    if _unsaid:
        _say()
    output = torch.empty(total_len, dtype=torch.int32, device=extend_seq_lens.device)
    nsa_kernel.fill_replay_metadata(
        "draft_extend",
        seq_lens=_head(seq_lens, extend_seq_lens.numel()),
        nsa_index_topk=0,
        extend_seq_lens=extend_seq_lens,
        seqlens_expanded=output,
    )
    return output


def _head(array: torch.Tensor, size: int) -> torch.Tensor:
    """The first `size` elements; most often that is all of them."""
    return array if array.numel() == size else array[:size]


def _tables(
    page_table_1: torch.Tensor | None,
    real_page_table: torch.Tensor,
    rows: int,
    max_len: int,
    page_size: int,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The two tables, as far as SGLang writes them."""
    if rows == 0:
        return None, None
    if page_size == 1:
        if page_table_1 is None:
            raise ValueError("fused_dsa_*_metadata: page_table_1 is None, must be given when physical_page_size is 1")
        return _corner(page_table_1, rows, max_len), None
    if real_page_table is None:
        raise ValueError(
            f"fused_dsa_*_metadata: real_page_table is None, must be given when physical_page_size is {page_size}"
        )
    pages = _corner(real_page_table, rows, -(-max_len // page_size))
    return None if page_table_1 is None else _corner(page_table_1, rows, max_len), pages


def _corner(table: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """The first `rows` and `cols`; most often that is all of them."""
    return table if table.numel() == rows * cols else table[:rows, :cols]


# The plug-in.

_METADATA = "sglang.kernels.ops.attention.dsa.metadata"
_PAD = "sglang.kernels.ops.attention.pad"
_REPLACEMENTS: dict[str, Callable[..., Any]] = {
    f"{_METADATA}.fused_dsa_decode_metadata": fused_dsa_decode_metadata,
    f"{_METADATA}.fused_dsa_target_verify_metadata": fused_dsa_target_verify_metadata,
    f"{_METADATA}.fused_dsa_draft_extend_metadata": fused_dsa_draft_extend_metadata,
    f"{_PAD}.seqlens_expand_triton": seqlens_expand_triton,
}

_unsaid: list[str] = []


def register() -> None:
    """Has SGLang's hook registry replace all four functions, or none; the log says which, and why.

    The entry point of the group ``sglang.srt.plugins``. The registry reaches every module that holds the functions
    under any name, so the modules that define them are the only targets.
    """
    obstacle = _obstacle()
    if obstacle:
        _unsaid.append(f"nsa_kernel leaves SGLang's metadata functions in place: {obstacle}")
    else:
        hooks = importlib.import_module("sglang.srt.plugins.hook_registry")
        for target, function in _REPLACEMENTS.items():
            hooks.HookRegistry.register(target, function, hooks.HookType.REPLACE)
        names = ", ".join(function.__name__ for function in _REPLACEMENTS.values())
        _unsaid.append(f"nsa_kernel {nsa_kernel.__version__} replaces {names}")
    # SGLang's processes load plug-ins before they set up logging; there the line waits for the first call.
    if logger.isEnabledFor(logging.INFO):
        _say()


def _say() -> None:
    with contextlib.suppress(IndexError):  # another thread was first
        logger.info(_unsaid.pop())


def _obstacle() -> str:
    """Why SGLang has to stay as it is; empty where nothing speaks against it."""
    if os.environ.get("NSA_KERNEL_SGLANG") == "0":
        return "NSA_KERNEL_SGLANG is 0"
    if torch.version.hip is not None:
        return "torch is built for ROCm"
    if not nsa_kernel.is_cuda_kernel_available():
        return str(nsa_kernel.get_kernel_info()["reason"])
    for target, function in _REPLACEMENTS.items():
        module, _, name = target.rpartition(".")
        try:
            original = getattr(importlib.import_module(module), name)
        except Exception as error:  # importing it runs SGLang's code
            return f"{target} cannot be found ({error})"
        try:
            known = _parameters(original) == _parameters(function)
            signature = str(inspect.signature(original))
        except (TypeError, ValueError) as error:
            return f"{target} has no signature ({error})"
        if not known:
            return f"{target} has an unknown signature: {signature}"
    return ""


def _parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """Name, kind and default of each parameter."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]
