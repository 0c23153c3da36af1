"""Who does a call: the function here, or vLLM's own that it replaces."""

import functools
from collections.abc import Callable
from typing import Any

import nsa_kernel
from nsa_kernel.vllm.log import log

own: dict[str, Callable[..., Any]] = {}  # what was replaced, by its `module:name`
_usable: bool | None = None


def replaces(target: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Has vLLM's own do the calls for which a function returns NotImplemented, and all without a usable GPU.

    Its own does a call that the library refuses too: nothing has been written then.
    """

    def replacing(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            result = NotImplemented
            if _usable or usable():
                try:
                    result = function(*args, **kwargs)
                except (TypeError, ValueError) as reason:
                    log.say_once(f"nsa_kernel leaves a call of {target} to vLLM: {reason}")
            return own[target](*args, **kwargs) if result is NotImplemented else result

        return replacement

    return replacing


def usable() -> bool:
    """Whether this process has a GPU that the package can use: asked at the first call, which is in a worker."""
    global _usable  # noqa: PLW0603
    if _usable is None:
        log.say()
        reason = _obstacle()
        if reason:
            log.announce(f"nsa_kernel is not used: {reason}")
        _usable = not reason
    return _usable


def _obstacle() -> str:
    from vllm.platforms import current_platform  # noqa: PLC0415 (asking for the platform finds it)

    if not current_platform.is_cuda():
        return "the platform is not CUDA"
    return "" if nsa_kernel.is_cuda_kernel_available() else str(nsa_kernel.get_kernel_info()["reason"])
