"""vLLM's sparse-indexer metadata on this library, and the plug-in that puts it in its place.

vLLM 0.33.0 makes the metadata of its sparse indexer out of torch operators and Triton kernels, several launches a
build. Here a build is one launch, and its host time little more than that launch: what a builder's decode steps have in
common is found out once, and the plan of a step and the views that it returns are kept under the addresses and sizes
that the step brings. A kept plan holds its tensors, so an address that is met again is the same memory.

Whatever is not known to fit is left to vLLM: a level of the plug-in whose sources are others, a process without a
usable GPU, and every call for which a function below returns NotImplemented.
"""

import contextlib
import hashlib
import importlib
import importlib.abc
import importlib.util
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, NamedTuple

import torch

import nsa_kernel

logger = logging.getLogger(f"vllm.{__name__}")  # vLLM's own logger is the one that has a handler

_BACKENDS = "vllm.v1.attention.backends"
_BACKEND = "vllm.v1.attention.backend"
_DEEP_GEMM = "vllm.utils.deep_gemm"
_FLASHMLA = f"{_BACKENDS}.mla.flashmla_sparse"
_INDEXER = f"{_BACKENDS}.mla.indexer"
_BUILDER = f"{_INDEXER}.DeepseekV32IndexerMetadataBuilder"
_KERNELS = "vllm.v1.attention.ops.metadata"
_SPARSE_MLA = "vllm.model_executor.layers.attention.sparse_mla_attention"

# What the levels replace or rely on, and the first 16 digits of the sha256 of its source in a version of vLLM.
_SOURCES = {
    "0.33.0": {
        f"{_KERNELS}._indexer_decode_metadata_kernel": "26b7785da16b0b8d",
        f"{_KERNELS}._token_request": "e1dd81a45c4b10e1",
        f"{_KERNELS}._token_request_mapping_kernel": "1e6bc998d5b47fd0",
        f"{_INDEXER}.DeepSeekV32IndexerDecodeMetadata": "3198184f78e55d35",
        f"{_INDEXER}.DeepseekV32IndexerMetadata": "44f329814c542323",
        f"{_INDEXER}.DeepseekV32IndexerPrefillChunkMetadata": "39871e3d292b9e55",
        f"{_INDEXER}._supports_native_decode": "56e3f20ebbddcfb5",
        f"{_INDEXER}.build_prefill_chunk_metadata": "1e58523382f7f560",
        f"{_BUILDER}.__init__": "0f730868e855863d",
        f"{_BUILDER}._dcp_localize_decode_seq_lens": "a4e0be4713168ca4",
        f"{_BUILDER}._prepare_decode_tensors": "3b232bdbaebccf75",
        f"{_BUILDER}._prepare_global_decode_seq_lens": "c3ba0857a84fb74d",
        f"{_BUILDER}.build": "60c3752b0beefbd9",
        f"{_BUILDER}.update_draft_decode_metadata": "f498d7e33f51e6e9",
        f"{_DEEP_GEMM}._import_deep_gemm": "78805dc9c797a18c",
        f"{_DEEP_GEMM}._paged_mqa_logits_schedule_slots": "33488b4ba490e965",
        f"{_DEEP_GEMM}.get_paged_mqa_logits_metadata": "6cde1f642da6228a",
        f"{_BACKEND}.CommonAttentionMetadata": "b83b991c7a22298b",
        f"{_BACKEND}.CommonAttentionMetadata.token_to_req_indices": "3c2879ef98f7de29",
        f"{_BACKENDS}.utils.get_dcp_local_seq_lens": "23c8c9f856af2057",
        f"{_BACKENDS}.utils.split_decodes_and_prefills": "f007f7c52cb563c9",
        f"{_BACKENDS}.utils.split_prefill_chunks": "71d6c2493c3004b6",
        f"{_SPARSE_MLA}.SparseMLACommonMetadata": "08f9db1f3341e8ca",
        f"{_SPARSE_MLA}.SparseMLACommonMetadataBuilder.build": "9f05f74a64dafe37",
        f"{_FLASHMLA}.FlashMLASparseMetadata": "bf09b345ba685aad",
        f"{_FLASHMLA}.FlashMLASparseMetadataBuilder._build_fp8_separate_prefill_decode": "255c8285c10cf82f",
    }
}

