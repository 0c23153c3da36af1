"""A function of a test file, called in a fresh process: nothing that it does is left for another test."""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

TIMEOUT = 300  # seconds: where a machine is emulated or busy, an import of torch may take 100


def run(function, *arguments, options=(), folders=(), timeout=TIMEOUT, **environment):
    """Returns what the process printed; its failure is the test's. Arguments are words and numbers.

    `options` are Python's; `folders` come first where it looks for modules. The process ends itself by `timeout`, in
    seconds, for one that forked keeps its pipes open when it is killed.
    """
    module = function.__module__
    code = f"import signal; signal.alarm({timeout}); import {module}; {module}.{function.__name__}(*{arguments!r})"
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        env=environment_of(folders, environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout + 20,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment_of(folders, environment):
    """The environment of a process that looks for modules in these folders first, then where this one does."""
    path = [*folders, Path(__file__).parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))} | environment


@contextlib.contextmanager
def forks(module, folders=(), timeout=TIMEOUT, **environment):
    """Yields a `run` like the above for a module's functions; its processes are forks of one, and so start fast."""
    code = f"import processes; processes.fork_for({module!r}, {timeout})"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment_of(folders, environment), stdin=pipe, stdout=pipe, text=True
    ) as server:

        def run_in_fork(function, *arguments, **environment):
            print(json.dumps([function.__name__, arguments, environment]), file=server.stdin, flush=True)
            status, output = json.loads(server.stdout.readline())
            assert status == 0, output
            return output

        yield run_in_fork
        server.stdin.close()


def fork_for(module, timeout):
    """Forks for every request on standard input, and answers with the status and the output of the fork."""
    functions = importlib.import_module(module)
    for request in sys.stdin:
        name, arguments, environment = json.loads(request)
        with tempfile.TemporaryFile("w+") as output:
            child = os.fork()
            if child == 0:
                signal.alarm(timeout)
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                os.environ.update(environment)
                status = 1
                try:
                    getattr(functions, name)(*arguments)
                    status = 0
                except BaseException:  # it goes no further than the fork
                    traceback.print_exc()
                sys.stdout.flush()
                os._exit(status)
            _, status = os.waitpid(child, 0)
            output.seek(0)
            print(json.dumps([status, output.read()]), flush=True)
