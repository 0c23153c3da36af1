"""SGLang's metadata functions on this library.

The functions have the names, signatures and effects of SGLang 0.5.23's, on CUDA and CPU tensors alike. They take what
SGLang's kernels define and no more: a length that no token fills is 0, a table row is written over its live prefix.

A call keeps nothing: to read every array anew costs less than to find a plan by the same facts.
"""

import torch

import nsa_kernel
from nsa_kernel.sglang.log import log


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
    if log.unsaid:
        log.say()
    slots, pages = _tables(page_table_1, real_page_table, bs, max_len, physical_page_size)
    nsa_kernel.fill_replay_metadata(
        "decode",
        seq_lens=head(seq_lens, bs),
        nsa_index_topk=dsa_index_topk,
        req_pool_indices=head(req_pool_indices, bs),
        req_to_token=req_to_token,
        page_size=physical_page_size,
        cache_seqlens=None if _same_memory(cache_seqlens, seq_lens) else cache_seqlens,
        cu_seqlens_k=cu_seqlens_k,
        nsa_cache_seqlens=head(dsa_cache_seqlens, bs),
        nsa_cu_seqlens_k=head(dsa_cu_seqlens_k, bs + 1),
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
    if log.unsaid:
        log.say()
    rows = bs * next_n
    slots, pages = _tables(page_table_1, real_page_table, rows, max_seqlen_k, physical_page_size)
    nsa_kernel.fill_replay_metadata(
        "target_verify",
        seq_lens=head(seq_lens, bs),
        nsa_index_topk=dsa_index_topk,
        req_pool_indices=head(req_pool_indices, bs),
        req_to_token=req_to_token,
        num_draft_tokens=next_n,
        page_size=physical_page_size,
        cache_seqlens=cache_seqlens,
        cu_seqlens_k=cu_seqlens_k,
        seqlens_expanded=head(seqlens_expanded, rows),
        nsa_cache_seqlens=head(dsa_cache_seqlens, rows),
        nsa_cu_seqlens_k=head(dsa_cu_seqlens_k, rows + 1),
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
    if log.unsaid:
        log.say()
    rows = total_len if bs else 0
    # Equal lengths that fill `total_len` are known to the host; the tensor that repeats them need not be read.
    uniform = static_extend_len and total_len == bs * max_extend_len
    slots, pages = _tables(page_table_1, real_page_table, rows, max_seqlen_k, physical_page_size)
    nsa_kernel.fill_replay_metadata(
        "draft_extend",
        seq_lens=head(seq_lens, bs),
        nsa_index_topk=dsa_index_topk,
        req_pool_indices=head(req_pool_indices, bs),
        req_to_token=req_to_token,
        extend_seq_lens=None if uniform else head(extend_seq_lens, bs),
        num_draft_tokens=max_extend_len,
        page_size=physical_page_size,
        cache_seqlens=cache_seqlens,
        cu_seqlens_k=cu_seqlens_k,
        seqlens_expanded=head(seqlens_expanded, rows),
        nsa_cache_seqlens=head(dsa_cache_seqlens, rows),
        nsa_cu_seqlens_k=head(dsa_cu_seqlens_k, rows + 1),
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
    if log.unsaid:
        log.say()
    output = torch.empty(total_len, dtype=torch.int32, device=extend_seq_lens.device)
    nsa_kernel.fill_replay_metadata(
        "draft_extend",
        seq_lens=head(seq_lens, extend_seq_lens.numel()),
        nsa_index_topk=0,
        extend_seq_lens=extend_seq_lens,
        seqlens_expanded=output,
    )
    return output


def head(array: torch.Tensor, size: int) -> torch.Tensor:
    """The first `size` elements; most often that is all of them."""
    return array if array.numel() == size else array[:size]


def _same_memory(output: torch.Tensor, lengths: torch.Tensor) -> bool:
    """Whether they are one buffer, which int32 lengths of a decode step are: what SGLang writes there is there."""
    return lengths.dtype is torch.int32 and output.data_ptr() == lengths.data_ptr()


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
