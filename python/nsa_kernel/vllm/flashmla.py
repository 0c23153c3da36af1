"""The metadata of vLLM's FlashMLA with an fp8 cache."""

import importlib
from typing import Any

import torch

import nsa_kernel
from nsa_kernel.vllm.batch import head
from nsa_kernel.vllm.own import replaces
from nsa_kernel.vllm.versions import FLASHMLA

flashmla_sparse = importlib.import_module(FLASHMLA)


@replaces(f"{FLASHMLA}:FlashMLASparseMetadataBuilder._build_fp8_separate_prefill_decode")
def build_fp8_separate_prefill_decode(self: Any, common_attn_metadata: Any, metadata: Any) -> Any:
    """`FlashMLASparseMetadataBuilder._build_fp8_separate_prefill_decode`: the request of every prefilled token."""
    common, num_decodes, num_decode_tokens = common_attn_metadata, metadata.num_decodes, metadata.num_decode_tokens
    num_tokens = common.num_actual_tokens
    if num_tokens == 0 or self.pcp_dcp_kv_gather:
        return NotImplemented
    fp8 = flashmla_sparse.FlashMLASparseMetadata.FP8SeparatePrefillDecode
    num_active, prefill, decode = num_decodes, None, None
    if metadata.num_prefills > 0:
        prefill = _fp8_prefill(self, common, metadata)
    if num_decodes > 0:
        query_len = common.query_start_loc_cpu.numpy().item(1)
        num_active, rest = divmod(num_decode_tokens, query_len)
        assert rest == 0
        decode = fp8.Decode(
            seq_lens=head(common.seq_lens, num_active),
            kernel_metadata=flashmla_sparse.FlashMLASparseMetadata.FP8KernelMetadata(
                scheduler_metadata=flashmla_sparse.get_mla_metadata()[0],
                dummy_block_table=self.dummy_block_table[:num_active],
                cache_lens=self.max_model_len_tensor[:num_active],
            ),
            decode_query_len=query_len,
        )
    num_prefill_tokens = num_tokens - num_decode_tokens
    return fp8(metadata.num_prefills, num_active, num_prefill_tokens, num_decode_tokens, decode, prefill)


def _fp8_prefill(builder: Any, common: Any, metadata: Any) -> Any:
    num_decodes, num_prefills = metadata.num_decodes, metadata.num_prefills
    num_tokens, num_decode_tokens = common.num_actual_tokens, metadata.num_decode_tokens
    fp8 = flashmla_sparse.FlashMLASparseMetadata.FP8SeparatePrefillDecode.Prefill
    starts = common.query_start_loc_cpu.numpy()[num_decodes:]
    num_mapped = int(starts[-1])

    request_ids = torch.empty(num_tokens, dtype=torch.int32, device=builder.device)
    nsa_kernel.fill_token_requests(common.query_start_loc[num_decodes:], request_ids, num_mapped=num_mapped)
    if num_decode_tokens > 0:
        request_ids[:num_decode_tokens] = -1
    if num_mapped < num_tokens:
        request_ids[num_mapped:] = -1

    lengths = common.seq_lens_cpu_upper_bound[num_decodes:]
    starts_on_host = torch.zeros(num_prefills, dtype=torch.int32, pin_memory=True)
    torch.cumsum(lengths[:-1], dim=0, out=starts_on_host[1:])
    workspace_starts = torch.empty(num_prefills, dtype=torch.int32, device=builder.device)
    table, seq_lens = common.block_table_tensor[num_decodes:], common.seq_lens[num_decodes:]
    chunks = []
    for first, end in flashmla_sparse.split_prefill_chunks(
        lengths, flashmla_sparse.get_prefill_workspace_size(builder.vllm_config)
    ):
        starts_on_host[first:end] -= int(starts_on_host[first])
        chunks.append(
            fp8.Chunk(
                tokens_slice=slice(int(starts[first]), int(starts[end])),
                block_table=table[first:end],
                req_start_idx=first,
                workspace_starts=workspace_starts[first:end],
                chunk_tot_seqlen=lengths[first:end].sum(),
                seq_lens=seq_lens[first:end],
            )
        )
    workspace_starts.copy_(starts_on_host, non_blocking=True)
    return fp8(request_ids=request_ids, workspace_starts=workspace_starts, chunks=chunks)
