"""What the plug-in tells SGLang's log."""

from nsa_kernel._plugin import Log

log = Log("nsa_kernel.sglang")
