"""The Triton kernels that vLLM launches as `kernel[grid](...)`, with their arguments."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch

import nsa_kernel
from nsa_kernel.vllm.batch import head
from nsa_kernel.vllm.own import own, replaces
from nsa_kernel.vllm.versions import DEEP_GEMM, KERNELS

_deep_gemm = importlib.import_module(DEEP_GEMM)
_dispatcher = importlib.import_module("vllm.triton_utils.dispatcher")

_DECODE = f"{KERNELS}:_indexer_decode_metadata_kernel"
_REQUESTS = f"{KERNELS}:_token_request_mapping_kernel"

# vLLM's registry of kernels drops the grids. Its own kernels get them from their arguments again.
_GRIDS: dict[str, Callable[[dict[str, int]], int]] = {
    _DECODE: lambda of: max(of["num_reqs"], of["num_tokens"] + -(-(of["capacity"] - of["num_tokens"]) // 256)),
    _REQUESTS: lambda of: -(-of["num_tokens"] // 256),
}


@replaces(_DECODE)
def indexer_decode_metadata(
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    block_table: torch.Tensor,
    output_seq_lens: torch.Tensor,
    output_block_table: torch.Tensor,
    decode_lens: torch.Tensor,
    indices: torch.Tensor,
    per_req_lens: torch.Tensor,
    num_reqs: int,
    num_tokens: int,
    capacity: int,
    input_stride: int,
    output_stride: int,
    BLOCK_COLS: int,  # noqa: N803 (vLLM passes it by this name)
    num_warps: int = 4,
) -> None:
    """Flattens decodes for SM100.

    A row of the table is copied as far as its request has entries, in pages of the smallest size that vLLM uses.
    """
    nsa_kernel.fill_indexer_decode_metadata(
        "rows",
        seq_lens=head(seq_lens, num_reqs),
        query_start_loc=head(query_start_loc, num_reqs + 1),
        block_table=block_table,
        num_tokens=num_tokens,
        page_size=min(_deep_gemm.get_paged_mqa_page_sizes()),
        decode_seq_lens=head(output_seq_lens, capacity),
        decode_lens=decode_lens,
        per_req_lens=head(per_req_lens, num_reqs),
        indices=indices,
        expanded_block_table=output_block_table,
    )


@replaces(_REQUESTS)
def token_request_mapping(
    query_start_loc: torch.Tensor,
    output: torch.Tensor,
    num_reqs: int,
    num_mapped: int,
    num_tokens: int,
    num_warps: int = 4,
) -> None:
    """Maps tokens to requests."""
    requests = head(query_start_loc, num_reqs + 1)
    nsa_kernel.fill_token_requests(requests, head(output, num_tokens), num_mapped=num_mapped)


def replace(kernels: dict[str, Any], replacements: dict[str, Callable[..., Any]]) -> None:
    """Replaces kernels through vLLM's own registry, which reaches every module that has them."""
    for target, kernel in kernels.items():
        own[target] = _launcher(kernel, _GRIDS[target], inspect.signature(replacements[target]))
    _dispatcher.register_kernels({target.replace(":", "."): function for target, function in replacements.items()})


def _launcher(kernel: Any, grid: Callable[[dict[str, int]], int], signature: inspect.Signature) -> Callable[..., None]:
    def launch(*args: Any, **kwargs: Any) -> None:
        kernel[(grid(signature.bind(*args, **kwargs).arguments),)](*args, **kwargs)

    return launch
