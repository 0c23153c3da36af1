"""What the plug-in tells vLLM's log."""

from nsa_kernel._plugin import Log

log = Log("vllm.nsa_kernel")  # below the logger that vLLM gives its handler to
