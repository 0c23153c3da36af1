"""The parts of a build of vLLM's sparse indexer that vLLM also calls for mixed batches, prefills and drafts."""

from typing import Any, Literal

import torch

import nsa_kernel
from nsa_kernel.vllm.batch import head
from nsa_kernel.vllm.decode import indexer, known_of
from nsa_kernel.vllm.own import replaces
from nsa_kernel.vllm.versions import BUILDER, INDEXER


@replaces(f"{BUILDER}._prepare_decode_tensors")
def prepare_decode_tensors(
    self: Any,
    seq_lens: torch.Tensor,
    block_table: torch.Tensor,
    decode_lens: torch.Tensor,
    decode_lens_cpu: torch.Tensor,
    query_start_loc: torch.Tensor,
    num_decodes: int,
    num_decode_tokens: int,
    use_native: bool,
    next_n: int,
    max_decode_len: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, bool]:
    """`DeepseekV32IndexerMetadataBuilder._prepare_decode_tensors`.

    The lengths are those that vLLM localizes and divides afterwards, which never makes them longer.
    """
    if use_native:
        if next_n > 1:
            lengths = self.decode_seq_lens_buffer[: num_decodes * max_decode_len].view(num_decodes, max_decode_len)
            nsa_kernel.fill_indexer_decode_metadata(
                "native", seq_lens=seq_lens, max_query_len=max_decode_len, decode_seq_lens=lengths
            )
            seq_lens = lengths
        uneven = int(decode_lens_cpu.min()) != max_decode_len
        return seq_lens, block_table, decode_lens, num_decodes, uneven
    # The launch writes decode_lens_buffer, where decode_lens lies; vLLM keeps a copy by request.
    nsa_kernel.fill_indexer_decode_metadata(
        "rows",
        seq_lens=seq_lens,
        query_lens=self.per_req_decode_lens_buffer[:num_decodes],
        block_table=block_table,
        num_tokens=num_decode_tokens,
        page_size=self.kv_cache_spec.num_states * self.compress_ratio,
        decode_seq_lens=self.decode_seq_lens_buffer,
        decode_lens=self.decode_lens_buffer,
        expanded_block_table=self.expanded_block_table_buffer,
    )
    return (
        self.decode_seq_lens_buffer[:num_decode_tokens],
        self.expanded_block_table_buffer[:num_decode_tokens],
        self.decode_lens_buffer[:num_decode_tokens],
        num_decode_tokens,
        False,
    )


@replaces(f"{BUILDER}.update_draft_decode_metadata")
def update_draft_decode_metadata(self: Any, metadata: Any) -> Any:
    """`DeepseekV32IndexerMetadataBuilder.update_draft_decode_metadata`: refreshes a step of one token a request."""
    decode, num_tokens, table = metadata.decode, metadata.num_decode_tokens, metadata.block_table
    if (
        decode is None
        or num_tokens == 0
        or metadata.num_prefills
        or metadata.num_decodes != num_tokens
        or decode.seq_lens.numel() != num_tokens
        or table is None
        or self.dcp_world_size != 1
    ):
        return NotImplemented
    seq_lens, lengths = head(metadata.seq_lens, num_tokens), decode.seq_lens.view(-1)
    known = known_of(self)
    arguments: dict[str, Any] = {
        "seq_lens": seq_lens,
        "max_query_len": 1,
        "compress_ratio": self.compress_ratio,
        "decode_seq_lens": None if lengths.data_ptr() == seq_lens.data_ptr() else lengths,
        "decode_lens": decode.decode_lens,
        "per_req_lens": decode.per_req_decode_lens,
    }
    if decode.block_table.data_ptr() == table.data_ptr():
        layout: Literal["native", "rows"] = "native"
    else:
        layout = "rows"
        arguments |= {
            "block_table": head(table, num_tokens),
            "num_tokens": num_tokens,
            "page_size": self.kv_cache_spec.num_states,
            "indices": decode.indices,
            "expanded_block_table": decode.block_table,
        }
    scheduled = known.schedule_arguments(layout, decode.schedule_metadata)
    nsa_kernel.fill_indexer_decode_metadata(layout, **arguments, **scheduled)
    if self.compress_ratio > 1:
        positions = self.arange_buffer
        indexer.get_compressed_slot_mapping(
            num_tokens,
            positions[:num_tokens],
            positions[: num_tokens + 1],
            metadata.seq_lens,
            decode.block_table,
            self.kv_cache_spec.num_states,
            self.compress_ratio,
            out=metadata.slot_mapping,
        )
    if known.schedules and not scheduled:
        made = indexer.get_paged_mqa_logits_metadata(
            decode.seq_lens, self.kv_cache_spec.num_states, self.num_sms, indices=decode.indices
        )
        decode.schedule_metadata.copy_(made)
    return None


