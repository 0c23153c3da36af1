"""Processes of their own: forks, exits, other devices and lost ones, and streams that wait for Python."""

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nsa_kernel
import processes
import pytest
import torch
from draft_extend_cases import VARIANTS
from nsa_kernel.tools.benchmark import launch_empty_kernel


def batch(device):
    q, k = torch.tensor([2, 3], device=device), torch.tensor([10, 15], device=device)
    return q, k, 12, *(torch.zeros(5, dtype=torch.int32, device=device) for _ in range(2))


def run(device):
    arguments = batch(device)
    nsa_kernel.DraftExtendPlan(*arguments).run()
    assert nsa_kernel.fill_draft_extend_metadata_cuda(*arguments) == 5
    assert arguments[3].tolist() == [9, 10, 13, 14, 15]


called = []
callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: called.append(True))


def call_python_later(stream):
    torch.cuda._sleep(2_000_000_000)
    handle = ctypes.c_void_p(stream.cuda_stream)
    assert ctypes.CDLL("libcuda.so.1").cuLaunchHostFunc(handle, callback, None) == 0


# Forks.


def in_fork(work):
    """The exit status of a fork that does this work: 0, or 3 where it raised a RuntimeError."""
    fork = os.fork()
    if fork == 0:
        signal.alarm(50)
        try:
            work()
            os._exit(0)
        except RuntimeError as error:  # CudaError, or that of the framework
            print(type(error).__name__, error, flush=True)
            os._exit(3)
        finally:
            os._exit(4)
    return os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])


def child_forks_after_the_import(device):
    assert in_fork(lambda: run(device)) == 0
    run(device)


def test_a_fork_after_the_import_works(device):
    processes.run(child_forks_after_the_import, device)


def child_forks_after_use(device):
    arguments = batch(device)
    plan = nsa_kernel.DraftExtendPlan(*arguments)
    plan.run()
    works = device == "cpu"
    stream = None if works else 1
    allowed = [0] if works else [0, 3]
    assert in_fork(lambda: plan.run(stream)) in allowed
    assert in_fork(lambda: nsa_kernel.fill_draft_extend_metadata_cuda(*arguments, stream=stream)) in allowed
    assert in_fork(lambda: run(device)) in allowed
    plan.run()
    run(device)


def test_a_fork_after_use_works_or_says_why_not(device):
    processes.run(child_forks_after_use, device)


# Exits.


def test_a_process_may_exit_while_a_daemon_thread_calls():
    """The interpreter shuts down while the thread waits for the GIL; several times, for that takes some luck."""
    command = [sys.executable, Path(__file__).with_name("daemon_thread.py")]
    for _ in range(6):
        started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
        for process in started:
            errors = process.communicate(timeout=60)[1]
            assert process.returncode == 0, errors


# Devices.


def child_runs_on_its_only_gpu(device):
    assert torch.cuda.device_count() == 1
    run(device)


@pytest.mark.cuda
def test_one_process_for_each_gpu(device):
    for index in range(torch.cuda.device_count()):
        processes.run(child_runs_on_its_only_gpu, device, CUDA_VISIBLE_DEVICES=str(index))


def child_works_on_the_second_device():
    driver = ctypes.CDLL("libcuda.so.1")

    def is_open(index):
        flags, active = ctypes.c_uint(), ctypes.c_int()
        assert driver.cuDevicePrimaryCtxGetState(index, ctypes.byref(flags), ctypes.byref(active)) == 0
        return bool(active)

    def work():
        for function in (nsa_kernel.fill_draft_extend_metadata, nsa_kernel.fill_draft_extend_metadata_cuda):
            function(*arguments, stream=stream)
        for variant in VARIANTS:
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

    arguments, finished = batch("cuda:1"), []
    stream = torch.cuda.Stream(1).cuda_stream
    torch.cuda.synchronize(1)
    assert is_open(1)
    assert not is_open(0), "the test itself opened the first device"
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    torch.cuda.synchronize(1)
    assert finished == [True]
    assert arguments[3].tolist() == [9, 10, 13, 14, 15]
    assert arguments[4].tolist() == [10, 15, 12, 12, 12]


