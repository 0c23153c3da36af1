"""vLLM's metadata of sparse attention on this library, and the plug-in that puts it there."""

from nsa_kernel.vllm.plugin import register

__all__ = ["register"]
