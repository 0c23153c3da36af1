"""The metadata of vLLM's sparse MLA, which every step needs beside that of the indexer."""

from typing import Any

import torch

import nsa_kernel
from nsa_kernel.vllm.batch import are_padded, head, queries
from nsa_kernel.vllm.own import replaces
from nsa_kernel.vllm.versions import BACKEND, SPARSE_MLA


@replaces(f"{SPARSE_MLA}:SparseMLACommonMetadataBuilder.build")
def build(self: Any, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
    """`SparseMLACommonMetadataBuilder.build`: batches of decodes alone here, all others as before."""
    common, bound = common_attn_metadata, common_attn_metadata.max_query_len
    if not 0 < bound <= (self.reorder_batch_threshold or 1) or self.use_pcp:
        return NotImplemented
    if self.require_uniform_decodes:
        longest, _, lens = queries(common)
        if not are_padded(longest, lens):
            return NotImplemented
    num_reqs, num_tokens = common.num_reqs, common.num_actual_tokens
    return self.metadata_cls(
        num_reqs=num_reqs,
        max_query_len=bound,
        max_seq_len=common.max_seq_len,
        num_actual_tokens=num_tokens,
        query_start_loc=common.query_start_loc,
        slot_mapping=common.slot_mapping,
        block_table=common.block_table_tensor,
        req_id_per_token=common.token_to_req_indices(self.req_id_per_token_buffer),
        seq_lens=common.seq_lens,
        block_size=self.kv_cache_spec.block_size,
        topk_tokens=self.topk_tokens,
        num_decodes=num_reqs,
        num_prefills=0,
        num_decode_tokens=num_tokens,
        decode_max_query_len=bound if common.max_logits_per_req is None else common.max_logits_per_req,
        prefill_max_seq_len=0,
        prefill=None,
        cp_kv_cache_interleave_size=self.cp_kv_cache_interleave_size,
    )


@replaces(f"{BACKEND}:CommonAttentionMetadata.token_to_req_indices")
def token_to_req_indices(self: Any, buffer: torch.Tensor) -> Any:
    """`CommonAttentionMetadata.token_to_req_indices`: the request of every token, once a batch."""
    if self._token_to_req_indices_cache is not None:
        return NotImplemented
    num_tokens, num_mapped = self.num_actual_tokens, self.query_start_loc_cpu.numpy().item(-1)
    requests = head(buffer, max(num_mapped, num_tokens))
    nsa_kernel.fill_token_requests(self.query_start_loc, requests, num_mapped=num_mapped)
    self._token_to_req_indices_cache = requests
    return head(requests, num_tokens)
