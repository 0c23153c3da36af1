"""Attention metadata for native sparse attention: one launch, never waiting, from any framework's arrays."""

from ._ext import (
    CudaError,
    DraftExtendPlan,
    ReplayPlan,
    __version__,
    fill_draft_extend_metadata,
    fill_draft_extend_metadata_cuda,
    fill_draft_extend_metadata_cuda_adaptive,
    fill_draft_extend_metadata_cuda_basic,
    fill_draft_extend_metadata_cuda_optimized,
    fill_draft_extend_metadata_inplace,
    fill_replay_metadata,
    get_kernel_info,
    is_cuda_kernel_available,
)

__all__ = [
    "CudaError",
    "DraftExtendPlan",
    "ReplayPlan",
    "__version__",
    "fill_draft_extend_metadata",
    "fill_draft_extend_metadata_cuda",
    "fill_draft_extend_metadata_cuda_adaptive",
    "fill_draft_extend_metadata_cuda_basic",
    "fill_draft_extend_metadata_cuda_optimized",
    "fill_draft_extend_metadata_inplace",
    "fill_replay_metadata",
    "get_kernel_info",
    "is_cuda_kernel_available",
]
