"""Every framework's arrays, as its users would write the call; skipped where the framework or a GPU is absent."""

import array
import importlib

import nsa_kernel
import numpy as np
import processes
import pytest
import torch
from memory import POISON

Q, K, TOPK = [2, 3], [10, 15], 12
EXPANDED, CLIPPED = [9, 10, 13, 14, 15], [9, 10, 12, 12, 12]
DIRECT = ["basic", "adaptive", "optimized"]


def check(q, k, expanded, clipped, num_tokens, count_type=None):
    """The worked example through every function: those that return nothing, the count, or an array of it.

    `count_type` is the type of that array, which is of the framework, the shape and the device of `q`.
    """

    def written():
        """What lies in the outputs, which are then cleared."""
        values = [output.tolist() for output in (expanded, clipped)]
        for output in (expanded, clipped):
            for at in range(5):
                output[at] = 0
        return values

    assert nsa_kernel.fill_draft_extend_metadata(q, k, TOPK, expanded, clipped, num_tokens) is None
    assert num_tokens.tolist() == [5]
    assert written() == [EXPANDED, CLIPPED]
    nsa_kernel.DraftExtendPlan(q, k, TOPK, expanded, clipped).run()
    assert written() == [EXPANDED, CLIPPED]
    assert nsa_kernel.fill_draft_extend_metadata_cuda(q, k, TOPK, expanded, clipped) == 5
    assert written() == [EXPANDED, CLIPPED]
    for variant in DIRECT if count_type else []:
        count = getattr(nsa_kernel, f"fill_draft_extend_metadata_cuda_{variant}")(q, k, TOPK, expanded, clipped)
        assert isinstance(count, count_type)
        assert count.shape == (1,)
        assert count.dtype in (np.int32, torch.int32)
        assert getattr(count, "device", None) == getattr(q, "device", None)
        assert count.item() == 5
        assert type(count.item()) is int
        assert written() == [EXPANDED, CLIPPED]


SLOTS = np.arange(0, 40, 2, dtype=np.int32).reshape(2, 10)
PAGES = [[10, 0, 0, 0, 0], [0, 2, 0, 0, 0]]


def replay_of(seq_lens, req_pool_indices, req_to_token, pages):
    """The arguments of a replay in which requests of 2 and 3 KV entries take rows 1 and 0 of SLOTS, and give PAGES."""
    arguments = {"mode": "decode", "page_size": 2, "seq_lens": seq_lens, "req_pool_indices": req_pool_indices}
    return arguments | {"req_to_token": req_to_token, "real_page_table": pages}


@pytest.fixture
def cupy():
    cupy = pytest.importorskip("cupy")
    if not cupy.cuda.is_available() or not nsa_kernel.is_cuda_kernel_available():
        pytest.skip("no CUDA device")
    return cupy


# The standard library: whatever has a buffer.


def test_any_buffer_is_an_array():
    def ints(size):
        return array.array("i", [0] * size)

    check(array.array("i", Q), memoryview(array.array("q", K)), ints(5), memoryview(ints(5)), ints(1))


# NumPy.


def test_numpy():
    outputs = [np.full(size, POISON, np.int32) for size in (5, 5, 1)]
    check(np.array(Q, np.int32), np.array(K, np.int64), *outputs, np.ndarray)
    check(np.array(Q), np.array(K), *outputs, np.ndarray)


def test_numpy_inputs_may_be_read_only():
    q, k = np.array(Q), np.array(K)
    for values in (q, k):
        values.flags.writeable = False
    check(q, k, *(np.zeros(size, np.int32) for size in (5, 5, 1)), np.ndarray)


def test_numpy_views_are_written_in_place():
    metadata = np.zeros((2, 8), np.int32)
    requests = np.array([[2, 10], [3, 15]])
    nsa_kernel.fill_draft_extend_metadata(requests[:, 0], requests[:, 1], TOPK, metadata[0, :5], metadata[1, :5])
    assert metadata.tolist() == [[*EXPANDED, 0, 0, 0], [*CLIPPED, 0, 0, 0]]


def test_numpy_replay_with_a_plan():
    seq_lens, pages, kv = np.array([2, 3], np.int32), np.zeros((2, 5), np.int32), np.zeros(2, np.int32)
    plan = nsa_kernel.ReplayPlan(**replay_of(seq_lens, np.array([1, 0]), SLOTS, pages), cache_seqlens=kv)
    plan.run()
    assert pages.tolist() == PAGES
    seq_lens += 4
    plan.run()
    assert kv.tolist() == [6, 7]
    assert pages.tolist() == [[10, 12, 14, 0, 0], [0, 2, 4, 6, 0]]


# JAX: its arrays are immutable, so they are inputs; the outputs are another framework's.


def test_jax_inputs_with_numpy_outputs(jax):
    check(*on_jax(jax, "cpu"), *(np.zeros(size, np.int32) for size in (5, 5, 1)), jax.Array)


