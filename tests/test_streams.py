"""`stream=`: None, an int handle, or an object with `__cuda_stream__`."""

import re

import nsa_kernel
import pytest
import torch
from memory import POISON, lengths


class HasHandle:
    """The protocol alone, whatever it answers."""

    def __init__(self, answer):
        self.answer = answer

    def __cuda_stream__(self):
        if self.answer is RuntimeError:
            raise RuntimeError("closed")
        return self.answer


def draft_extend_arguments(device, bs=3):
    inputs = [lengths([2] * bs, device=device), lengths([9] * bs, device=device)]
    return [*inputs, 7, *(torch.full((2 * bs,), POISON, dtype=torch.int32, device=device) for _ in range(2))]


def every_call(device):
    """(call with `stream`, array that it writes, what it writes there)."""
    draft_extend = [8, 9] * 3

    def by(function):
        arguments = draft_extend_arguments(device)
        return lambda stream: function(*arguments, stream=stream), arguments[3], draft_extend

    for name in ("", "_cuda", "_cuda_basic", "_cuda_adaptive", "_cuda_optimized"):
        yield by(getattr(nsa_kernel, f"fill_draft_extend_metadata{name}"))
    arguments = draft_extend_arguments(device)
    yield nsa_kernel.DraftExtendPlan(*arguments).run, arguments[3], draft_extend
    for plan in (False, True):
        out = torch.full((3,), POISON, dtype=torch.int32, device=device)
        replay = {"seq_lens": lengths([4, 5, 6], device=device), "nsa_index_topk": 7, "cache_seqlens": out}
        if plan:
            yield nsa_kernel.ReplayPlan("decode", **replay).run, out, [4, 5, 6]
        else:
            yield (
                lambda stream, kw=replay: nsa_kernel.fill_replay_metadata("decode", stream=stream, **kw),
                out,
                [4, 5, 6],
            )


GOOD = {"none": None, "zero": 0, "protocol": HasHandle((0, 0)), "legacy stream": 1, "per-thread stream": 2}


@pytest.mark.parametrize("stream", GOOD.values(), ids=GOOD.keys())
def test_streams_that_are_accepted(device, stream):
    for call, out, expected in every_call(device):
        call(stream)
        if device == "cuda":
            torch.cuda.synchronize()
        assert out.tolist() == expected


BAD = {
    "str": ("0", "a str"),
    "float": (1.5, "a float"),
    "object": (object(), "a object"),
    "bool": (True, "True"),
    "negative": (-1, "-1"),
    "too large": (2**64, str(2**64)),
    "list": ([0], "a list"),
    "protocol without an answer": (HasHandle(None), "a test_streams.HasHandle"),
    "protocol with an empty answer": (HasHandle(()), "a test_streams.HasHandle"),
    "protocol with half an answer": (HasHandle((0,)), "a test_streams.HasHandle"),
    "protocol with words": (HasHandle(("a", "b")), "a test_streams.HasHandle"),
    "protocol with an int": (HasHandle(7), "a test_streams.HasHandle"),
    "protocol that raises": (HasHandle(RuntimeError), "a test_streams.HasHandle"),
}


@pytest.mark.parametrize(("stream", "what"), BAD.values(), ids=BAD.keys())
def test_streams_that_are_refused(device, stream, what):
    for call, out, expected in every_call(device):
        op = "fill_replay_metadata" if expected == [4, 5, 6] else "fill_draft_extend_metadata"
        message = f"{op}: stream is {what}, must be None, an int handle, or an object with __cuda_stream__"
        with pytest.raises(TypeError, match="^" + re.escape(message) + "$"):
            call(stream)
        assert out.tolist() == [POISON] * len(expected)


def waits_for(call, out, side, expected):
    """Whether the work of `call` stays behind what `side` is doing, and is done after it."""
    call()  # the first call of a kind may load its kernels, which may wait
    torch.cuda.synchronize()
    out.fill_(POISON)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
    call()
    early = out.tolist()  # read on the current stream, while `side` sleeps
    sleeping = not side.query()
    side.synchronize()
    assert sleeping, "the sleep was too short to see anything"
    assert out.tolist() == expected
    return early == [POISON] * len(expected)


@pytest.mark.cuda
@pytest.mark.parametrize("how", ["int", "torch stream", "protocol"])
def test_work_goes_to_the_given_stream(device, how):
    side = torch.cuda.Stream()
    given = {"int": side.cuda_stream, "torch stream": side, "protocol": HasHandle((0, side.cuda_stream))}[how]
    calls = list(every_call(device))
    del calls[1]  # the call that waits for its count
    for call, out, expected in calls:
        assert waits_for(lambda call=call: call(given), out, side, expected)


@pytest.mark.cuda
def test_without_a_stream_work_goes_to_the_current_one(device):
    side = torch.cuda.Stream()

    def on_side(call):
        with torch.cuda.stream(side):
            call(None)

    calls = list(every_call(device))
    del calls[1]
    for call, out, expected in calls:
        assert waits_for(lambda call=call: on_side(call), out, side, expected)


@pytest.mark.cuda
def test_the_current_stream_of_cupy_is_found(device):
    cupy = pytest.importorskip("cupy")
    arguments = [cupy.asarray(value) if isinstance(value, torch.Tensor) else value
                 for value in draft_extend_arguments(device)]  # fmt: skip
    side = torch.cuda.Stream()

    def on_side():
        with cupy.cuda.ExternalStream(side.cuda_stream):
            nsa_kernel.fill_draft_extend_metadata(*arguments)

    assert waits_for(on_side, torch.from_dlpack(arguments[3]), side, [8, 9] * 3)


@pytest.mark.cuda
def test_the_waiting_call_waits_for_its_own_stream_only(device):
    arguments = draft_extend_arguments(device)
    busy, side = torch.cuda.Stream(), torch.cuda.Stream()
    nsa_kernel.fill_draft_extend_metadata_cuda(*arguments)
    torch.cuda.synchronize()
    with torch.cuda.stream(busy):
        torch.cuda._sleep(1_000_000_000)
    assert nsa_kernel.fill_draft_extend_metadata_cuda(*arguments, stream=side) == 6
    assert not busy.query(), "the call waited for another stream"
    busy.synchronize()


@pytest.mark.cuda
def test_the_callers_device_stays_current(device):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    with torch.cuda.device(0):
        for call, out, expected in every_call("cuda:1"):
            call(None)
            assert torch.cuda.current_device() == 0
            assert out.tolist() == expected
