"""Each call reads what was enqueued before it, and what comes after it reads what it wrote."""

import nsa_kernel
import pytest
import torch

STEPS = 50
# Batches of one warp, of one block, of several; each is another kernel.
BATCH_SIZES = [1, 32, 33, 512, 513, 1024, 5000]


def replay_step(source, target):
    """One more than `source`: one draft token that seq_lens does not count."""
    return nsa_kernel.ReplayPlan(
        "target_verify", seq_lens=source, nsa_index_topk=1, num_draft_tokens=1, cache_seqlens=target
    ).run


def table_step(source, target):
    """One more than `source`, through a page table: a pool whose only row holds it."""
    rows = torch.arange(len(source), device=source.device)
    ones = torch.ones_like(source)
    plan = nsa_kernel.ReplayPlan(
        "decode",
        seq_lens=ones,
        nsa_index_topk=1,
        req_pool_indices=rows,
        req_to_token=source[:, None],
        page_table=target[:, None],
    )
    return lambda: (plan.run(), target.add_(1))


def draft_extend_step(variant):
    def step(source, target):
        ones, clipped = torch.ones_like(source), torch.zeros_like(target)
        plan = nsa_kernel.DraftExtendPlan(ones, source, 1, target, clipped, variant=variant)
        return lambda: (plan.run(), target.add_(1))

    return step


KINDS = {"replay": replay_step, "tables": table_step}
KINDS |= {variant: draft_extend_step(variant) for variant in ("optimized", "adaptive", "basic")}


def chain(kind, device, bs):
    """Calls that each add one to what the call before left, from array to array and back."""
    start = torch.arange(bs, dtype=torch.int32, device=device)
    arrays = [start.clone(), torch.zeros_like(start)]
    there, back = KINDS[kind](*arrays), KINDS[kind](*reversed(arrays))

    def run():
        for _ in range(STEPS):
            there()
            back()

    return run, arrays[0], start


@pytest.mark.parametrize("bs", BATCH_SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_calls_follow_each_other(device, kind, bs):
    run, array, start = chain(kind, device, bs)
    run()
    assert torch.equal(array, start + 2 * STEPS)


@pytest.mark.cuda
@pytest.mark.parametrize("bs", BATCH_SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_nodes_of_a_graph_follow_each_other(device, kind, bs):
    run, array, start = chain(kind, device, bs)
    with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
        run()
    graph.replay()
    graph.replay()
    assert torch.equal(array, start + 4 * STEPS)


@pytest.mark.cuda
@pytest.mark.parametrize("captured", [False, True])
def test_a_call_waits_for_long_work_and_is_waited_for(device, captured):
    """Work that takes far longer than a launch stands before the call, in its stream and in one that joins it."""
    bs = 4000
    source, target, seen = torch.zeros(3, bs, dtype=torch.int32, device=device)
    step = replay_step(source, target)
    other = torch.cuda.Stream()
    big = torch.ones(1 << 26, dtype=torch.int32, device=device)

    def work():
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            for _ in range(5):
                big.mul_(1)
            source.copy_(big[:bs])
        torch.cuda.current_stream().wait_stream(other)
        step()
        seen.copy_(target)
        for _ in range(5):
            big.mul_(1)
        source.copy_(big[:bs] + 6)
        step()

    if captured:
        with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
            work()
        graph.replay()
    else:
        work()
    assert seen.tolist() == [2] * bs
    assert target.tolist() == [8] * bs
