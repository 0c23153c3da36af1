"""SGLang's refresh of a captured batch, as one launch.

Before SGLang replays a CUDA graph, its DSA backend refreshes the metadata that the graph reads: lengths, page tables,
DeepGEMM's schedule, the plan of its top-k, FlashMLA's schedule, each with launches, allocations and copies of its own.
Here a plan, bound at the first replay of a captured batch, writes all of that at once. A refresh that is not understood
stays SGLang's own, and the log says once why.

`refresh`, `refresh_draft_steps` and `share_draft_buffers` take the place of the methods that their docstrings name.
"""

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from sglang.kernels.jit.utils import is_arch_support_pdl, occupancy
from sglang.srt.layers.attention import dsa_backend
from sglang.srt.runtime_context import get_platform

import nsa_kernel
from nsa_kernel.sglang import versions
from nsa_kernel.sglang.functions import head
from nsa_kernel.sglang.log import log

# By major compute capability.
_SCHEDULE_FORMATS = {9: "deepgemm_sm90", 10: "deepgemm_sm100_256"}
_TOPK_PLAN_FORMATS = {9: "sglang_topk_v2_sm90", 10: "sglang_topk_v2_sm100"}

_Batch, _Draft = dsa_backend.DeepseekSparseAttnBackend, dsa_backend.DeepseekSparseAttnMultiStepBackend

# SGLang's own that are replaced; as names of this module, SGLang's registry would replace them here as well.
sglangs = types.SimpleNamespace(
    refresh=_Batch.init_forward_metadata_out_graph,
    refresh_draft_steps=_Draft.init_forward_metadata_out_graph,
    init_draft_state=_Draft.init_cuda_graph_state,
)
# SGLang's own, which a refresh consists of; in a subclass, or under another plug-in, they may be something else.
_METHODS = {name: getattr(_Batch, name) for name in versions.METHODS}

# In place of a forward mode: the one refresh of all steps of a draft.
DRAFT_STEPS = "draft steps"


class Bound(NamedTuple):
    """What refreshes a captured batch; without `run`, SGLang does.

    It lies beside the batch in SGLang's own dictionary, and goes with it when SGLang captures anew.
    """

    metadata: Any
    run: Callable[..., None] | None = None
    prefill_impl: str = ""
    addresses: tuple[int, ...] = ()

    def install(self, backend: Any) -> None:
        """Sets what SGLang's refresh sets in a backend."""
        backend.use_mha = False
        backend.dsa_prefill_impl = self.prefill_impl
        backend.forward_metadata = self.metadata


def refresh(self: Any, forward_batch: Any, in_capture: bool = False) -> None:
    """`DeepseekSparseAttnBackend.init_forward_metadata_out_graph`."""
    batches = self.decode_cuda_graph_metadata
    bs = forward_batch.batch_size
    bound = batches.get((bs, forward_batch.forward_mode))
    if (
        in_capture
        or bound is None
        or bound.metadata is not batches.get(bs)
        or bound.addresses != _addresses(self, forward_batch)
    ):
        _refresh_unbound(self, forward_batch, in_capture)
    else:
        bound.run()
        bound.install(self)


def refresh_draft_steps(self: Any, forward_batch: Any, in_capture: bool = False) -> None:
    """`DeepseekSparseAttnMultiStepBackend.init_forward_metadata_out_graph`.

    A batch without padding brings tensors of its own, new ones each step: nothing is bound to their addresses.
    """
    backends = self.attn_backends
    if in_capture or not backends:
        sglangs.refresh_draft_steps(self, forward_batch, in_capture)
        return
    first, bs = backends[0], forward_batch.batch_size
    batches = first.decode_cuda_graph_metadata
    bound = batches.get((bs, DRAFT_STEPS))
    if bound is None or bound.metadata is not batches.get(bs):
        bound = batches[bs, DRAFT_STEPS] = _bind_draft_steps(backends, forward_batch)
    if bound.run is None:
        sglangs.refresh_draft_steps(self, forward_batch, in_capture)
        return
    bound.run(
        seq_lens=head(forward_batch.seq_lens, bs),
        req_pool_indices=head(forward_batch.req_pool_indices, bs),
        req_to_token=first.req_to_token,
    )
    for backend in backends:
        bound.install(backend)


def share_draft_buffers(self: Any, max_bs: int, max_num_tokens: int) -> None:
    """`DeepseekSparseAttnMultiStepBackend.init_cuda_graph_state`.

    All steps of a draft read equal metadata, which only a refresh writes: their graphs capture one set of buffers.
    """
    sglangs.init_draft_state(self, max_bs, max_num_tokens)
    for backend in self.attn_backends[1:]:
        if not _obstacle(backend):
            backend.decode_cuda_graph_metadata = self.attn_backends[0].decode_cuda_graph_metadata


