"""The plug-in that has SGLang's hook registry put the functions, and where it is known the refresh, in their place."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import nsa_kernel
from nsa_kernel import _plugin
from nsa_kernel.sglang import functions, versions
from nsa_kernel.sglang.log import log

_METADATA = "sglang.kernels.ops.attention.dsa.metadata"
_PAD = "sglang.kernels.ops.attention.pad"
# The registry reaches every module that holds a function under any name: the modules that define them are the targets.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"{_METADATA}.fused_dsa_decode_metadata": functions.fused_dsa_decode_metadata,
    f"{_METADATA}.fused_dsa_target_verify_metadata": functions.fused_dsa_target_verify_metadata,
    f"{_METADATA}.fused_dsa_draft_extend_metadata": functions.fused_dsa_draft_extend_metadata,
    f"{_PAD}.seqlens_expand_triton": functions.seqlens_expand_triton,
}
_SWITCH = "NSA_KERNEL_SGLANG"


def register() -> None:
    """Registers all four functions or none, and the refresh where it is known; the log says which, and why.

    The entry point of the group ``sglang.srt.plugins``. ``NSA_KERNEL_SGLANG`` is ``0`` for nothing, ``functions`` for
    the functions alone, unset or ``1`` for everything that fits.
    """
    obstacle = _obstacle()
    if obstacle:
        log.announce(f"nsa_kernel leaves SGLang's metadata functions in place: {obstacle}")
        return
    what = ", ".join(function.__name__ for function in _FUNCTIONS.values())
    replacements = _FUNCTIONS
    obstacle = _refresh_obstacle()
    if not obstacle:
        try:
            replacements = replacements | _refresh_methods()
            what = f"the refresh of captured batches and {what}"
        except Exception as error:  # SGLang's code is imported
            obstacle = repr(error)
    if obstacle:
        what += f"; the refresh stays SGLang's: {obstacle}"
    hooks = importlib.import_module("sglang.srt.plugins.hook_registry")
    for target, function in replacements.items():
        hooks.HookRegistry.register(target, function, hooks.HookType.REPLACE)
    log.announce(f"nsa_kernel {nsa_kernel.__version__} replaces {what}")


def _refresh_methods() -> dict[str, Callable[..., None]]:
    """The methods that refresh a captured batch. Their module imports SGLang's backends, which can be imported here."""
    refresh = importlib.import_module("nsa_kernel.sglang.refresh")
    batch, draft = (f"{versions.BACKEND}.DeepseekSparseAttn{name}Backend" for name in ("", "MultiStep"))
    return {
        f"{batch}.init_forward_metadata_out_graph": refresh.refresh,
        f"{draft}.init_forward_metadata_out_graph": refresh.refresh_draft_steps,
        f"{draft}.init_cuda_graph_state": refresh.share_draft_buffers,
    }


def _refresh_obstacle() -> str:
    """Why the refresh has to stay as it is; empty where nothing speaks against it."""
    if _plugin.switch_of(_SWITCH) == "functions":
        return f"{_SWITCH} is functions"
    return versions.difference()


def _obstacle() -> str:
    """Why SGLang has to stay as it is; empty where nothing speaks against it."""
    if reason := _plugin.obstacle(_SWITCH):
        return reason
    if not nsa_kernel.is_cuda_kernel_available():
        return str(nsa_kernel.get_kernel_info()["reason"])
    for target, function in _FUNCTIONS.items():
        module, _, name = target.rpartition(".")
        try:
            original = getattr(importlib.import_module(module), name)
        except Exception as error:  # importing it runs SGLang's code
            return f"{target} cannot be found ({error})"
        try:
            known = _parameters(original) == _parameters(function)
            signature = str(inspect.signature(original))
        except (TypeError, ValueError) as error:
            return f"{target} has no signature ({error})"
        if not known:
            return f"{target} has an unknown signature: {signature}"
    return ""


def _parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """Name, kind and default of each parameter."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]