# The schedules of the DeepGEMM in vLLM's wheel, for pages of 64 states.
_DEEP_GEMM_IN_WHEEL = "vllm.third_party.deep_gemm"
_SCHEDULE_PAGE = 64
_NATIVE_SCHEDULES = (1, 2)  # queries of these lengths, on SM90

_MAX_STEPS = 2048  # kinds of step that a builder keeps before it starts anew


class _Level(NamedTuple):
    """Replacements that stand or fall together, as soon as vLLM has imported a module."""

    module: str
    relies_on: tuple[str, ...]
    replacements: dict[str, Callable[..., Any]]
    of_known_versions: bool = True  # otherwise the sources alone decide


_SCHEDULE_SOURCES = (
    f"{_DEEP_GEMM}._import_deep_gemm",
    f"{_DEEP_GEMM}._paged_mqa_logits_schedule_slots",
    f"{_DEEP_GEMM}.get_paged_mqa_logits_metadata",
)
_LEVELS = {
    "kernels": _Level(_KERNELS, (f"{_KERNELS}._token_request",), {}, of_known_versions=False),
    "methods": _Level(
        _INDEXER,
        (
            f"{_INDEXER}.DeepSeekV32IndexerDecodeMetadata",
            f"{_INDEXER}.DeepseekV32IndexerMetadata",
            f"{_INDEXER}.DeepseekV32IndexerPrefillChunkMetadata",
            f"{_BUILDER}.__init__",
            f"{_BUILDER}.build",  # keeps the lengths by request that _prepare_decode_tensors reads
            f"{_BACKENDS}.utils.get_dcp_local_seq_lens",
            *_SCHEDULE_SOURCES,
        ),
        {},
    ),
    "build": _Level(
        _INDEXER,
        (
            f"{_INDEXER}.DeepSeekV32IndexerDecodeMetadata",
            f"{_INDEXER}.DeepseekV32IndexerMetadata",
            f"{_INDEXER}._supports_native_decode",
            f"{_BUILDER}.__init__",
            f"{_BUILDER}._dcp_localize_decode_seq_lens",
            f"{_BUILDER}._prepare_decode_tensors",
            f"{_BUILDER}._prepare_global_decode_seq_lens",
            f"{_BACKEND}.CommonAttentionMetadata",
            f"{_BACKENDS}.utils.get_dcp_local_seq_lens",
            f"{_BACKENDS}.utils.split_decodes_and_prefills",
            *_SCHEDULE_SOURCES,
        ),
        {},
    ),
    "sparse MLA": _Level(
        _SPARSE_MLA,
        (
            f"{_SPARSE_MLA}.SparseMLACommonMetadata",
            f"{_BACKEND}.CommonAttentionMetadata",
            f"{_BACKENDS}.utils.split_decodes_and_prefills",
        ),
        {},
    ),
    "FlashMLA": _Level(
        _FLASHMLA,
        (
            f"{_FLASHMLA}.FlashMLASparseMetadata",
            f"{_BACKEND}.CommonAttentionMetadata",
            f"{_BACKENDS}.utils.split_prefill_chunks",
        ),
        {},
    ),
}
_own: dict[str, Callable[..., Any]] = {}  # vLLM's own, by target