def _addresses(backend: Any, forward_batch: Any) -> tuple[int, ...]:
    """Where a refresh reads. A plan keeps that memory alive, so the same address is the same tensor."""
    return (
        forward_batch.seq_lens.data_ptr(),
        forward_batch.req_pool_indices.data_ptr(),
        backend.req_to_token.data_ptr(),
    )


def _refresh_unbound(backend: Any, forward_batch: Any, in_capture: bool) -> None:
    """A capture, a replay that is the first or reads other memory, or one that is SGLang's own."""
    batches, bs = backend.decode_cuda_graph_metadata, forward_batch.batch_size
    captured = batches.get(bs)
    if captured is None or in_capture:
        sglangs.refresh(backend, forward_batch, in_capture)
        if batches.get(bs) is not captured and not _obstacle(backend):
            _own_flashmla_schedule(batches[bs])
        return
    key = (bs, forward_batch.forward_mode)
    bound = batches.get(key)
    if bound is None or bound.metadata is not captured or bound.run is not None:
        bound = batches[key] = _bind(backend, forward_batch)
    if bound.run is None:
        sglangs.refresh(backend, forward_batch, in_capture)
    else:
        bound.run()
        bound.install(backend)


def _own_flashmla_schedule(metadata: Any) -> None:
    """Gives a captured batch a FlashMLA schedule of its own.

    SGLang's is one buffer for all batch sizes, so that every refresh has to write it. It depends on the number of rows
    alone: with `topk` and no `topk_length`, FlashMLA reads `topk` entries of every row.
    """
    shared = metadata.flashmla_metadata
    if shared is not None:
        own = dsa_backend.DSAFlashMLAMetadata(shared.flashmla_metadata.clone(), shared.num_splits.clone())
        object.__setattr__(metadata, "flashmla_metadata", own)


def _bind(backend: Any, forward_batch: Any) -> Bound:
    metadata = backend.decode_cuda_graph_metadata[forward_batch.batch_size]
    understood = _understood(backend, forward_batch, forward_batch.forward_mode)
    if understood is None:
        return Bound(metadata)
    backend.set_dsa_prefill_impl(forward_batch=None)
    return Bound(metadata, understood.plan.run, backend.dsa_prefill_impl, _addresses(backend, forward_batch))


def _bind_draft_steps(backends: list[Any], forward_batch: Any) -> Bound:
    first = backends[0]
    batches = first.decode_cuda_graph_metadata
    metadata = batches.get(forward_batch.batch_size)
    if metadata is None:  # SGLang says so better
        return Bound(metadata)
    if any(backend.decode_cuda_graph_metadata is not batches for backend in backends):
        _leave("the draft steps", "their backends have buffers of their own")
        return Bound(metadata)
    understood = _understood(first, forward_batch, dsa_backend.ForwardMode.DECODE)
    if understood is None:
        return Bound(metadata)
    first.set_dsa_prefill_impl(forward_batch=None)
    fill = functools.partial(nsa_kernel.fill_replay_metadata, **understood.arguments)
    return Bound(metadata, fill, first.dsa_prefill_impl)


class _Understood(NamedTuple):
    arguments: dict[str, Any]
    plan: nsa_kernel.ReplayPlan


def _understood(backend: Any, forward_batch: Any, mode: Any) -> _Understood | None:
    """The arguments of the launch that writes what SGLang's refresh writes, but for its inputs, and its plan."""
    if log.unsaid:
        log.say()
    bs = forward_batch.batch_size
    try:
        arguments = _arguments(backend, mode, bs)
        plan = nsa_kernel.ReplayPlan(
            **arguments,
            seq_lens=head(forward_batch.seq_lens, bs),
            req_pool_indices=head(forward_batch.req_pool_indices, bs),
            req_to_token=backend.req_to_token,
        )
    except (TypeError, ValueError) as reason:
        _leave(mode.name, str(reason))
        return None
    return _Understood(arguments, plan)


def _leave(what: str, reason: str) -> None:
    log.say_once(f"nsa_kernel leaves the refresh of {what} to SGLang: {reason}")