@pytest.mark.cuda
def test_no_other_device_is_opened(device):
    """In a new thread the first device is current, and has no context yet; it needs hundreds of MB of memory."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    processes.run(child_works_on_the_second_device)


CALLS_AFTER_A_FAILURE = {
    "function": nsa_kernel.fill_draft_extend_metadata_cuda,
    "plan": lambda *arguments: nsa_kernel.DraftExtendPlan(*arguments).run(),
}


def child_calls_after_a_failure(device, call, seen_before):
    arguments = batch(device)
    run(device)
    torch.zeros(4, device=device)[torch.tensor([1 << 20], device=device)]
    if seen_before:
        with contextlib.suppress(RuntimeError):
            torch.cuda.synchronize()
    errors = []
    end = time.monotonic() + 30
    while not errors and time.monotonic() < end:
        try:
            CALLS_AFTER_A_FAILURE[call](*arguments)
        except nsa_kernel.CudaError as error:
            errors.append(error)
    assert errors, "no call saw the error"
    assert errors[0].code > 0, errors
    assert "(cudaError" in str(errors[0]), errors
    print(errors[0], flush=True)
    os._exit(0)


@pytest.mark.cuda
@pytest.mark.parametrize("seen_before", [False, True])
@pytest.mark.parametrize("call", CALLS_AFTER_A_FAILURE)
def test_a_device_that_failed_is_reported_and_never_waited_for(device, call, seen_before):
    """A kernel of another library fails its assertion; the device is lost to the process from then on."""
    said = processes.run(child_calls_after_a_failure, device, call, seen_before)
    assert said.startswith("fill_draft_extend_metadata: CUDA error ")


def child_calls_while_a_kernel_dies(device):
    q, k, expanded, clipped = (torch.ones(4, dtype=torch.int32, device=device) for _ in range(4))
    assert nsa_kernel.fill_draft_extend_metadata_cuda(q, k, 7, expanded, clipped) == 4
    torch.cuda.synchronize()
    torch.cuda._sleep(100_000_000)
    q[torch.tensor([10**6], device=device)]  # stops the device with an assertion, while the call below polls
    try:
        nsa_kernel.fill_draft_extend_metadata_cuda(q, k, 7, expanded, clipped)
    except nsa_kernel.CudaError as error:
        print("raised", error.code, flush=True)
    os._exit(0)


@pytest.mark.cuda
def test_a_dying_kernel_does_not_leave_the_host_waiting(device):
    assert processes.run(child_calls_while_a_kernel_dies, device).startswith("raised")


# Streams.

ENDLESS_CALLS = {
    "function": lambda arguments, replay: lambda: nsa_kernel.fill_draft_extend_metadata(*arguments),
    "direct": lambda arguments, replay: lambda: nsa_kernel.fill_draft_extend_metadata_cuda_optimized(*arguments),
    "plan": lambda arguments, replay: nsa_kernel.DraftExtendPlan(*arguments).run,
    "replay": lambda arguments, replay: lambda: nsa_kernel.fill_replay_metadata("decode", **replay),
    "replay plan": lambda arguments, replay: nsa_kernel.ReplayPlan("decode", **replay).run,
    "empty kernel": lambda arguments, replay: functools.partial(launch_empty_kernel, torch.cuda.current_stream()),
}


def child_fills_a_stream(device, call):
    arguments = batch(device)
    replay = {"seq_lens": arguments[1], "nsa_index_topk": 12, "cache_seqlens": arguments[3]}
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call = ENDLESS_CALLS[call](arguments, replay)
        call()
        torch.cuda.synchronize()
        call_python_later(stream)
        for _ in range(20_000):
            call()
        assert called == [True], "the stream held all launches, so that none waited"
        torch.cuda.synchronize()


@pytest.mark.cuda
@pytest.mark.parametrize("call", ENDLESS_CALLS)
def test_a_full_stream_may_wait_for_python(device, call):
    """A stream holds so many launches; the next one waits, here for a callback that is written in Python."""
    processes.run(child_fills_a_stream, device, call)


def child_frees_a_workspace(device, variant):
    arguments = batch(device)
    plan = nsa_kernel.DraftExtendPlan(*arguments, variant=variant)
    plan.run()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call_python_later(stream)
    another = nsa_kernel.DraftExtendPlan(*arguments, variant=variant)
    del plan, another
    torch.cuda.synchronize()
    assert called == [True]


@pytest.mark.cuda
@pytest.mark.parametrize("variant", ["basic", "adaptive"])
def test_a_workspace_may_wait_for_python(device, variant):
    """To free device memory is to wait for the device, here for a callback that is written in Python."""
    processes.run(child_frees_a_workspace, device, variant)
