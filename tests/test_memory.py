"""Nothing is kept: references, exports and memory after many calls, and after calls that were refused."""

import array
import gc
import sys
import weakref

import exporters
import nsa_kernel
import numpy as np
import pytest
import torch
from exporters import Exporter, Layout, borrow, table_type
from memory import lengths

CALLS = 100_000


def resident_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def sanitized():
    """The address sanitizer puts off reuse, so that what is resident grows by itself."""
    with open("/proc/self/maps") as maps:
        return "libasan" in maps.read()


def arrays_of(framework, device="cpu"):
    made = [lengths([2, 3], device=device), lengths([10, 15], device=device)]
    made += [torch.zeros(size, dtype=torch.int32, device=device) for size in (5, 5, 1)]
    return [array.numpy() for array in made] if framework == "numpy" else made


def draft_extend(arrays):
    q, k, *outputs = arrays
    nsa_kernel.fill_draft_extend_metadata(q, k, 12, *outputs)


def drop_in(arrays):
    q, k, *outputs = arrays
    nsa_kernel.fill_draft_extend_metadata_cuda(q, k, 12, *outputs[:2])


def direct(arrays):
    q, k, *outputs = arrays
    nsa_kernel.fill_draft_extend_metadata_cuda_basic(q, k, 12, *outputs[:2])
    nsa_kernel.fill_draft_extend_metadata_cuda_adaptive(q, k, 12, *outputs[:2])
    nsa_kernel.fill_draft_extend_metadata_cuda_optimized(q, k, 12, *outputs[:2])


def replay(arrays):
    nsa_kernel.fill_replay_metadata("decode", seq_lens=arrays[1], nsa_index_topk=12, cache_seqlens=arrays[2])


def new_plan(arrays):
    q, k, *outputs = arrays
    nsa_kernel.DraftExtendPlan(q, k, 12, *outputs, variant="basic").run()
    nsa_kernel.ReplayPlan("decode", seq_lens=k, nsa_index_topk=12, cache_seqlens=outputs[0]).run()


def failing(arrays):
    q, k, *outputs = arrays
    for wrong in ((q, k, -1, *outputs), (q, k, 12, [1], outputs[1]), (q, k[:1], 12, *outputs)):
        try:
            nsa_kernel.fill_draft_extend_metadata(*wrong)
        except (TypeError, ValueError):
            continue
        raise AssertionError("not refused")


def ask(_arrays):
    nsa_kernel.get_kernel_info()
    nsa_kernel.is_cuda_kernel_available()


SLOW_ON_A_GPU = (direct, new_plan, ask)  # they allocate there, or ask the driver