def test_jax_inputs_with_torch_outputs(jax, device):
    outputs = [torch.zeros(size, dtype=torch.int32, device=device) for size in (5, 5, 1)]
    check(*on_jax(jax, device), *outputs, jax.Array)


def test_jax_inputs_with_cupy_outputs(jax, cupy):
    check(*on_jax(jax, "cuda"), *(cupy.zeros(size, cupy.int32) for size in (5, 5, 1)), jax.Array)


def test_jax_replay(jax, device):
    pages = torch.zeros(2, 5, dtype=torch.int32, device=device)
    nsa_kernel.fill_replay_metadata(**replay_of(*on_jax(jax, device, [2, 3], [1, 0], SLOTS), pages))
    assert pages.tolist() == PAGES


def test_jax_inputs_are_read_when_they_are_ready(jax, device):
    """JAX computes on a stream of its own."""
    q, k = on_jax(jax, device)
    for step in range(20):
        late = jax.numpy.cumsum(jax.numpy.ones(1 << 20, jax.numpy.int32))[:2] * 0 + k + step
        expanded, clipped = (torch.zeros(5, dtype=torch.int32, device=device) for _ in range(2))
        nsa_kernel.fill_draft_extend_metadata(q, jax.device_put(late, k.device), TOPK, expanded, clipped)
        assert expanded.tolist() == [length + step for length in EXPANDED]


def test_jax_arrays_are_refused_as_outputs(jax, device):
    q, k, immutable = on_jax(jax, device, Q, K, [7] * 5)
    clipped = torch.full((5,), POISON, dtype=torch.int32, device=device)
    message = "out_seqlens_expanded is a JAX array, which is immutable, must be writable"
    for call in (nsa_kernel.fill_draft_extend_metadata, nsa_kernel.fill_draft_extend_metadata_cuda):
        with pytest.raises(TypeError, match=f"^fill_draft_extend_metadata: {message}$"):
            call(q, k, TOPK, immutable, clipped)
    assert np.asarray(immutable).tolist() == [7] * 5
    assert clipped.tolist() == [POISON] * 5


def on_jax(jax, device, *arrays):
    """Arrays, by default the worked example's inputs, where `device` is; skips where JAX sees no such device."""
    try:
        place = jax.devices(device)[0]
    except RuntimeError as error:
        pytest.skip(f"JAX sees no {device} device: {error}")
    return [jax.device_put(np.array(values, np.int32), place) for values in arrays or (Q, K)]


# CuPy.


def test_cupy(cupy):
    outputs = [cupy.zeros(size, cupy.int32) for size in (5, 5, 1)]
    check(cupy.array(Q, cupy.int32), cupy.array(K, cupy.int64), *outputs, cupy.ndarray)
    check(cupy.array(Q), cupy.array(K), *outputs, cupy.ndarray)


def test_cupy_runs_in_order_on_its_current_stream(cupy):
    """The inputs are made behind slow work on the stream; only that stream's order makes them right."""
    q, base = cupy.array(Q, cupy.int32), cupy.array(K, cupy.int32)
    expanded, clipped = cupy.zeros(5, cupy.int32), cupy.zeros(5, cupy.int32)
    slow = cupy.ones(1 << 26, cupy.float32)
    cupy.cuda.Device().synchronize()
    for given in (False, True):
        with cupy.cuda.Stream(non_blocking=True) as stream:
            k = cupy.zeros(2, cupy.int32)
            for _ in range(20):
                slow += 1
            k += base
            arguments = q, k, TOPK, expanded, clipped
            nsa_kernel.fill_draft_extend_metadata(*arguments, stream=stream.ptr if given else None)
            got = expanded.copy()
            expanded.fill(0)
        stream.synchronize()
        assert got.tolist() == EXPANDED


def test_cupy_replay(cupy):
    pages = cupy.zeros((2, 5), cupy.int32)
    nsa_kernel.fill_replay_metadata(**replay_of(cupy.array([2, 3]), cupy.array([1, 0]), cupy.array(SLOTS), pages))
    assert pages.tolist() == PAGES


# torch: a subclass is read through the exchange table that it inherits, never through `__dlpack__`, which is Python.


class Lengths(torch.Tensor):
    """A subclass, as users make them."""


class Buffer(torch.nn.Parameter):
    """A parameter, as users make them."""


def subclassed(tensor):
    return tensor.as_subclass(Lengths)


def parameter(tensor):
    return torch.nn.Parameter(tensor, requires_grad=False)


def own_parameter(tensor):
    return Buffer(tensor, requires_grad=False)


WRAPPERS = [subclassed, parameter, own_parameter, torch.nn.Buffer]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_torch_subclasses(device, wrap):
    inputs = [wrap(torch.tensor(values, dtype=torch.int32, device=device)) for values in (Q, K)]
    outputs = [wrap(torch.zeros(size, dtype=torch.int32, device=device)) for size in (5, 5, 1)]
    check(*inputs, *outputs, torch.Tensor)


