"""CUDA graphs: what can be captured, and what refuses to be."""

import gc
import random
import threading

import nsa_kernel
import processes
import pytest
import torch
from draft_extend_cases import VARIANTS
from memory import POISON, lengths
from reference import draft_extend, replay
from replay_cases import shapes_of

pytestmark = pytest.mark.cuda


class FirstBatch:
    def __init__(self, device):
        q, k, s, indices = (torch.tensor(v, device=device) for v in ([2, 3], [10, 15], [4, 5], [1, 0]))
        self.outs = [torch.full((5,), -1, dtype=torch.int32, device=device) for _ in range(2)]
        self.table = torch.full((2, 8), -1, dtype=torch.int32, device=device)
        pool = torch.arange(16, dtype=torch.int32, device=device).reshape(2, 8)
        self.draft_extend = (q, k, 12, *self.outs)
        self.replay = {"seq_lens": s, "nsa_index_topk": 7, "req_pool_indices": indices, "req_to_token": pool}
        self.replay["page_table"] = self.table
        self.plan = None


def run_plan_that_is_kept(batch):
    """The workspace lives in the plan, so the plan must outlive the graph."""
    batch.plan = nsa_kernel.DraftExtendPlan(*batch.draft_extend, variant="basic")
    batch.plan.run()


FIRST_CALLS = {
    **{
        f"draft_extend {variant}": lambda batch, variant=variant: nsa_kernel.fill_draft_extend_metadata(
            *batch.draft_extend, variant=variant
        )
        for variant in VARIANTS
    },
    **{
        f"direct {variant}": lambda batch, variant=variant: getattr(
            nsa_kernel, f"fill_draft_extend_metadata_cuda_{variant}"
        )(*batch.draft_extend)
        for variant in VARIANTS
    },
    "plan basic": run_plan_that_is_kept,
    "plan optimized": lambda batch: nsa_kernel.DraftExtendPlan(*batch.draft_extend).run(),
    "replay": lambda batch: nsa_kernel.fill_replay_metadata("decode", **batch.replay),
}


def child_captures_its_first_call(device, name):
    batch = FirstBatch(device)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        FIRST_CALLS[name](batch)
    got = batch.outs[0].tolist(), batch.table.tolist()
    assert got == ([-1] * 5, [[-1] * 8] * 2), "the capture ran the work"
    graph.replay()
    print(batch.table.tolist() if name == "replay" else batch.outs[0].tolist())


@pytest.mark.parametrize("name", FIRST_CALLS)
def test_the_first_call_of_a_process_may_be_captured(device, name):
    rows = [[8, 9, 10, 11, -1, -1, -1, -1], [0, 1, 2, 3, 4, -1, -1, -1]]
    said = processes.run(child_captures_its_first_call, device, name)
    assert said.strip() == str(rows if name == "replay" else [9, 10, 13, 14, 15])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("by_plan", [False, True])
@pytest.mark.parametrize("bs", [0, 1, 16, 17, 1000, 5000])
def test_a_replay_follows_inputs_that_changed_in_place(device, variant, by_plan, bs):
    q, k = lengths([2] * bs, device=device), lengths([9] * bs, device=device)
    outputs = [torch.full((size,), POISON, dtype=torch.int32, device=device) for size in (4 * bs, 4 * bs, 1)]
    plan = nsa_kernel.DraftExtendPlan(q, k, 7, *outputs, variant=variant)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        if by_plan:
            plan.run()
        else:
            nsa_kernel.fill_draft_extend_metadata(q, k, 7, *outputs, variant=variant)
    for step in range(4):
        counts, kv = [(b * step) % 5 for b in range(bs)], [step + b % 40 for b in range(bs)]
        q.copy_(torch.tensor(counts, dtype=torch.int32))
        k.copy_(torch.tensor(kv, dtype=torch.int32))
        for output in outputs:
            output.fill_(POISON)
        graph.replay()
        expected = draft_extend(counts, kv, 7, 4 * bs)
        for output, want in zip(outputs, (expected[0], expected[1], [expected[2]]), strict=True):
            assert output.tolist() == [POISON if value is None else value for value in want]


