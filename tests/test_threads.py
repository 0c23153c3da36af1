"""Several threads and devices at once: answers are not mixed up, and errors are clear."""

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
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)  # a wait with a timeout wakes up late in a free-threaded Python

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
