"""The build of vLLM's sparse indexer for batches of decodes alone, as one launch.

What a builder's steps have in common is found out once, and the plan of a step and the views that it returns are kept
under the sizes and addresses that a step brings. A plan keeps the memory of its tensors, so an address that is met
again is the same memory. Tensors that are new in every step have new addresses, and only the newest are kept.
"""

import importlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch

import nsa_kernel
from nsa_kernel.vllm.batch import are_padded, head, queries
from nsa_kernel.vllm.own import replaces
from nsa_kernel.vllm.versions import BUILDER, DEEP_GEMM, INDEXER

deep_gemm = importlib.import_module(DEEP_GEMM)
indexer = importlib.import_module(INDEXER)

# The schedules of the DeepGEMM in vLLM's wheel are known for pages of 64 states.
_DEEP_GEMM_IN_WHEEL = "vllm.third_party.deep_gemm"
_SCHEDULE_PAGE = 64

MAX_SIZES = 512  # of batches whose steps a builder keeps before it starts anew
MAX_PLACES = 8  # of steps of the same sizes: the newest


@replaces(f"{BUILDER}.build")
def build(self: Any, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
    """`DeepseekV32IndexerMetadataBuilder.build`: batches of decodes alone here, all others as before."""
    return known_of(self).build(self, common_attn_metadata)


class _Step(NamedTuple):
    """A kind of step."""

    run: Callable[[], None]
    fill_schedule: Callable[[], Any] | None  # where the launch does not
    decode: tuple[Any, ...]  # the fields of its metadata


class Known:
    """What is known of a builder: how its batches are laid out, who fills its schedule, and the steps seen so far."""

    def __init__(self, builder: Any) -> None:
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
        # vLLM's own kernel for SM100 reads them there; with adaptive verification, the host has their total alone.
        speculative = builder.vllm_config.speculative_config
        adaptive = bool(speculative and speculative.enable_adaptive_verification)
        self.reads_query_lens = builder.supports_varlen or adaptive
        self.compressed = builder.compress_ratio > 1
        # Here vLLM divides lengths that are not its own into a buffer of their own, as long as the batch has tokens.
        self.divides = self.compressed and self.threshold == 1 and not rows_alone
        self.steps: dict[tuple[Any, ...], dict[tuple[Any, ...], _Step]] = {}  # by sizes, then by place

        self.schedules: bool = indexer.current_platform.is_cuda() and indexer.has_deep_gemm()
        self.schedule_format = self.find_schedule_format(builder) if self.schedules else None
        if self.schedules and deep_gemm._get_paged_mqa_logits_metadata_impl is None:
            self.fits = False  # vLLM's own build says what is missing

    def find_schedule_format(self, builder: Any) -> str | None:
        """The format of the schedule that vLLM's DeepGEMM reads; None where it is not known."""
        deep_gemm._lazy_init()  # sets up what importing it reads
        in_wheel = getattr(deep_gemm._import_deep_gemm(), "__name__", None) == _DEEP_GEMM_IN_WHEEL
        if not in_wheel or builder.kv_cache_spec.num_states != _SCHEDULE_PAGE:
            return None
        if builder.supports_varlen:
            return "deepgemm_sm100_384"
        return "deepgemm_sm90" if indexer.current_platform.is_device_capability_family(90) else None

    def schedule_arguments(self, layout: str, schedule: torch.Tensor) -> dict[str, Any]:
        """What has our launch write the schedule; empty where vLLM's own call has to."""
        if self.schedule_format is None:
            return {}
        arguments = {"schedule": schedule, "schedule_format": self.schedule_format}
        if layout == "native":
            return arguments | {"schedule_rows": "request", "schedule_atoms": 1}
        return arguments | {"schedule_rows": "token" if self.schedule_format == "deepgemm_sm90" else "request"}

    def build(self, builder: Any, common: Any) -> Any:
        """The metadata of a batch of decodes alone."""
        num_reqs, num_tokens = common.num_reqs, common.num_actual_tokens
        if not self.fits or not 0 < common.max_query_len <= self.threshold or num_tokens == 0:
            return NotImplemented
        if self.divides and num_tokens != num_reqs:
            return NotImplemented
        longest, shortest, lens = queries(common)
        if not 0 < longest <= self.threshold or (self.padded_alone and not are_padded(longest, lens)):
            return NotImplemented
        starts, seq_lens, table = common.query_start_loc, common.seq_lens, common.block_table_tensor
        dcp = common.dcp_local_seq_lens is not None
        addresses = starts.data_ptr(), seq_lens.data_ptr(), table.data_ptr()
        sizes, place = (num_reqs, num_tokens, longest, shortest, dcp), (addresses, table.shape, table.stride())
        places = self.steps.get(sizes)
        if places is None:
            if len(self.steps) == MAX_SIZES:
                self.steps.clear()
            places = self.steps[sizes] = {}
        step = places.get(place)
        if step is None:
            if len(places) == MAX_PLACES:
                del places[next(iter(places))]
            step = places[place] = self.bind(builder, common, longest, shortest)
        run, fill_schedule, fields = step
        run()
        if fill_schedule is not None:
            fill_schedule()
        decode = indexer.DeepSeekV32IndexerDecodeMetadata(*fields)
        slots = self.compressed_slots(builder, common) if self.compressed else common.slot_mapping
        return indexer.DeepseekV32IndexerMetadata(
            seq_lens, common.max_seq_len, slots, num_reqs, num_tokens, 0, 0, decode, None, None, table
        )

    def compressed_slots(self, builder: Any, common: Any) -> Any:
        """The slots of compressed states, by vLLM's own function."""
        return indexer.get_compressed_slot_mapping(
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
        seq_lens, table = head(common.seq_lens, num_reqs), head(common.block_table_tensor, num_reqs)
        dcp, equal = common.dcp_local_seq_lens is not None, shortest == longest
        layout: Literal["native", "rows"] = "native" if self.native[longest] else "rows"
        per_req_lens = builder.per_req_decode_lens_buffer[:num_reqs]
        schedule = builder.scheduler_metadata_buffer
        if self.schedules:
            query_len = longest if layout == "native" else 1
            slots = deep_gemm._paged_mqa_logits_schedule_slots(builder.num_sms, query_len)
            schedule = schedule[: slots + 1]
        scheduled = self.schedule_arguments(layout, schedule)
        global_seq_lens, indices = seq_lens if dcp else None, None
        arguments: dict[str, Any] = {
            "seq_lens": seq_lens,
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
        if layout == "native" or not equal or num_tokens != num_reqs * longest or self.reads_query_lens:
            arguments["query_start_loc"] = head(common.query_start_loc, num_reqs + 1)
        else:
            arguments["max_query_len"] = longest  # which takes no scan
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
        fill_schedule = None
        if self.schedules and not scheduled:
            fill_schedule = self.own_schedule(builder, lengths, indices, schedule)
        uneven = layout == "native" and not equal
        return _Step(
            nsa_kernel.IndexerDecodePlan(layout, **arguments).run,
            fill_schedule,
            (table, lengths, decode_lens, uneven, schedule, global_seq_lens, per_req_lens, equal, longest, indices),
        )

    @staticmethod
    def own_schedule(builder: Any, lengths: torch.Tensor, indices: Any, schedule: torch.Tensor) -> Callable[[], Any]:
        """What vLLM's own call for a schedule comes down to."""
        arguments = lengths, builder.kv_cache_spec.num_states, len(schedule) - 1
        options = {} if indices is None else {"indices": indices}

        def fill() -> None:
            schedule.copy_(deep_gemm._get_paged_mqa_logits_metadata_impl(*arguments, **options))

        return fill


def known_of(builder: Any) -> Known:
    """What is known of a builder, found out at the first call for it."""
    try:
        known: Known = builder._nsa_kernel_known
    except AttributeError:
        known = builder._nsa_kernel_known = Known(builder)
    return known