@pytest.mark.parametrize("ragged", [False, True])
def test_replay_metadata_follows_too_also_when_the_batch_shrinks(device, ragged):
    """One graph for a batch of 40; later steps fill it with padded rows."""
    bs, n, width = 40, 3, 500
    s, q, indices = (lengths([0] * bs, device=device) for _ in range(3))
    pool = torch.arange(50 * width, dtype=torch.int32, device=device).reshape(50, width)
    shapes = shapes_of("ragged" if ragged else "draft_extend", bs, bs * n, n, width, 64)
    out = {name: torch.full(shape, POISON, dtype=torch.int32, device=device) for name, shape in shapes.items()}
    arguments = {
        "seq_lens": s,
        "nsa_index_topk": 64,
        "num_draft_tokens": n,
        "extend_seq_lens": q if ragged else None,
        "req_pool_indices": indices,
        "req_to_token": pool,
        "page_size": 64,
        **out,
    }
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        nsa_kernel.fill_replay_metadata("draft_extend", **arguments)
    for live in (40, 7, 0, 33):
        steps = {
            "seq_lens": [(37 * b + 11 * live) % 600 if b < live else 0 for b in range(bs)],
            "extend_seq_lens": [(b + live) % (n + 1) if b < live else 0 for b in range(bs)],
            "req_pool_indices": [(b * 7 + live) % 50 if b < live else 0 for b in range(bs)],
        }
        for tensor, values in zip((s, q, indices), steps.values(), strict=True):
            tensor.copy_(torch.tensor(values, dtype=torch.int32))
        for output in out.values():
            output.fill_(POISON)
        graph.replay()
        if not ragged:
            steps["extend_seq_lens"] = None
        expected = replay(
            "draft_extend",
            steps["seq_lens"],
            64,
            shapes,
            num_draft_tokens=n,
            extend_seq_lens=steps["extend_seq_lens"],
            req_pool_indices=steps["req_pool_indices"],
            req_to_token=pool.tolist(),
            req_to_token_width=width,
            page_size=64,
        )
        for name, output in out.items():
            want = torch.tensor([[POISON if value is None else value for value in row] if isinstance(row, list) else row
                                 for row in expected[name]], dtype=torch.int32)  # fmt: skip
            assert torch.equal(output.cpu(), want), name


@pytest.mark.parametrize("flags", [{}, {"use_optimized": False}, {"use_optimized": False, "use_adaptive": False}])
def test_the_synchronizing_call_refuses_a_capture_and_leaves_it_usable(device, flags):
    q, k = lengths([2, 3], device=device), lengths([10, 15], device=device)
    outs = [torch.full((5,), POISON, dtype=torch.int32, device=device) for _ in range(2)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        with pytest.raises(nsa_kernel.CudaError, match=r"call fill_draft_extend_metadata instead") as caught:
            nsa_kernel.fill_draft_extend_metadata_cuda(q, k, 12, *outs, **flags)
        nsa_kernel.fill_draft_extend_metadata(q, k, 12, *outs)
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value.code, int)
    assert caught.value.code > 0
    assert outs[0].tolist() == [POISON] * 5, "something was launched"
    graph.replay()
    assert outs[0].tolist() == [9, 10, 13, 14, 15]
    assert nsa_kernel.fill_draft_extend_metadata_cuda(q, k, 12, *outs, **flags) == 5


def test_a_capture_on_another_stream_does_not_disturb_the_synchronizing_call(device):
    q, k = lengths([2, 3], device=device), lengths([10, 15], device=device)
    outs = [torch.full((5,), POISON, dtype=torch.int32, device=device) for _ in range(2)]
    side = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="relaxed"):
        assert nsa_kernel.fill_draft_extend_metadata_cuda(q, k, 12, *outs, stream=side) == 5
        nsa_kernel.fill_draft_extend_metadata(q, k, 2, *outs)
    graph.replay()
    assert outs[1].tolist() == [2] * 5


