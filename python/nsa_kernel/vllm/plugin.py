"""The plug-in that puts this package's functions in the place of vLLM's, as vLLM imports them."""

import importlib
import importlib.abc
import importlib.util
import sys
import warnings
from typing import Any

import torch

import nsa_kernel
from nsa_kernel import _plugin
from nsa_kernel.vllm.log import log
from nsa_kernel.vllm.own import own
from nsa_kernel.vllm.versions import LEVELS, find, obstacle

_SWITCH = "NSA_KERNEL_VLLM"
_registered = False


def register() -> None:
    """Replaces what fits of vLLM, a level at a time; the log says which levels, and why the others are not.

    The entry point of the group ``vllm.general_plugins``. ``NSA_KERNEL_VLLM`` is ``0`` for nothing, ``functions`` for
    the kernels alone, unset or ``1`` for everything that fits.

    Nothing of vLLM is imported here: a level is replaced once vLLM has imported its module. Nor is CUDA touched, since
    vLLM forks its workers afterwards. An exception would end vLLM, so there is none, and to run again does nothing.
    """
    global _registered  # noqa: PLW0603
    if _registered:
        return
    _registered = True
    if reason := _obstacle():
        log.announce(f"nsa_kernel leaves vLLM as it is: {reason}")
        return
    names = list(LEVELS)
    if _plugin.switch_of(_SWITCH) == "functions":
        names.remove("kernels")
        log.announce(f"nsa_kernel leaves vLLM's {', '.join(names)} in place: {_SWITCH} is functions")
        names = ["kernels"]
    waiting: dict[str, list[str]] = {}
    for name in names:
        waiting.setdefault(LEVELS[name].module, []).append(name)
    for module in [module for module in waiting if module in sys.modules]:
        _replace(waiting.pop(module))
    sys.meta_path.insert(0, _AfterImport(waiting))


def _obstacle() -> str:
    return _plugin.obstacle(_SWITCH) or ("" if torch.version.cuda is not None else "torch is built without CUDA")


class _AfterImport(importlib.abc.MetaPathFinder):
    """Has levels replaced right after the module that they wait for has been imported."""

    def __init__(self, waiting: dict[str, list[str]]) -> None:
        self.waiting = waiting

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """Finds what the other finders find, and goes on waiting where that is all that is asked."""
        names = self.waiting.pop(fullname, None)
        if names is None:
            return None
        try:
            spec = importlib.util.find_spec(fullname)  # which asks here too
        finally:
            self.waiting[fullname] = names
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                _replace(self.waiting.pop(fullname, []))

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _replace(names: list[str]) -> None:
    """Replaces the levels that fit. An exception would end the import that it follows, so there is none."""
    try:
        # All are checked before the first is replaced: a level may rely on what another one replaces.
        obstacles = {name: obstacle(LEVELS[name]) for name in names}
        for name, reason in obstacles.items():
            if reason:
                log.announce(f"nsa_kernel leaves vLLM's {name} in place: {reason}")
            else:
                _replace_level(name)
    except Exception as error:  # of vLLM's code too
        log.announce(f"nsa_kernel leaves vLLM's {', '.join(names)} in place: {error!r}")


def _replace_level(name: str) -> None:
    level = LEVELS[name]
    ours = importlib.import_module(level.ours)
    places = {target: find(target) for target in level.replacements}
    if name == "kernels":
        with warnings.catch_warnings(action="ignore"):  # of whatever vLLM's registry looks at in every module
            ours.replace(
                {target: kernel for target, (_, _, kernel) in places.items()},
                {target: getattr(ours, function) for target, function in level.replacements.items()},
            )
        for holder, attribute, kernel in places.values():
            if hasattr(kernel, "warmup"):  # vLLM may compile it ahead of its use; without a driver, Triton is a stub
                getattr(holder, attribute).warmup = kernel.warmup
    else:
        for target, (holder, attribute, value) in places.items():
            own[target] = value
            setattr(holder, attribute, getattr(ours, level.replacements[target]))
    names = ", ".join(attribute for _, attribute, _ in places.values())
    log.announce(f"nsa_kernel {nsa_kernel.__version__} replaces vLLM's {name}: {names}")