@replaces(f"{INDEXER}:build_prefill_chunk_metadata")
def build_prefill_chunk_metadata(
    start_idx: int,
    end_idx: int,
    query_start_loc: torch.Tensor,
    query_start_loc_cpu: torch.Tensor,
    uncompressed_seq_lens: torch.Tensor,
    compressed_seq_lens: torch.Tensor,
    compressed_seq_lens_cpu: torch.Tensor,
    block_table: torch.Tensor,
    compress_ratio: int,
    query_slice: slice | None = None,
    skip_kv_gather: bool = False,
    dcp_rank: int = 0,
    dcp_world_size: int = 1,
    cp_kv_cache_interleave_size: int = 1,
    pcp_plan: Any = None,
) -> Any:
    """The metadata of one chunk of prefill, as vLLM's function of this name makes it.

    The totals of a rank come from the lengths that the host has, as those of all ranks do; vLLM waits for the device.
    """
    if pcp_plan is not None:
        return NotImplemented
    lengths = compressed_seq_lens_cpu.numpy()[start_idx:end_idx].tolist()
    total = sum(lengths)
    if total == 0:
        return None
    starts = query_start_loc_cpu.numpy()
    first_token = starts.item(start_idx)
    first_row, end_row = 0, starts.item(end_idx) - first_token
    if query_slice is not None:
        first_row, end_row, _ = query_slice.indices(end_row)

    num_reqs, rows = end_idx - start_idx, end_row - first_row
    # One allocation, where each starts at a multiple of 16 bytes: for others, vLLM's Triton kernels are compiled again.
    row_gap, state_gap = -rows % 4, -total % 4
    sizes: tuple[int, ...] = (rows, row_gap, rows, row_gap, total, state_gap, num_reqs + 1)
    if row_gap == state_gap == 0:
        sizes = sizes[::2]
    parts = block_table.new_empty(sum(sizes), dtype=torch.int32).unsafe_split_with_sizes(sizes)
    cu_seqlen_ks, cu_seqlen_ke, token_to_seq, cu_seq_lens = parts if len(parts) == 4 else parts[::2]
    local_cu_seq_lens, local_total, max_local_total = None, total, total
    if dcp_world_size > 1:
        local_cu_seq_lens = torch.empty_like(cu_seq_lens)
        by_rank = indexer.get_dcp_local_seq_lens(
            compressed_seq_lens_cpu[start_idx:end_idx], dcp_world_size, None, cp_kv_cache_interleave_size
        )
        totals = by_rank.sum(0).tolist()
        local_total, max_local_total = totals[dcp_rank], max(totals)
    nsa_kernel.fill_indexer_prefill_metadata(
        query_start_loc=query_start_loc,
        seq_lens=uncompressed_seq_lens,
        first_request=start_idx,
        end_request=end_idx,
        first_row=first_row,
        end_row=end_row,
        compress_ratio=compress_ratio,
        dcp_world=dcp_world_size,
        dcp_rank=dcp_rank,
        dcp_interleave=cp_kv_cache_interleave_size,
        cu_seq_lens=cu_seq_lens,
        local_cu_seq_lens=local_cu_seq_lens,
        token_to_seq=token_to_seq,
        cu_seqlen_ks=cu_seqlen_ks,
        cu_seqlen_ke=cu_seqlen_ke,
    )
    return indexer.DeepseekV32IndexerPrefillChunkMetadata(
        block_table[start_idx:end_idx],
        cu_seqlen_ks,
        cu_seqlen_ke,
        cu_seq_lens,
        token_to_seq,
        total,
        max(lengths),
        first_token + first_row,
        first_token + end_row,
        num_reqs,
        skip_kv_gather or (query_slice is not None and first_row > 0),
        cu_seq_lens if local_cu_seq_lens is None else local_cu_seq_lens,
        local_total,
        max_local_total,
    )
