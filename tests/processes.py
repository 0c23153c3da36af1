"""A function of a test file, called in a fresh process: nothing that it does is left for another test."""

import os
import subprocess
import sys
from pathlib import Path


def run(function, *arguments, options=(), folders=(), timeout=100, **environment):
    """Returns what the process printed; its failure is the test's. Arguments are words and numbers.

    `options` are Python's; `folders` come first where it looks for modules. The process ends itself by `timeout`, in
    seconds, for one that forked keeps its pipes open when it is killed.
    """
    path = [*folders, Path(__file__).parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    module = function.__module__
    code = f"import signal; signal.alarm({timeout}); import {module}; {module}.{function.__name__}(*{arguments!r})"
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout + 20,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