def _obstacle(backend: Any) -> str:
    """Why all refreshes of a backend stay SGLang's own; empty where nothing speaks against ours."""
    major = backend.device_sm_major
    if not dsa_backend.is_cuda():
        return "its device is not of CUDA"
    if major not in _SCHEDULE_FORMATS or (major == 10) != get_platform().is_sm100:
        return f"DeepGEMM's schedule for compute capability {major}.x is not known"
    if dsa_backend.envs.SGLANG_FP8_PAGED_MQA_LOGITS_TORCH.get():
        return "SGLANG_FP8_PAGED_MQA_LOGITS_TORCH asks for a schedule that is not DeepGEMM's"
    if backend.dsa_index_kpool > 1:
        return f"dsa_index_kpool is {backend.dsa_index_kpool}"
    for name, method in _METHODS.items():
        if getattr(type(backend), name) is not method:
            return f"{type(backend).__name__}.{name} is not SGLang's own"
    return ""


def _arguments(backend: Any, mode: Any, bs: int) -> dict[str, Any]:
    """The arguments of the launch that writes what SGLang's refresh writes, but for its inputs.

    Raises:
        ValueError: Why that is not known.
    """
    _need(not (obstacle := _obstacle(backend)), obstacle)
    decode, verify = mode.is_decode_or_idle(), mode.is_target_verify()
    _need(decode or verify or mode.is_draft_extend_v2(), "it is no step of a captured decoding batch")
    batches = backend.decode_cuda_graph_metadata
    metadata = batches[bs]
    num_tokens = 1 if decode else backend.speculative_num_draft_tokens
    rows = bs * num_tokens
    for name, size in (
        ("cache_seqlens_int32", bs),
        ("cu_seqlens_k", bs + 1),
        ("dsa_seqlens_expanded", rows),
        ("dsa_cache_seqlens_int32", rows),
        ("dsa_cu_seqlens_k", rows + 1),
    ):
        found = getattr(metadata, name).numel()
        _need(found == size, f"{name} has {found} elements, must have {size}")
    lengths, context = metadata.dsa_seqlens_expanded, metadata.paged_mqa_ctx_lens_2d
    # DeepGEMM for SM100 reads the drafts of a request as one row of context lengths.
    by_request = verify and num_tokens >= 2 and get_platform().is_sm100
    if decode:
        _need(_same(lengths, metadata.cache_seqlens_int32), "dsa_seqlens_expanded is no view of cache_seqlens_int32")
    if by_request:
        _need(tuple(context.shape) == (bs, num_tokens), f"paged_mqa_ctx_lens_2d has shape {tuple(context.shape)}")
    else:
        _need(_same(context, lengths), "paged_mqa_ctx_lens_2d is no view of dsa_seqlens_expanded")
    if backend.dsa_decode_impl == "flashmla_kv":
        shared = batches["flashmla_metadata"].flashmla_metadata
        _need(
            metadata.flashmla_metadata.flashmla_metadata.data_ptr() != shared.data_ptr(),
            "its FlashMLA schedule is that of all batch sizes",
        )
    _need(metadata.paged_mqa_schedule_metadata is not None, "it has no schedule")
    arguments = {
        "mode": "decode" if decode else "target_verify" if verify else "draft_extend",
        "nsa_index_topk": backend.dsa_index_topk,
        "page_size": backend.physical_page_size,
        "cache_seqlens": metadata.cache_seqlens_int32,
        "cu_seqlens_k": metadata.cu_seqlens_k,
        "nsa_cache_seqlens": metadata.dsa_cache_seqlens_int32,
        "nsa_cu_seqlens_k": metadata.dsa_cu_seqlens_k,
        "page_table": metadata.page_table_1,
        "schedule": metadata.paged_mqa_schedule_metadata,
        "schedule_format": _SCHEDULE_FORMATS[backend.device_sm_major],
        "schedule_rows": "request" if by_request else "token",
    }
    if backend.physical_page_size > 1:
        arguments["real_page_table"] = metadata.real_page_table
    if not decode:
        arguments |= {"num_draft_tokens": num_tokens, "seqlens_expanded": lengths}
    if by_request:
        arguments["ctx_lens_2d"] = context
    if metadata.topk_v2_plan is not None and (clusters := _topk_clusters()):
        arguments |= {
            "topk_plan": metadata.topk_v2_plan,
            "topk_plan_format": _TOPK_PLAN_FORMATS[backend.device_sm_major],
            "topk_plan_clusters": clusters,
        }
    return arguments


def _need(holds: bool, reason: str) -> None:
    if not holds:
        raise ValueError(reason)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors, whatever their shapes, are the same memory."""
    return one.data_ptr() == other.data_ptr() and one.numel() == other.numel()


def _topk_clusters() -> int:
    """The clusters that SGLang's top-k was compiled for."""
    _need(is_arch_support_pdl(), "the clusters of its top-k are not known")
    try:
        return int(occupancy.get_max_active_clusters(8, occupancy=2))
    except occupancy.NoSchedulableClustersError:
        return 0
