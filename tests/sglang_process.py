"""A process that has SGLang, from the package index without its dependencies, and the plug-in."""

import importlib
import logging
import sys

import nsa_kernel
import processes


def in_child(folder, function, *options, **environment):
    """Runs a function of a test file where SGLang can be imported; returns what it printed."""
    return processes.run(function, str(folder), options=options, folders=[folder], timeout=900, **environment)


def load_plugins(available=True):
    """Has SGLang's own loader find and run the plug-in and its own registry apply the hooks, as if on a GPU."""
    if available:
        nsa_kernel.is_cuda_kernel_available = lambda: True
    importlib.import_module("sglang.srt.plugins").load_plugins()


def log_to_stdout():
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s> %(message)s")


def said(log):
    """What the plug-in logged."""
    return [line.removeprefix("nsa_kernel.sglang> ") for line in log.splitlines() if line.startswith("nsa_kernel.")]


def hook_registry():
    return importlib.import_module("sglang.srt.plugins.hook_registry")