@pytest.mark.parametrize("framework", ["torch", "numpy"])
@pytest.mark.parametrize("call", [draft_extend, drop_in, direct, replay, new_plan, failing, ask])
def test_many_calls_keep_nothing(device, framework, call):
    if (device, framework) == ("cuda", "numpy"):
        pytest.skip("numpy is on the CPU")
    arrays = arrays_of(framework, device)
    for _ in range(CALLS // 20):  # what is allocated once
        call(arrays)
    gc.collect()
    counts, blocks, before = [sys.getrefcount(array) for array in arrays], sys.getallocatedblocks(), resident_bytes()
    kept_on_device = []
    for _ in range(3 if device == "cuda" else 1):
        on_device = torch.cuda.mem_get_info()[0] if device == "cuda" else 0
        for _ in range(CALLS // 10 if device == "cuda" and call in SLOW_ON_A_GPU else CALLS):
            call(arrays)
        if device == "cuda":
            torch.cuda.synchronize()
            kept_on_device.append(on_device - torch.cuda.mem_get_info()[0])
            if kept_on_device[-1] < 2**24:
                break  # else another process may have come: what these calls keep, they keep each time
    gc.collect()
    assert [sys.getrefcount(array) for array in arrays] == counts
    assert sys.getallocatedblocks() - blocks < 1000
    if sanitized():
        return
    if device == "cpu":
        assert resident_bytes() - before < 2**21
    else:
        assert resident_bytes() - before < 2**24
        assert min(kept_on_device) < 2**24


@pytest.mark.parametrize("make", [Exporter, Layout.capsule, lambda layout: Exporter(layout, versioned=False)])
def test_every_export_is_released_once(make):
    outputs = [np.zeros(5, np.int32) for _ in range(2)]

    def inputs():
        return [make(Layout(bytearray(64), (2,))) for _ in range(2)]

    gc.collect()
    exporters.released.clear()
    held = len(exporters.kept)
    for _ in range(100):
        nsa_kernel.fill_draft_extend_metadata(*inputs(), 12, *outputs)
        with pytest.raises(ValueError, match="nsa_index_topk"):
            nsa_kernel.fill_draft_extend_metadata(*inputs(), -1, *outputs)
        with pytest.raises(TypeError, match="out_seqlens_expanded"):
            nsa_kernel.fill_draft_extend_metadata(*inputs(), 12, None, None)
    gc.collect()
    assert len(exporters.released) == 600
    assert len(exporters.kept) == held


def test_a_plan_holds_its_exports_until_it_goes():
    layouts = [Layout(bytearray(64), (2,)) for _ in range(4)]
    plan = nsa_kernel.DraftExtendPlan(*map(Exporter, layouts[:2]), 12, *map(Exporter, layouts[2:]))
    exporters.released.clear()
    gc.collect()
    plan.run()
    assert exporters.released == []
    del plan
    gc.collect()
    assert len(exporters.released) == 4


def test_borrowed_arrays_are_not_imported():
    tabled = table_type(borrow_from_object=borrow)
    arrays = [tabled(Layout(bytearray(64), (2,))) for _ in range(4)]
    counts = [sys.getrefcount(array) for array in arrays]
    for _ in range(100):
        nsa_kernel.fill_draft_extend_metadata(*arrays[:2], 12, *arrays[2:])
    assert [sys.getrefcount(array) for array in arrays] == counts


class TensorHolder(torch.Tensor):
    """A tensor that can hold the plan that holds it."""


class ArrayHolder(np.ndarray):
    """The same of NumPy."""


class BufferHolder(array.array):
    """The same of a buffer."""


HOLDERS = {
    "torch": lambda: lengths([2]).as_subclass(TensorHolder),
    "numpy": lambda: np.array([2]).view(ArrayHolder),
    "buffer": lambda: BufferHolder("i", [2]),
    "view of a buffer": lambda: memoryview(BufferHolder("i", [2])),
}


def holder_of(q):
    return q.obj if isinstance(q, memoryview) else q


@pytest.mark.parametrize("make", HOLDERS.values(), ids=HOLDERS.keys())
def test_a_plan_in_a_cycle_is_collected(make):
    alive = []
    for _ in range(50):
        q = make()
        outputs = [torch.zeros(2, dtype=torch.int32) for _ in range(2)]
        plan = nsa_kernel.DraftExtendPlan(q, lengths([9]), 12, *outputs)
        holder_of(q).plan = plan
        alive += [weakref.ref(holder_of(q)), weakref.ref(plan)]
    del q, plan, outputs
    gc.collect()
    assert [reference() for reference in alive] == [None] * 100


def test_there_is_no_plan_without_arrays():
    class Unfinished(nsa_kernel.ReplayPlan):
        def __init__(self):
            raise AssertionError("reached")

    with pytest.raises(TypeError, match=r"^ReplayPlan: mode is absent, must be given$"):
        Unfinished()
    with pytest.raises(TypeError, match=r"^DraftExtendPlan: extend_seq_lens is absent, must be given$"):
        nsa_kernel.DraftExtendPlan.__new__(nsa_kernel.DraftExtendPlan)


def test_a_subclass_may_hand_its_arguments_on():
    class Named(nsa_kernel.ReplayPlan):
        def __init__(self, mode, **arguments):
            super().__init__(mode, **arguments)
            self.name = "first"

    out = torch.zeros(1, dtype=torch.int32)
    plan = Named("decode", seq_lens=lengths([9]), nsa_index_topk=12, cache_seqlens=out)
    plan.run()
    assert (plan.name, out.tolist()) == ("first", [9])
