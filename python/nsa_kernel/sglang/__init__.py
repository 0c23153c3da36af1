"""SGLang's metadata on this library: its functions, its whole refresh, and the plug-in that puts them there."""

from nsa_kernel.sglang.functions import (
    fused_dsa_decode_metadata,
    fused_dsa_draft_extend_metadata,
    fused_dsa_target_verify_metadata,
    seqlens_expand_triton,
)
from nsa_kernel.sglang.plugin import register

__all__ = [
    "fused_dsa_decode_metadata",
    "fused_dsa_draft_extend_metadata",
    "fused_dsa_target_verify_metadata",
    "register",
    "seqlens_expand_triton",
]
