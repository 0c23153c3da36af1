"""What the import costs and where it is refused. What arrays cost is a row of benchmarks/bench.py."""

import importlib
import resource
import subprocess
import sys
from array import array

import processes
import pytest


def cpu_seconds(code):
    """Of a process that runs the code: what it waits for on a busy machine does not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_the_import_takes_less_than_50_ms():
    """Best of several in turns, so that a busy machine disturbs both alike."""
    pairs = [(cpu_seconds("pass"), cpu_seconds("import nsa_kernel")) for _ in range(8)]
    bare, with_import = (min(times) for times in zip(*pairs, strict=True))
    assert with_import - bare < 0.050


def test_the_import_brings_no_framework():
    code = "import sys, nsa_kernel; print(sorted({'torch', 'numpy', 'cupy', 'jax'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


# Where it is refused.


def child_of_a_subinterpreter(kind, imported_before):
    """Imports the package in an interpreter that then ends, and calls it in the main one."""
    if imported_before:
        importlib.import_module("nsa_kernel")
    name = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    interpreters = importlib.import_module(name)
    if sys.version_info >= (3, 13):
        made = interpreters.create(kind)
    elif sys.version_info >= (3, 12):
        made = interpreters.create(isolated=kind == "isolated")
    else:
        made = interpreters.create()
    interpreters.run_string(
        made, "try: import nsa_kernel\nexcept ImportError as error: print('refused:', error, flush=True)"
    )
    interpreters.destroy(made)
    nsa_kernel = importlib.import_module("nsa_kernel")
    lengths, outputs = ([memoryview(array("i", row)) for row in rows] for rows in ([[2], [9]], [[0, 0], [0, 0]]))
    nsa_kernel.fill_draft_extend_metadata(*lengths, 8, *outputs)
    print([row.tolist() for row in outputs])


@pytest.mark.parametrize("imported_before", [False, True])
@pytest.mark.parametrize("kind", ["legacy", "isolated"])
def test_a_subinterpreter_is_refused_and_the_main_one_goes_on(kind, imported_before):
    """An extension that refuses in its PyInit function crashes some versions of Python: python/cpython #144601."""
    refused, called = processes.run(child_of_a_subinterpreter, kind, imported_before).splitlines()
    assert refused.startswith("refused: ")
    assert "subinterpreter" in refused
    assert called == "[[8, 9], [8, 8]]"
