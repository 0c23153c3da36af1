"""Attention metadata for native sparse attention: one asynchronous launch, from any framework's arrays."""

try:
    from ._ext import (
        CudaError,
        DraftExtendPlan,
        IndexerDecodePlan,
        ReplayPlan,
        __version__,
        fill_draft_extend_metadata,
        fill_draft_extend_metadata_cuda,
        fill_draft_extend_metadata_cuda_adaptive,
        fill_draft_extend_metadata_cuda_basic,
        fill_draft_extend_metadata_cuda_optimized,
        fill_draft_extend_metadata_inplace,
        fill_indexer_decode_metadata,
        fill_indexer_prefill_metadata,
        fill_replay_metadata,
        fill_token_requests,
        get_kernel_info,
        is_cuda_kernel_available,
    )
except ImportError as error:
    from ._misfit import explain

    explain(error)
    raise

__all__ = [
    "CudaError",
    "DraftExtendPlan",
    "IndexerDecodePlan",
    "ReplayPlan",
    "__version__",
    "fill_draft_extend_metadata",
    "fill_draft_extend_metadata_cuda",
    "fill_draft_extend_metadata_cuda_adaptive",
    "fill_draft_extend_metadata_cuda_basic",
    "fill_draft_extend_metadata_cuda_optimized",
    "fill_draft_extend_metadata_inplace",
    "fill_indexer_decode_metadata",
    "fill_indexer_prefill_metadata",
    "fill_replay_metadata",
    "fill_token_requests",
    "get_kernel_info",
    "is_cuda_kernel_available",
]