@pytest.mark.skipif(not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="torch before 2.10 has no table")
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_torch_subclasses_go_the_fast_way(device, wrap, monkeypatch):
    def slow(*args, **kwargs):
        raise AssertionError("__dlpack__ was called")

    monkeypatch.setattr(torch.Tensor, "__dlpack__", slow)
    q, k = (wrap(torch.tensor(values, dtype=torch.int32, device=device)) for values in (Q, K))
    outputs = [wrap(torch.zeros(5, dtype=torch.int32, device=device)) for _ in range(2)]
    nsa_kernel.fill_draft_extend_metadata(q, k, TOPK, *outputs)
    assert [output.tolist() for output in outputs] == [EXPANDED, CLIPPED]
    nsa_kernel.DraftExtendPlan(q, k, TOPK, *outputs).run()


def child_as_before_torch_2_10(device):
    if hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        del torch.Tensor.__dlpack_c_exchange_api__
    device = torch.device(device, 0 if device == "cuda" else None)
    side = torch.cuda.Stream() if device.type == "cuda" else None
    for wrap in (lambda tensor: tensor, subclassed):
        for variant in DIRECT:
            call = getattr(nsa_kernel, f"fill_draft_extend_metadata_cuda_{variant}")
            q, k, expanded, clipped = (wrap(torch.zeros(5, dtype=torch.int32, device=device)) for _ in range(4))
            with torch.cuda.stream(side):
                if side is not None:
                    side.wait_stream(torch.cuda.default_stream())
                    torch.cuda._sleep(20_000_000)
                q[:2] += 2
                k += 10
                count = call(q, k, 12, expanded, clipped)
            assert isinstance(count, torch.Tensor)
            assert count.dtype == torch.int32
            assert count.device == device
            if side is not None:
                side.synchronize()
            assert count.tolist() == [4], count
            assert expanded.tolist() == [9, 10, 9, 10, 0], expanded


def test_torch_without_an_exchange_table(device):
    """Older releases export through Python: their arrays and current stream count all the same."""
    processes.run(child_as_before_torch_2_10, device)


def child_gives_distributed_tensors(device):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    distributed = importlib.import_module("torch.distributed.tensor")
    mesh = distributed.init_device_mesh(device, (1,))
    tensors = [torch.tensor(values, dtype=torch.int32, device=device) for values in (Q, K, [0] * 5, [0] * 5)]
    names = ["extend_seq_lens", "seq_lens", "out_seqlens_expanded", "out_nsa_cache_seqlens"]
    shards = [distributed.distribute_tensor(tensor, mesh, [distributed.Shard(0)]) for tensor in tensors]
    for i, name in enumerate(names):
        arguments = {**dict(zip(names, tensors, strict=True)), name: shards[i]}
        message = (
            f"^fill_draft_extend_metadata: {name} is a torch.distributed.tensor.DTensor, which has no memory of its own"
            r", must be the tensor that holds the elements \(\.to_local\(\)\)$"
        )
        for call in (nsa_kernel.fill_draft_extend_metadata, nsa_kernel.DraftExtendPlan):
            with pytest.raises(TypeError, match=message):
                call(**arguments, nsa_index_topk=TOPK)
    local = [shard.to_local() for shard in shards]
    nsa_kernel.fill_draft_extend_metadata(*local[:2], TOPK, *local[2:])
    assert [tensor.tolist() for tensor in local[2:]] == [EXPANDED, CLIPPED]


def test_distributed_tensors_are_told_how_to_be_given(device):
    processes.run(child_gives_distributed_tensors, device)


def test_plans_refuse_tensors_that_are_negated_as_they_are_read(device):
    q, k, expanded, clipped = (torch.tensor(v, dtype=torch.int32, device=device) for v in (Q, K, [0] * 5, [0] * 5))
    negated = torch._neg_view(-k)
    with pytest.raises(TypeError, match=r"^fill_draft_extend_metadata: seq_lens is a view whose elements are negated"):
        nsa_kernel.DraftExtendPlan(q, negated, TOPK, expanded, clipped)
    with pytest.raises(
        TypeError, match=r"^fill_draft_extend_metadata: out_nsa_cache_seqlens is a view whose .*negated"
    ):
        nsa_kernel.DraftExtendPlan(q, k, TOPK, expanded, torch._neg_view(clipped))
    nsa_kernel.DraftExtendPlan(q, negated.resolve_neg(), TOPK, expanded, clipped).run()
    assert [expanded.tolist(), clipped.tolist()] == [EXPANDED, CLIPPED]


def test_frameworks_may_be_mixed():
    outputs = torch.zeros(5, dtype=torch.int32), np.zeros(5, np.int32), np.zeros(1, np.int32)
    check(np.array(Q, np.int32), torch.tensor(K), *outputs, np.ndarray)
    expanded, clipped = np.zeros(5, np.int32), torch.zeros(5, dtype=torch.int32)
    check(torch.tensor(Q), np.array(K), expanded, clipped, np.zeros(1, np.int32), torch.Tensor)