def small_batch(device):
    q, k = lengths([2, 3], device=device), lengths([10, 15], device=device)
    return q, k, [torch.full((5,), POISON, dtype=torch.int32, device=device) for _ in range(2)]


def decode_plan(device, seq_lens):
    out = torch.full((len(seq_lens),), POISON, dtype=torch.int32, device=device)
    return nsa_kernel.ReplayPlan("decode", seq_lens=seq_lens, nsa_index_topk=7, seqlens_expanded=out), out


@pytest.mark.parametrize("mode", ["global", "thread_local", "relaxed"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_mode_of_capture(device, mode, variant):
    q, k, outs = small_batch(device)
    by_plan = [torch.full((5,), POISON, dtype=torch.int32, device=device) for _ in range(2)]
    plan = nsa_kernel.DraftExtendPlan(q, k, 12, *by_plan, variant=variant)
    replay_plan, seqlens = decode_plan(device, k)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode=mode):
        nsa_kernel.fill_draft_extend_metadata(q, k, 12, *outs, variant=variant)
        plan.run()
        replay_plan.run()
    assert outs[0].tolist() == by_plan[0].tolist() == [POISON] * 5
    graph.replay()
    assert outs[0].tolist() == by_plan[0].tolist() == [9, 10, 13, 14, 15]
    assert seqlens.tolist() == [10, 15]


def test_one_graph_of_several_plans_replays_on_another_stream(device):
    batches = [small_batch(device) for _ in VARIANTS]
    plans = [
        nsa_kernel.DraftExtendPlan(q, k, 12, *outs, variant=variant)
        for variant, (q, k, outs) in zip(VARIANTS, batches, strict=True)
    ]
    replay_plan, seqlens = decode_plan(device, batches[0][1])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for plan in (*plans, replay_plan):
            plan.run()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        graph.replay()
    side.synchronize()
    assert [outs[1].tolist() for _, _, outs in batches] == [[9, 10, 12, 12, 12]] * 3
    assert seqlens.tolist() == [10, 15]


def test_a_graph_outlives_a_plan_that_has_no_workspace(device):
    q, k, outs = small_batch(device)
    plan = nsa_kernel.DraftExtendPlan(q, k, 12, *outs)
    replay_plan, seqlens = decode_plan(device, k)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan.run()
        replay_plan.run()
    del plan, replay_plan
    gc.collect()
    torch.cuda.empty_cache()
    k.add_(1)
    graph.replay()
    assert outs[0].tolist() == [10, 11, 14, 15, 16]
    assert seqlens.tolist() == [11, 16]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_thousand_replays_are_each_right(device, variant):
    """Every step's lengths lie ready on the device, and its results are kept there, so that steps follow closely."""
    steps, bs, capacity = 1000, 40, 100
    draw = random.Random(variant)
    batches = [
        ([draw.randrange(-1, 4) for _ in range(bs)], [draw.randrange(-2, 90) for _ in range(bs)]) for _ in range(steps)
    ]
    source = torch.tensor(batches, dtype=torch.int32, device=device)
    kept = torch.empty((steps, 2, capacity), dtype=torch.int32, device=device)
    counts = torch.empty((steps, 1), dtype=torch.int32, device=device)
    inputs, outs = source[0].clone(), torch.empty((2, capacity), dtype=torch.int32, device=device)
    count = torch.empty(1, dtype=torch.int32, device=device)
    graph = torch.cuda.CUDAGraph()
    plan = nsa_kernel.DraftExtendPlan(*inputs, 64, *outs, count, variant=variant)
    with torch.cuda.graph(graph):
        plan.run()
    for step in range(steps):
        inputs.copy_(source[step])
        outs.fill_(POISON)
        graph.replay()
        kept[step], counts[step] = outs, count
    for step, (got, tokens) in enumerate(zip(kept.tolist(), counts.tolist(), strict=True)):
        expanded, clipped, total = draft_extend(*batches[step], 64, capacity)
        want = [[POISON if value is None else value for value in values] for values in (expanded, clipped)]
        assert (got, tokens) == (want, [total]), step


class Refresh:
    """A refresh of all outputs, which lie in one array."""

    def __init__(self, mode, bs, pool):
        rows, width, device = 3 * bs, pool.shape[1], pool.device
        self.inputs = torch.empty((3, bs), dtype=torch.int64, device=device)  # lengths, tokens, rows of the pool
        sizes = [66, 2 * rows + 2, rows * width, rows * width // 2, bs + 1, rows, rows, rows + 1, 1]
        self.out = torch.empty(sum(sizes), dtype=torch.int32, device=device)
        schedule, topk_plan, slots, pages, cu, expanded, clipped, cu_clipped, count = self.out.split(sizes)
        self.plan = nsa_kernel.ReplayPlan(
            mode.removeprefix("ragged "),
            seq_lens=self.inputs[0],
            nsa_index_topk=6,
            extend_seq_lens=self.inputs[1] if mode.startswith("ragged") else None,
            num_draft_tokens=3,
            req_pool_indices=self.inputs[2],
            req_to_token=pool,
            page_size=2,
            page_table=slots.reshape(rows, width),
            real_page_table=pages.reshape(rows, width // 2),
            cu_seqlens_k=cu,
            seqlens_expanded=expanded,
            nsa_cache_seqlens=clipped,
            nsa_cu_seqlens_k=cu_clipped,
            num_tokens=count,
            schedule=schedule.reshape(-1, 2),
            schedule_format="deepgemm_sm90",
            topk_plan=topk_plan.reshape(-1, 2),
            topk_plan_format="sglang_topk_v2_sm90",
            topk_plan_clusters=3,
        )


@pytest.mark.parametrize("mode", ["decode", "target_verify", "draft_extend", "ragged draft_extend"])
@pytest.mark.parametrize("bs", [8, 100, 600])
def test_a_thousand_refreshes_are_each_right(device, mode, bs):
    """Compared with the CPU's, which other tests compare with the oracle."""
    steps, width = 1000, 8
    generator = torch.Generator().manual_seed(bs)
    pool = torch.randint(0, 1 << 20, (50, width), generator=generator, dtype=torch.int32)
    bounds = [(-2, width + 3), (-1, 4), (-1, 51)]
    steps_of = torch.stack([torch.randint(*of, (steps, bs), generator=generator) for of in bounds], 1)
    refresh, on_cpu = Refresh(mode, bs, pool.to(device)), Refresh(mode, bs, pool)
    source = steps_of.to(device)
    kept = torch.empty((steps, len(refresh.out)), dtype=torch.int32, device=device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        refresh.plan.run()
    for step in range(steps):
        refresh.inputs.copy_(source[step])
        refresh.out.fill_(POISON)
        graph.replay()
        kept[step] = refresh.out
    for step, got in enumerate(kept.cpu()):
        on_cpu.inputs.copy_(steps_of[step])
        on_cpu.out.fill_(POISON)
        on_cpu.plan.run()
        assert torch.equal(got, on_cpu.out), step


def test_a_long_wait_leaves_the_captures_of_other_threads_alone(device):
    q, k, outs = small_batch(device)
    captured = [torch.full((5,), POISON, dtype=torch.int32, device=device) for _ in range(2)]
    side, counts = torch.cuda.Stream(), []

    def wait():
        with torch.cuda.stream(side):
            torch.cuda._sleep(100_000_000)
            counts.append(nsa_kernel.fill_draft_extend_metadata_cuda(q, k, 12, *outs))

    wait()  # loads what it needs
    thread = threading.Thread(target=wait)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="global"):
        thread.start()
        thread.join()
        nsa_kernel.fill_draft_extend_metadata(q, k, 12, *captured)
    graph.replay()
    assert counts == [5, 5]
    assert captured[0].tolist() == [9, 10, 13, 14, 15]