# vLLM's registry of kernels drops the grids; these are computed from the kernels' positional arguments.
_GRIDS: dict[str, Callable[..., int]] = {
    f"{_KERNELS}._indexer_decode_metadata_kernel": lambda *args: max(
        args[8], args[9] + -(-(args[10] - args[9]) // 256)
    ),
    f"{_KERNELS}._token_request_mapping_kernel": lambda *args: -(-args[4] // 256),
}


def _replaces(level: str, target: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function the replacement of a target; where it returns NotImplemented, vLLM's own is called."""

    def replaced_by(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs) if _usable() else NotImplemented
            return _own[target](*args, **kwargs) if result is NotImplemented else result

        _LEVELS[level].replacements[target] = replacement
        return replacement

    return replaced_by


# Kernels: what vLLM launches as `kernel[grid](...)`.


@_replaces("kernels", f"{_KERNELS}._indexer_decode_metadata_kernel")
def indexer_decode_metadata_kernel(
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
    """Flattens decodes for SM100, as vLLM's kernel of this name does.

    A row of the table is copied as far as its request has entries, with pages of the smallest size that vLLM uses.
    """
    nsa_kernel.fill_indexer_decode_metadata(
        "rows",
        seq_lens=_head(seq_lens, num_reqs),
        query_start_loc=_head(query_start_loc, num_reqs + 1),
        block_table=block_table,
        num_tokens=num_tokens,
        page_size=min(importlib.import_module(_DEEP_GEMM).get_paged_mqa_page_sizes()),
        decode_seq_lens=_head(output_seq_lens, capacity),
        decode_lens=decode_lens,
        per_req_lens=_head(per_req_lens, num_reqs),
        indices=indices,
        expanded_block_table=output_block_table,
    )


@_replaces("kernels", f"{_KERNELS}._token_request_mapping_kernel")
def token_request_mapping_kernel(
    query_start_loc: torch.Tensor,
    output: torch.Tensor,
    num_reqs: int,
    num_mapped: int,
    num_tokens: int,
    num_warps: int = 4,
) -> None:
    """Maps tokens to requests, as vLLM's kernel of this name does."""
    requests = _head(query_start_loc, num_reqs + 1)
    nsa_kernel.fill_token_requests(requests, _head(output, num_tokens), num_mapped=num_mapped)


def _head(array: torch.Tensor, size: int) -> torch.Tensor:
    """The first `size` elements; most often that is all of them."""
    return array if array.shape[0] == size else array[:size]


# Methods: the parts of a build that vLLM also calls for mixed batches and inside the graphs of its drafts.


@_replaces("methods", f"{_BUILDER}._prepare_decode_tensors")
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


@_replaces("methods", f"{_BUILDER}.update_draft_decode_metadata")
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
    seq_lens, lengths = _head(metadata.seq_lens, num_tokens), decode.seq_lens.view(-1)
    known = _known(self)
    arguments: dict[str, Any] = {
        "seq_lens": seq_lens,
        "max_query_len": 1,
        "compress_ratio": self.compress_ratio,
        "decode_seq_lens": None if lengths.data_ptr() == seq_lens.data_ptr() else lengths,
        "decode_lens": decode.decode_lens,
        "per_req_lens": decode.per_req_decode_lens,
    }
    if decode.block_table.data_ptr() == table.data_ptr():
        layout = "native"
    else:
        layout = "rows"
        arguments |= {
            "block_table": _head(table, num_tokens),
            "num_tokens": num_tokens,
            "page_size": self.kv_cache_spec.num_states,
            "indices": decode.indices,
            "expanded_block_table": decode.block_table,
        }
    scheduled = known.schedule_arguments(layout, 1, decode.schedule_metadata)
    nsa_kernel.fill_indexer_decode_metadata(layout, **arguments, **scheduled)
    if self.compress_ratio > 1:
        positions = self.arange_buffer
        known.indexer.get_compressed_slot_mapping(
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
        known.fill_schedule(self, decode.schedule_metadata, decode.seq_lens, decode.indices)
    return None


@_replaces("methods", f"{_INDEXER}.build_prefill_chunk_metadata")
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
    lengths = compressed_seq_lens_cpu[start_idx:end_idx]
    total = int(lengths.numpy().sum())
    if total == 0:
        return None
    starts = query_start_loc_cpu.numpy()
    first_token = int(starts[start_idx])
    first_row, end_row = 0, int(starts[end_idx]) - first_token
    if query_slice is not None:
        first_row, end_row = min(query_slice.start, end_row), min(query_slice.stop, end_row)

    num_reqs = end_idx - start_idx
    empty = partial(torch.empty, dtype=torch.int32, device=block_table.device)
    token_to_seq, cu_seq_lens = empty(total), empty(num_reqs + 1)
    cu_seqlen_ks, cu_seqlen_ke = empty(end_row - first_row), empty(end_row - first_row)
    local_cu_seq_lens, local_total, max_local_total = cu_seq_lens, total, total
    indexer = importlib.import_module(_INDEXER)
    if dcp_world_size > 1:
        local_cu_seq_lens = empty(num_reqs + 1)
        by_rank = indexer.get_dcp_local_seq_lens(lengths, dcp_world_size, None, cp_kv_cache_interleave_size).sum(0)
        local_total, max_local_total = int(by_rank[dcp_rank]), int(by_rank.max())
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
        local_cu_seq_lens=None if local_cu_seq_lens is cu_seq_lens else local_cu_seq_lens,
        token_to_seq=token_to_seq,
        cu_seqlen_ks=cu_seqlen_ks,
        cu_seqlen_ke=cu_seqlen_ke,
    )
    return indexer.DeepseekV32IndexerPrefillChunkMetadata(
        block_table=block_table[start_idx:end_idx],
        cu_seqlen_ks=cu_seqlen_ks,
        cu_seqlen_ke=cu_seqlen_ke,
        cu_seq_lens=cu_seq_lens,
        token_to_seq=token_to_seq,
        total_seq_lens=total,
        max_seqlen_k=int(lengths.numpy().max()),
        token_start=first_token + first_row,
        token_end=first_token + end_row,
        num_reqs=num_reqs,
        skip_kv_gather=skip_kv_gather or (query_slice is not None and first_row > 0),
        local_cu_seq_lens=local_cu_seq_lens,
        local_total_seq_lens=local_total,
        max_local_total_seq_lens=max_local_total,
    )


# Build: a batch of decodes alone.


@_replaces("build", f"{_BUILDER}.build")
def build(self: Any, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
    """`DeepseekV32IndexerMetadataBuilder.build`: batches of decodes alone here, all others as before."""
    return _known(self).build(self, common_attn_metadata)


class _Queries(NamedTuple):
    longest: int
    shortest: int
    lens: Any  # all of them; None where the longest come first and the others are empty

    def padded(self) -> bool:
        """Whether all but the empty ones are as long as the first one, which is not empty."""
        lens = self.lens
        return lens is None or bool(lens[0] == self.longest and ((lens == self.longest) | (lens == 0)).all())


def _queries(common: Any) -> _Queries:
    """How many tokens the requests have, none more than `common.max_query_len` > 0, as far as the host knows."""
    starts, num_reqs, bound = common.query_start_loc_cpu.numpy(), common.num_reqs, common.max_query_len
    total = starts.item(num_reqs)
    full, rest = divmod(total, bound)
    if rest == 0 and 0 < full <= num_reqs and starts.item(full) == total:
        return _Queries(bound, bound if full == num_reqs else 0, None)
    lens = starts[1 : num_reqs + 1] - starts[:num_reqs]
    return _Queries(int(lens.max()), int(lens.min()), lens)


class _Step(NamedTuple):
    """A kind of step: its launch, and the fields of its metadata before and after the schedule."""

    run: Callable[[], None]
    scheduled: bool
    before: tuple[Any, ...]
    after: tuple[Any, ...]


class _Known:
    """What is known of a builder: how its batches are laid out, who fills its schedule, and the steps seen so far."""

    def __init__(self, builder: Any) -> None:
        self.indexer = indexer = importlib.import_module(_INDEXER)
        base, own = indexer.DeepseekV32IndexerMetadataBuilder, type(builder)
        parts = ("_prepare_decode_tensors", "_prepare_global_decode_seq_lens", "_dcp_localize_decode_seq_lens")
        self.fits = not builder.use_pcp and all(getattr(own, part) is getattr(base, part) for part in parts)

        self.threshold: int = builder.decode_threshold
        rows_alone = builder.use_flattening or builder.supports_varlen
        self.native = [
            not rows_alone and (length <= 1 or indexer._supports_native_decode(length))
            for length in range(self.threshold + 1)
        ]
        self.padded_alone = not rows_alone and self.threshold > 1
        self.compressed = builder.compress_ratio > 1
        # Here vLLM divides lengths that are not its own into a buffer of their own, as long as the batch has tokens.
        self.divides = self.compressed and self.threshold == 1 and not rows_alone
        self.steps: dict[tuple[Any, ...], _Step] = {}

        self.schedules: bool = indexer.current_platform.is_cuda() and indexer.has_deep_gemm()
        self.schedule_format = self.find_schedule_format(builder) if self.schedules else None

    def find_schedule_format(self, builder: Any) -> str | None:
        """The format of the schedule that vLLM's DeepGEMM reads; None where it is not known."""
        deep_gemm = importlib.import_module(_DEEP_GEMM)
        deep_gemm._lazy_init()  # sets up what importing it reads
        in_wheel = getattr(deep_gemm._import_deep_gemm(), "__name__", None) == _DEEP_GEMM_IN_WHEEL
        if not in_wheel or builder.kv_cache_spec.num_states != _SCHEDULE_PAGE:
            return None
        if builder.supports_varlen:
            return "deepgemm_sm100_384"
        return "deepgemm_sm90" if self.indexer.current_platform.is_device_capability_family(90) else None

    def schedule_arguments(self, layout: str, longest: int, schedule: torch.Tensor) -> dict[str, Any]:
        """What has our launch write the schedule; empty where vLLM's own call has to."""
        if self.schedule_format is None or (layout == "native" and longest not in _NATIVE_SCHEDULES):
            return {}
        arguments = {"schedule": schedule, "schedule_format": self.schedule_format}
        if layout == "native":
            return arguments | {"schedule_rows": "request", "schedule_atoms": 1}
        return arguments | {"schedule_rows": "token" if self.schedule_format == "deepgemm_sm90" else "request"}

    def fill_schedule(self, builder: Any, schedule: torch.Tensor, seq_lens: torch.Tensor, indices: Any) -> torch.Tensor:
        """Fills the schedule by vLLM's own call; returns the part of it that is used."""
        made = self.indexer.get_paged_mqa_logits_metadata(
            seq_lens, builder.kv_cache_spec.num_states, builder.num_sms, indices=indices
        )
        used = _head(schedule, made.shape[0])
        used.copy_(made)
        return used

    def build(self, builder: Any, common: Any) -> Any:
        """The metadata of a batch of decodes alone."""
        num_reqs, num_tokens = common.num_reqs, common.num_actual_tokens
        if not self.fits or not 0 < common.max_query_len <= self.threshold or num_tokens == 0:
            return NotImplemented
        if self.divides and num_tokens != num_reqs:
            return NotImplemented
        queries = _queries(common)
        longest, shortest, _ = queries
        if not 0 < longest <= self.threshold or (self.padded_alone and not queries.padded()):
            return NotImplemented
        seq_lens, table, dcp = common.seq_lens, common.block_table_tensor, common.dcp_local_seq_lens is not None
        addresses = common.query_start_loc.data_ptr(), seq_lens.data_ptr(), table.data_ptr()
        key = (num_reqs, num_tokens, longest, shortest, dcp, addresses, table.shape[1], table.stride())
        step = self.steps.get(key)
        if step is None:
            if len(self.steps) == _MAX_STEPS:
                self.steps.clear()
            step = self.steps[key] = self.bind(builder, common, longest, shortest)
        run, scheduled, before, after = step
        run()
        schedule = builder.scheduler_metadata_buffer
        if self.schedules and not scheduled:
            schedule = self.fill_schedule(builder, schedule, before[1], after[-1])
        decode = self.indexer.DeepSeekV32IndexerDecodeMetadata(*before, schedule, *after)
        slots = self.compressed_slots(builder, common) if self.compressed else common.slot_mapping
        return self.indexer.DeepseekV32IndexerMetadata(
            seq_lens, common.max_seq_len, slots, num_reqs, num_tokens, 0, 0, decode, None, None, table
        )

    def compressed_slots(self, builder: Any, common: Any) -> Any:
        """The slots of compressed states, by vLLM's own function."""
        return self.indexer.get_compressed_slot_mapping(
            common.num_actual_tokens,
            common.slot_mapping,
            common.query_start_loc,
            common.seq_lens,
            common.block_table_tensor,
            builder.kv_cache_spec.num_states,
            builder.compress_ratio,
            out=builder.compressed_slot_mapping_buffer,
            dcp_world_size=builder.dcp_world_size,
            cp_interleave=builder.cp_kv_cache_interleave_size,
        )

    def bind(self, builder: Any, common: Any, longest: int, shortest: int) -> _Step:
        """Binds a kind of step to the builder's buffers and the addresses of the batch."""
        num_reqs, num_tokens = common.num_reqs, common.num_actual_tokens
        seq_lens, table = _head(common.seq_lens, num_reqs), _head(common.block_table_tensor, num_reqs)
        dcp, equal = common.dcp_local_seq_lens is not None, shortest == longest
        layout = "native" if self.native[longest] else "rows"
        per_req_lens = builder.per_req_decode_lens_buffer[:num_reqs]
        scheduled = self.schedule_arguments(layout, longest, builder.scheduler_metadata_buffer)
        global_seq_lens, indices = seq_lens if dcp else None, None
        arguments: dict[str, Any] = {
            "seq_lens": seq_lens,
            "query_start_loc": _head(common.query_start_loc, num_reqs + 1),
            "compress_ratio": builder.compress_ratio,
            "per_req_lens": per_req_lens,
            **scheduled,
        }
        if dcp:
            arguments |= {
                "dcp_world": builder.dcp_world_size,
                "dcp_rank": builder.dcp_rank,
                "dcp_interleave": builder.cp_kv_cache_interleave_size,
            }
        if layout == "native":
            decode_lens = builder.decode_lens_buffer[:num_reqs]
            arguments |= {"max_query_len": longest, "decode_lens": decode_lens}
            lengths = seq_lens.unsqueeze(-1)
            if self.threshold > 1 or dcp or self.compressed:
                buffer = builder.expanded_seq_lens_buffer if self.divides else builder.decode_seq_lens_buffer
                lengths = arguments["decode_seq_lens"] = buffer[: num_reqs * longest].view(num_reqs, longest)
        else:
            arguments |= {
                "block_table": table,
                "num_tokens": num_tokens,
                "page_size": builder.kv_cache_spec.num_states,
                "decode_seq_lens": builder.decode_seq_lens_buffer,
                "decode_lens": builder.decode_lens_buffer,
                "expanded_block_table": builder.expanded_block_table_buffer,
            }
            lengths = builder.decode_seq_lens_buffer[:num_tokens].unsqueeze(-1)
            decode_lens = builder.decode_lens_buffer[:num_tokens]
            table = builder.expanded_block_table_buffer[:num_tokens]
            if builder.supports_varlen:
                arguments["indices"] = builder.decode_indices_buffer
                indices = builder.decode_indices_buffer[:num_tokens]
            if dcp and longest > 1:
                arguments["global_seq_lens"] = builder.global_decode_seq_lens_buffer
                global_seq_lens = builder.global_decode_seq_lens_buffer[:num_tokens]
        plan = nsa_kernel.IndexerDecodePlan(layout, **arguments)
        return _Step(
            plan.run,
            bool(scheduled),
            before=(table, lengths, decode_lens, layout == "native" and not equal),
            after=(global_seq_lens, per_req_lens, equal, longest, indices),
        )


def _known(builder: Any) -> _Known:
    try:
        known: _Known = builder._nsa_kernel_known
    except AttributeError:
        known = builder._nsa_kernel_known = _Known(builder)
    return known


# Sparse MLA: the metadata of the attention beside the indexer.


@_replaces("sparse MLA", f"{_SPARSE_MLA}.SparseMLACommonMetadataBuilder.build")
def build_sparse_mla(self: Any, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
    """`SparseMLACommonMetadataBuilder.build`: batches of decodes alone here, all others as before."""
    common, bound = common_attn_metadata, common_attn_metadata.max_query_len
    if not 0 < bound <= (self.reorder_batch_threshold or 1) or self.use_pcp:
        return NotImplemented
    if self.require_uniform_decodes and not _queries(common).padded():
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


@_replaces("sparse MLA", f"{_BACKEND}.CommonAttentionMetadata.token_to_req_indices")
def token_to_req_indices(self: Any, buffer: torch.Tensor) -> Any:
    """`CommonAttentionMetadata.token_to_req_indices`: the request of every token, once a batch."""
    if self._token_to_req_indices_cache is not None:
        return NotImplemented
    num_tokens, num_mapped = self.num_actual_tokens, self.query_start_loc_cpu.numpy().item(-1)
    requests = _head(buffer, max(num_mapped, num_tokens))
    nsa_kernel.fill_token_requests(self.query_start_loc, requests, num_mapped=num_mapped)
    self._token_to_req_indices_cache = requests
    return _head(requests, num_tokens)


@_replaces("FlashMLA", f"{_FLASHMLA}.FlashMLASparseMetadataBuilder._build_fp8_separate_prefill_decode")
def build_fp8_separate_prefill_decode(self: Any, common_attn_metadata: Any, metadata: Any) -> Any:
    """`FlashMLASparseMetadataBuilder._build_fp8_separate_prefill_decode`: the request of every prefilled token."""
    common, num_decodes, num_decode_tokens = common_attn_metadata, metadata.num_decodes, metadata.num_decode_tokens
    num_tokens = common.num_actual_tokens
    if num_tokens == 0 or self.pcp_dcp_kv_gather:
        return NotImplemented
    flashmla = importlib.import_module(_FLASHMLA)
    fp8 = flashmla.FlashMLASparseMetadata.FP8SeparatePrefillDecode
    num_active, prefill, decode = num_decodes, None, None
    if metadata.num_prefills > 0:
        prefill = _fp8_prefill(self, common, metadata, flashmla)
    if num_decodes > 0:
        query_len = common.query_start_loc_cpu.numpy().item(1)
        num_active, rest = divmod(num_decode_tokens, query_len)
        assert rest == 0
        decode = fp8.Decode(
            seq_lens=_head(common.seq_lens, num_active),
            kernel_metadata=flashmla.FlashMLASparseMetadata.FP8KernelMetadata(
                scheduler_metadata=flashmla.get_mla_metadata()[0],
                dummy_block_table=self.dummy_block_table[:num_active],
                cache_lens=self.max_model_len_tensor[:num_active],
            ),
            decode_query_len=query_len,
        )
    num_prefill_tokens = num_tokens - num_decode_tokens
    return fp8(metadata.num_prefills, num_active, num_prefill_tokens, num_decode_tokens, decode, prefill)


def _fp8_prefill(builder: Any, common: Any, metadata: Any, flashmla: Any) -> Any:
    num_decodes, num_prefills = metadata.num_decodes, metadata.num_prefills
    num_tokens, num_decode_tokens = common.num_actual_tokens, metadata.num_decode_tokens
    fp8 = flashmla.FlashMLASparseMetadata.FP8SeparatePrefillDecode.Prefill
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
    for first, end in flashmla.split_prefill_chunks(lengths, flashmla.get_prefill_workspace_size(builder.vllm_config)):
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


# The plug-in.


_unsaid: list[str] = []
_registered = False
_gpu: bool | None = None


def register() -> None:
    """Replaces what fits of vLLM, a level at a time; the log says which levels, and why the others are not.

    The entry point of the group ``vllm.general_plugins``. Nothing of vLLM is imported for it: a level is replaced when
    vLLM imports it. CUDA is not touched, since vLLM forks its workers after this has run; whether there is a usable
    GPU is asked at the first call in the worker. It never raises, and running it again does nothing.
    NSA_KERNEL_VLLM: ``0`` off, ``functions`` the kernels alone, unset or ``1`` everything.
    """
    global _registered  # noqa: PLW0603
    if _registered:
        return
    _registered = True
    switch = os.environ.get("NSA_KERNEL_VLLM")
    obstacle = "NSA_KERNEL_VLLM is 0" if switch == "0" else _torch_obstacle()
    if obstacle:
        _say(f"nsa_kernel leaves vLLM as it is: {obstacle}")
        return
    names = list(_LEVELS)
    if switch == "functions":
        names.remove("kernels")
        _say(f"nsa_kernel leaves vLLM's {', '.join(names)} in place: NSA_KERNEL_VLLM is functions")
        names = ["kernels"]
    waiting: dict[str, list[str]] = {}
    for name in names:
        waiting.setdefault(_LEVELS[name].module, []).append(name)
    for module in [module for module in waiting if module in sys.modules]:
        _replace_levels(waiting.pop(module))
    sys.meta_path.insert(0, _AfterImport(waiting))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Has levels replaced right after the module that they wait for has been imported."""

    def __init__(self, waiting: dict[str, list[str]]) -> None:
        self.waiting = waiting

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """Finds what the other finders find."""
        if fullname not in self.waiting:
            return None
        levels = self.waiting.pop(fullname)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                _replace_levels(levels)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _replace_levels(names: list[str]) -> None:
    """Replaces the levels that fit; never raises, which would end vLLM."""
    try:
        # All are checked before the first is replaced: a level may rely on what another one replaces.
        obstacles = {name: _obstacle(_LEVELS[name]) for name in names}
        for name, obstacle in obstacles.items():
            if obstacle:
                _say(f"nsa_kernel leaves vLLM's {name} in place: {obstacle}")
                continue
            replacements = _LEVELS[name].replacements
            (_replace_kernels if name == "kernels" else _replace)(replacements)
            replaced = ", ".join(target.rpartition(".")[2] for target in replacements)
            _say(f"nsa_kernel {nsa_kernel.__version__} replaces vLLM's {name}: {replaced}")
    except Exception as error:
        _say(f"nsa_kernel leaves vLLM's {', '.join(names)} in place: {error!r}")


def _say(line: str | None = None) -> None:
    """Logs; some of vLLM's processes set up logging late, and there the lines wait for the first call."""
    if line is not None:
        _unsaid.append(line)
    if logger.isEnabledFor(logging.INFO):
        with contextlib.suppress(IndexError):  # another thread is at it
            while _unsaid:
                logger.info(_unsaid.pop(0))


def _torch_obstacle() -> str:
    if torch.version.hip is not None:
        return "torch is built for ROCm"
    return "" if torch.version.cuda is not None else "torch is built without CUDA"


def _obstacle(level: _Level) -> str:
    """Why a level does not fit; empty where nothing speaks against it."""
    version = str(importlib.import_module("vllm").__version__).partition("+")[0]
    if level.of_known_versions and version not in _SOURCES:
        return f"vLLM {version} is not known"
    versions = [version] if level.of_known_versions else list(_SOURCES)
    for target in (*level.replacements, *level.relies_on):
        try:
            digits = _digits(_find(target))
        except Exception as error:  # importing it runs vLLM's code
            return f"{target} cannot be found ({error})"
        if digits not in [_SOURCES[known][target] for known in versions]:
            return f"{target} has another source ({digits})"
    return ""


def _find(target: str) -> Any:
    holder, name = _holder(target)
    return getattr(holder, name)


def _holder(target: str) -> tuple[Any, str]:
    """The module or class that has the target, and its name there."""
    path, _, name = target.rpartition(".")
    module, _, class_name = path.rpartition(".")
    if class_name[0].isupper():
        return getattr(importlib.import_module(module), class_name), name
    return importlib.import_module(path), name


def _digits(value: Any) -> str:
    """The first digits of the sha256 of a source, for a Triton kernel that of its function."""
    function = value if inspect.isclass(value) else getattr(value, "fn", value)
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]


def _replace_kernels(replacements: dict[str, Callable[..., Any]]) -> None:
    """Through vLLM's own registry of kernels, which reaches every module that has them."""
    kernels = {target: _find(target) for target in replacements}
    _own.update({target: partial(_launch, kernel, _GRIDS[target]) for target, kernel in kernels.items()})
    with warnings.catch_warnings(action="ignore"):  # of the attributes that it looks at in every module
        importlib.import_module("vllm.triton_utils.dispatcher").register_kernels(replacements)
    for target, kernel in kernels.items():
        if hasattr(kernel, "warmup"):  # vLLM may compile it ahead of its use; without a driver, Triton is a stub
            _find(target).warmup = kernel.warmup


def _launch(kernel: Any, grid: Callable[..., int], *args: Any, **kwargs: Any) -> None:
    kernel[(grid(*args),)](*args, **kwargs)


def _replace(replacements: dict[str, Callable[..., Any]]) -> None:
    for target, function in replacements.items():
        _own[target] = _find(target)
        setattr(*_holder(target), function)


def _usable() -> bool:
    """Whether this process has a GPU that can run the package; asked once, when vLLM calls the first time."""
    global _gpu  # noqa: PLW0603
    if _gpu is None:
        _say()
        if not importlib.import_module("vllm.platforms").current_platform.is_cuda():
            reason = "the platform is not CUDA"
        elif not nsa_kernel.is_cuda_kernel_available():
            reason = str(nsa_kernel.get_kernel_info()["reason"])
        else:
            reason = ""
        _gpu = not reason
        if reason:
            logger.warning("nsa_kernel is not used: %s", reason)
    return _gpu
