"""Several threads, devices and processes at once: answers are not mixed up, and errors are clear."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import nsa_kernel
import pytest
import torch
from memory import lengths
from reference import draft_extend

THREADS, ROUNDS = 8, 200


def in_threads(work):
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, range(THREADS)))


def places(device):
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] if device == "cuda" else ["cpu"]


def test_counts_of_waiting_calls_are_not_mixed_up(device):
    def work(thread):
        place = places(device)[thread % len(places(device))]
        q, k = lengths([thread] * 50, device=place), lengths([99] * 50, device=place)
        outputs = [torch.empty(50 * THREADS, dtype=torch.int32, device=place) for _ in range(2)]
        stream = torch.cuda.Stream(place) if device == "cuda" else None
        if stream:
            stream.wait_stream(torch.cuda.current_stream(place))
        counts = {
            nsa_kernel.fill_draft_extend_metadata_cuda(
                q, k, 7, *outputs, use_adaptive=step % 2 == 0, use_optimized=step % 3 == 0, stream=stream
            )
            for step in range(ROUNDS)
        }
        if stream:
            stream.synchronize()
        return counts, outputs[0][: 50 * thread].tolist()

    for thread, (counts, expanded) in enumerate(in_threads(work)):
        assert counts == {50 * thread}
        assert expanded == draft_extend([thread] * 50, [99] * 50, 7, 50 * thread)[0]


def test_a_plan_may_run_in_many_threads(device):
    q, k = lengths([3] * 50, device=device), lengths([99] * 50, device=device)
    outputs = [torch.empty(150, dtype=torch.int32, device=device) for _ in range(2)]
    plans = [nsa_kernel.DraftExtendPlan(q, k, 7, *outputs, variant=v) for v in ("basic", "adaptive", "optimized")]

    def work(thread):
        for step in range(ROUNDS):
            plans[step % 3].run()

    in_threads(work)
    assert outputs[0].tolist() == draft_extend([3] * 50, [99] * 50, 7, 150)[0]


def test_refusals_in_threads_do_not_meet(device):
    q, k = lengths([3], device=device), lengths([9], device=device)
    outputs = [torch.empty(3, dtype=torch.int32, device=device) for _ in range(2)]

    def work(thread):
        messages = set()
        for _ in range(ROUNDS):
            try:
                nsa_kernel.fill_draft_extend_metadata(q, k, -1 - thread, *outputs)
            except ValueError as refusal:
                messages.add(str(refusal))
        return messages

    for thread, messages in enumerate(in_threads(work)):
        assert messages == {f"fill_draft_extend_metadata: nsa_index_topk is {-1 - thread}, must be at least 0"}


@pytest.mark.parametrize("variant", ["basic", "adaptive", "optimized"])
def test_a_plan_for_each_thread_and_one_for_all(device, variant):
    """Each thread changes its own inputs; the shared plan is run from every stream at once."""
    q, k = lengths([3] * 50, device=device), lengths([99] * 50, device=device)
    shared_outputs = [torch.zeros(150, dtype=torch.int32, device=device) for _ in range(2)]
    shared = nsa_kernel.DraftExtendPlan(q, k, 7, *shared_outputs)
    if device == "cuda":
        torch.cuda.synchronize()

    def work(thread):
        stream = torch.cuda.Stream() if device == "cuda" else None
        with torch.cuda.stream(stream):
            seq_lens = lengths([0] * 20, device=device)
            outputs = [torch.zeros(60, dtype=torch.int32, device=device) for _ in range(2)]
            plan = nsa_kernel.DraftExtendPlan(lengths([3] * 20, device=device), seq_lens, 7, *outputs, variant=variant)
            kv = torch.zeros(20, dtype=torch.int32, device=device)
            replay = nsa_kernel.ReplayPlan("decode", seq_lens=seq_lens, nsa_index_topk=7, cache_seqlens=kv)
            wrong = torch.zeros((), dtype=torch.bool, device=device)
            for step in range(ROUNDS):
                seq_lens.fill_(100 * thread + step % 90 + 3)
                plan.run()
                replay.run()
                shared.run()
                wrong |= (kv != seq_lens).any() | (outputs[0][::3] != seq_lens - 2).any()
            return bool(wrong)

    assert in_threads(work) == [False] * THREADS
    assert shared_outputs[0].tolist() == draft_extend([3] * 50, [99] * 50, 7, 150)[0]


LONG_CALLS = {
    "function": lambda q, k, out: nsa_kernel.fill_draft_extend_metadata(q, k, 7, *out),
    "waiting": lambda q, k, out: nsa_kernel.fill_draft_extend_metadata_cuda(q, k, 7, *out),
    "direct": lambda q, k, out: nsa_kernel.fill_draft_extend_metadata_cuda_basic(q, k, 7, *out),
    "plan": lambda q, k, out: nsa_kernel.DraftExtendPlan(q, k, 7, *out).run(),
    "replay": lambda q, k, out: nsa_kernel.fill_replay_metadata(
        "draft_extend", seq_lens=k, nsa_index_topk=7, extend_seq_lens=q, seqlens_expanded=out[0]
    ),
    "replay plan": lambda q, k, out: nsa_kernel.ReplayPlan(
        "draft_extend", seq_lens=k, nsa_index_topk=7, extend_seq_lens=q, seqlens_expanded=out[0]
    ).run(),
}


@pytest.mark.parametrize("call", LONG_CALLS.values(), ids=LONG_CALLS.keys())
def test_other_threads_run_during_a_long_call(call):
    tokens = 1 << 24
    q, k = lengths([tokens]), lengths([tokens])
    out = torch.zeros((2, tokens), dtype=torch.int32)
    ticks, done = [], threading.Event()

    def tick():
        while not done.wait(0.0005):
            ticks.append(time.perf_counter())

    def ticked_amid_the_call():
        begin = time.perf_counter()
        call(q, k, out)
        end = time.perf_counter()
        quarter = (end - begin) / 4
        return any(begin + quarter < at < end - quarter for at in ticks)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        assert any(ticked_amid_the_call() for _ in range(5)), "no other thread ran"
    finally:
        done.set()
        thread.join()


@pytest.mark.cuda
def test_calls_for_two_devices_interleave(device):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    batches = []
    for place in ("cuda:0", "cuda:1"):
        q, k = lengths([2, 3], device=place), lengths([10, 15], device=place)
        batches.append((q, k, [torch.zeros(5, dtype=torch.int32, device=place) for _ in range(2)]))
    plans = [nsa_kernel.DraftExtendPlan(q, k, 12, *outs, variant="basic") for q, k, outs in batches]
    for step in range(ROUNDS):
        with torch.cuda.device(step % 2):
            for (q, k, outs), plan in zip(batches, plans, strict=True):
                plan.run()
                assert nsa_kernel.fill_draft_extend_metadata_cuda(q, k, 12, *outs, use_optimized=step % 3 == 0) == 5
                nsa_kernel.fill_replay_metadata("decode", seq_lens=k, nsa_index_topk=12, cache_seqlens=outs[1])
            assert torch.cuda.current_device() == step % 2
    for q, _, outs in batches:
        assert outs[0].tolist() == [9, 10, 13, 14, 15]
        assert outs[1].tolist() == [10, 15, 12, 12, 12]
        with pytest.raises(ValueError, match=r"is on cuda:\d, must be on cuda:\d like extend_seq_lens"):
            nsa_kernel.fill_draft_extend_metadata(q, batches[q.device.index - 1][1], 12, *outs)


# Processes. Each is a fresh one: a fork and a lost device leave nothing that another test could use.

BATCH = """
    import ctypes, os, signal, time
    import nsa_kernel, torch

    signal.alarm(100)

    def batch():
        q, k = torch.tensor([2, 3], device="{device}"), torch.tensor([10, 15], device="{device}")
        return q, k, 12, *(torch.zeros(5, dtype=torch.int32, device="{device}") for _ in range(2))

    def run():
        arguments = batch()
        nsa_kernel.DraftExtendPlan(*arguments).run()
        assert nsa_kernel.fill_draft_extend_metadata_cuda(*arguments) == 5
        assert arguments[3].tolist() == [9, 10, 13, 14, 15]

    called = []
    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: called.append(True))

    def call_python_later(stream):
        torch.cuda._sleep(2_000_000_000)
        handle = ctypes.c_void_p(stream.cuda_stream)
        assert ctypes.CDLL("libcuda.so.1").cuLaunchHostFunc(handle, callback, None) == 0

    def in_child(work):
        child = os.fork()
        if child == 0:
            signal.alarm(50)
            try:
                work()
                os._exit(0)
            except RuntimeError as error:  # CudaError, or that of the framework
                print(type(error).__name__, error, flush=True)
                os._exit(3)
            finally:
                os._exit(4)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def run_process(code, device, **environment):
    code = textwrap.dedent(BATCH).format(device=device) + textwrap.dedent(code)
    process = [sys.executable, "-c", code]
    done = subprocess.run(
        process, capture_output=True, text=True, check=False, timeout=120, env=os.environ | environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_fork_after_the_import_works(device):
    run_process("assert in_child(run) == 0\nrun()", device)


def test_a_fork_after_use_works_or_says_why_not(device):
    code = f"""
        arguments = batch()
        plan = nsa_kernel.DraftExtendPlan(*arguments)
        plan.run()
        works = "{device}" == "cpu"
        stream = None if works else 1
        allowed = [0] if works else [0, 3]
        assert in_child(lambda: plan.run(stream)) in allowed
        assert in_child(lambda: nsa_kernel.fill_draft_extend_metadata_cuda(*arguments, stream=stream)) in allowed
        assert in_child(run) in allowed
        plan.run()
        run()
    """
    run_process(code, device)


@pytest.mark.cuda
def test_one_process_for_each_gpu(device):
    for index in range(torch.cuda.device_count()):
        run_process("assert torch.cuda.device_count() == 1\nrun()", device, CUDA_VISIBLE_DEVICES=str(index))


@pytest.mark.cuda
def test_no_other_device_is_opened(device):
    """In a new thread the first device is current, and has no context yet; it needs hundreds of MB of memory."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    code = """
        import threading
        from nsa_kernel.tools.benchmark import launch_empty_kernel

        driver = ctypes.CDLL("libcuda.so.1")

        def is_open(index):
            flags, active = ctypes.c_uint(), ctypes.c_int()
            assert driver.cuDevicePrimaryCtxGetState(index, ctypes.byref(flags), ctypes.byref(active)) == 0
            return bool(active)

        def work():
            for function in (nsa_kernel.fill_draft_extend_metadata, nsa_kernel.fill_draft_extend_metadata_cuda):
                function(*arguments, stream=stream)
            for variant in ("basic", "adaptive", "optimized"):
                plan = nsa_kernel.DraftExtendPlan(*arguments, variant=variant)
                plan.run(stream)
                del plan
            nsa_kernel.fill_replay_metadata(
                "decode", seq_lens=arguments[1], nsa_index_topk=12, cache_seqlens=arguments[4], stream=stream
            )
            launch_empty_kernel(stream, device=1)
            assert not is_open(0)
            assert torch.cuda.current_device() == 0
            assert torch.zeros(1, device="cuda").device.index == 0
            finished.append(True)

        arguments, finished = batch(), []
        stream = torch.cuda.Stream(1).cuda_stream
        torch.cuda.synchronize(1)
        assert is_open(1) and not is_open(0), "the test itself opened the first device"
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        torch.cuda.synchronize(1)
        assert finished == [True]
        assert arguments[3].tolist() == [9, 10, 13, 14, 15]
        assert arguments[4].tolist() == [10, 15, 12, 12, 12]
    """
    run_process(code, "cuda:1")


@pytest.mark.cuda
@pytest.mark.parametrize("seen_before", [False, True])
@pytest.mark.parametrize("call", ["fill_draft_extend_metadata_cuda(*arguments)", "DraftExtendPlan(*arguments).run()"])
def test_a_device_that_failed_is_reported_and_never_waited_for(device, call, seen_before):
    """A kernel of another library fails its assertion; the device is lost to the process from then on."""
    code = f"""
        arguments = batch()
        run()
        torch.zeros(4, device="cuda")[torch.tensor([1 << 20], device="cuda")]
        if {seen_before}:
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                pass
        errors = []
        end = time.monotonic() + 30
        while not errors and time.monotonic() < end:
            try:
                nsa_kernel.{call}
            except nsa_kernel.CudaError as error:
                errors.append(error)
        assert errors, "no call saw the error"
        assert errors[0].code > 0 and "(cudaError" in str(errors[0]), errors
        print(errors[0], flush=True)
        os._exit(0)
    """
    assert run_process(code, device).startswith("fill_draft_extend_metadata: CUDA error ")


DAEMON = """
import array, threading, time
import nsa_kernel

def ints(*values):
    return array.array("i", values)

plan = nsa_kernel.DraftExtendPlan(ints(2, 3), ints(10, 15), 12, ints(*[0] * 5), ints(*[0] * 5))

def run_for_ever():
    while True:
        plan.run()

threading.Thread(target=run_for_ever, daemon=True).start()
time.sleep(0.05)
"""


def test_a_process_may_exit_while_a_daemon_thread_calls():
    """The interpreter shuts down while the thread waits for the GIL; several times, for that takes some luck."""
    command = [sys.executable, "-c", DAEMON]
    for _ in range(6):
        processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
        for process in processes:
            errors = process.communicate(timeout=60)[1]
            assert process.returncode == 0, errors


@pytest.mark.cuda
@pytest.mark.parametrize(
    "call",
    [
        "nsa_kernel.fill_draft_extend_metadata(*arguments)",
        "nsa_kernel.fill_draft_extend_metadata_cuda_optimized(*arguments)",
        "plan.run()",
        "nsa_kernel.fill_replay_metadata('decode', **replay)",
        "replay_plan.run()",
        "launch_empty_kernel(stream)",
    ],
)
def test_a_full_stream_may_wait_for_python(device, call):
    """A stream holds so many launches; the next one waits, here for a callback that is written in Python."""
    code = f"""
        from nsa_kernel.tools.benchmark import launch_empty_kernel

        arguments = batch()
        plan = nsa_kernel.DraftExtendPlan(*arguments)
        replay = dict(seq_lens=arguments[1], nsa_index_topk=12, cache_seqlens=arguments[3])
        replay_plan = nsa_kernel.ReplayPlan("decode", **replay)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            {call}
            torch.cuda.synchronize()
            call_python_later(stream)
            for _ in range(20_000):
                {call}
            assert called == [True], "the stream held all launches, so that none waited"
            torch.cuda.synchronize()
    """
    run_process(code, device)


@pytest.mark.cuda
@pytest.mark.parametrize("variant", ["basic", "adaptive"])
def test_a_workspace_may_wait_for_python(device, variant):
    """To free device memory is to wait for the device, here for a callback that is written in Python."""
    code = f"""
        arguments = batch()
        plan = nsa_kernel.DraftExtendPlan(*arguments, variant="{variant}")
        plan.run()
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            call_python_later(stream)
        another = nsa_kernel.DraftExtendPlan(*arguments, variant="{variant}")
        del plan, another
        torch.cuda.synchronize()
        assert called == [True]
    """
    run_process(code, device)
