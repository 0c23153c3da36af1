"""Several threads at once: answers are not mixed up."""

from concurrent.futures import ThreadPoolExecutor

import nsa_kernel
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
