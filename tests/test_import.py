"""What the import costs. What arrays cost is a row of benchmarks/bench.py."""

import subprocess
import sys
import time


def seconds(code):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def test_the_import_takes_less_than_50_ms():
    """Best of several in turns, so that a busy machine disturbs both alike."""
    pairs = [(seconds("pass"), seconds("import nsa_kernel")) for _ in range(8)]
    bare, with_import = (min(times) for times in zip(*pairs, strict=True))
    assert with_import - bare < 0.050


def test_the_import_brings_no_framework():
    code = "import sys, nsa_kernel; print(sorted({'torch', 'numpy', 'cupy', 'jax'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
