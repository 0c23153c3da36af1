"""Eight threads at once, on all that a process has one of: what is known of types, shared plans, messages, info.

`python tests/stress.py SECONDS` says how many rounds were right, and ends with an error at the first that was not.
It is made for a free-threaded Python, also one under ThreadSanitizer; torch takes part where it is installed.
"""

import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import nsa_kernel
import numpy as np
from reference import draft_extend

THREADS, TOKENS, TOPK = 8, 150, 7
Q, KV = [3] * 50, [99] * 50
EXPECTED = draft_extend(Q, KV, TOPK, TOKENS)[0]


def numpy_array(values):
    return np.array(values, np.int32)


def numpy_new_type(array):
    return array.view(type("Met", (np.ndarray,), {}))


FRAMEWORKS = [(numpy_array, numpy_new_type)]
try:
    import torch
except ImportError:
    pass
else:

    def torch_array(values):
        return torch.tensor(values, dtype=torch.int32)

    def torch_new_type(tensor):
        return tensor.as_subclass(type("Met", (torch.Tensor,), {}))

    FRAMEWORKS.append((torch_array, torch_new_type))


def batch(array, room=TOKENS):
    return array(Q), array(KV), TOPK, array([0] * room), array([0] * room)


# Outputs without room: threads that write into one array, be it the same values, are a race of the caller's making.
SHARED_PLANS = [
    nsa_kernel.DraftExtendPlan(*batch(array, room=0), variant=variant)
    for array, _ in FRAMEWORKS
    for variant in ("basic", "adaptive", "optimized")
]


def fill_from_a_new_type(array, new_type, thread):
    q, *rest = batch(array)
    nsa_kernel.fill_draft_extend_metadata(new_type(q), *rest)
    assert rest[-2].tolist() == EXPECTED


def count(array, new_type, thread):
    assert nsa_kernel.fill_draft_extend_metadata_cuda(*batch(array)) == TOKENS


def run_a_plan_that_a_cycle_keeps(array, new_type, thread):
    arguments = batch(array)
    kept = [nsa_kernel.DraftExtendPlan(*arguments)]
    kept.append(kept)
    kept[0].run()
    assert arguments[3].tolist() == EXPECTED


def run_a_shared_plan(array, new_type, thread):
    random.choice(SHARED_PLANS).run()


def refusal(*arguments):
    try:
        nsa_kernel.fill_draft_extend_metadata(*arguments)
    except (TypeError, ValueError) as refused:
        return str(refused)
    return "none"


def be_refused(array, new_type, thread):
    q, kv, topk, *outputs = batch(array)
    assert f"nsa_index_topk is {-1 - thread}," in refusal(q, kv, -1 - thread, *outputs)
    assert "seq_lens" in refusal(q, object(), topk, *outputs)


def read_info(array, new_type, thread):
    assert nsa_kernel.get_kernel_info()["version"] == nsa_kernel.__version__


WORK = [fill_from_a_new_type, count, run_a_plan_that_a_cycle_keeps, run_a_shared_plan, be_refused, read_info]


def main(seconds):
    start = threading.Barrier(THREADS)
    end = time.monotonic() + seconds

    def rounds(thread):
        start.wait()
        done = 0
        while time.monotonic() < end:
            random.choice(WORK)(*random.choice(FRAMEWORKS), thread)
            done += 1
        return done

    with ThreadPoolExecutor(THREADS) as pool:
        total = sum(pool.map(rounds, range(THREADS)))
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    print(f"{total} rounds right, {len(FRAMEWORKS)} frameworks, GIL {'on' if gil else 'off'}")


if __name__ == "__main__":
    main(float(sys.argv[1]))
