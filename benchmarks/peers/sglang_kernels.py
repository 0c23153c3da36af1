"""SGLang's own Triton kernels, from its released wheel; `peers/fetch.py` brings them.

`fused_call` and `expand_call` call a function as SGLang does, out of any module that has SGLang's functions.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from cases import PAGE_SIZE, TOPK

from peers import PEER, MissingError, Row
from peers.fetch import FOLDER
from peers.names import BEFORE, SGLANG_EXPAND, SGLANG_FUSED


@cache
def _load(name: str) -> ModuleType:
    path = Path(os.environ.get("NSA_KERNEL_PEERS", FOLDER)) / name
    if not path.exists():
        raise MissingError("fetch it with `python benchmarks/peers/fetch.py`")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _gpu_only(device: str) -> None:
    if device == "cpu":
        raise MissingError("it needs a GPU")


def expand_call(module: Any, buffers: Any) -> Callable[[], Any]:
    """The host knows the number of tokens, as it does in the engine."""
    arguments = buffers.extend_seq_lens, buffers.seq_lens, buffers.total, buffers.case.tokens
    return partial(module.seqlens_expand_triton, *arguments)


def _expand(buffers: Any) -> Callable[[], object]:
    """The clipped lengths are an operator more."""
    expand, total = expand_call(_load("sglang_pad.py"), buffers), buffers.total
    expanded, clipped = buffers.out_seqlens_expanded[:total], buffers.out_nsa_cache_seqlens[:total]

    def fill() -> None:
        lengths = expand()
        expanded.copy_(lengths)
        torch.clamp(lengths, max=TOPK, out=clipped)

    return fill


def fused_call(module: Any, buffers: Any) -> Callable[[], object]:
    """As the engine calls it before a replay: the host knows the totals, and scans the table over its whole width."""
    case, outputs = buffers.case, buffers.outputs
    arguments = {
        "seq_lens": buffers.seq_lens,
        "req_pool_indices": buffers.req_pool_indices,
        "req_to_token": buffers.req_to_token,
        "cache_seqlens": outputs["cache_seqlens"],
        "cu_seqlens_k": outputs["cu_seqlens_k"],
        "page_table_1": outputs.get("page_table"),
        "dsa_cache_seqlens": outputs["nsa_cache_seqlens"],
        "dsa_cu_seqlens_k": outputs["nsa_cu_seqlens_k"],
        "real_page_table": outputs["real_page_table"],
        "bs": case.bs,
        "dsa_index_topk": TOPK,
        "physical_page_size": PAGE_SIZE,
    }
    if case.mode == "decode":
        return partial(module.fused_dsa_decode_metadata, **arguments, max_len=case.width)
    arguments |= {"seqlens_expanded": outputs["seqlens_expanded"], "max_seqlen_k": case.width}
    if case.mode == "target_verify":
        return partial(
            module.fused_dsa_target_verify_metadata,
            **arguments,
            next_n=case.tokens,
            paged_mqa_ctx_lens_2d=outputs["ctx_lens_2d"],
        )
    return partial(
        module.fused_dsa_draft_extend_metadata,
        **arguments,
        extend_seq_lens=buffers.extend_seq_lens,
        total_len=buffers.total,
        max_extend_len=case.tokens,
        max_total_len=case.rows,
        static_extend_len=not case.ragged,
    )


def draft_extend(device: str) -> list[Row]:
    _gpu_only(device)
    _load("sglang_pad.py")
    return [Row(SGLANG_EXPAND, PEER, _expand, in_graph=True)]


def replay(device: str) -> list[Row]:
    _gpu_only(device)
    return [Row(SGLANG_FUSED, PEER, partial(fused_call, _load("sglang_dsa_metadata.py")), in_graph=True)]


def sglang_fused(device: str) -> list[Row]:
    return [replace(row, name=BEFORE) for row in replay(device)]


def sglang_expand(device: str) -> list[Row]:
    _gpu_only(device)
    bind = partial(expand_call, _load("sglang_pad.py"))
    return [Row(BEFORE, PEER, bind, computes=False, returns_lengths=True, in_graph=True)]
