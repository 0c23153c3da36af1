"""Every framework's arrays, as its users would write the call; skipped where the framework or a GPU is absent."""

import subprocess
import sys

import nsa_kernel
import numpy as np
import pytest
import torch

Q, K, TOPK = [2, 3], [10, 15], 12
EXPANDED, CLIPPED = [9, 10, 13, 14, 15], [9, 10, 12, 12, 12]
DIRECT = ["basic", "adaptive", "optimized"]


@pytest.fixture
def cupy():
    cupy = pytest.importorskip("cupy")
    if not cupy.cuda.is_available() or not nsa_kernel.is_cuda_kernel_available():
        pytest.skip("no CUDA device")
    return cupy


# NumPy.


def test_numpy():
    q, k = np.array(Q, np.int32), np.array(K, np.int64)
    expanded, clipped, num_tokens = np.zeros(5, np.int32), np.zeros(5, np.int32), np.zeros(1, np.int32)
    nsa_kernel.fill_draft_extend_metadata(q, k, TOPK, expanded, clipped, num_tokens)
    assert expanded.tolist() == EXPANDED
    assert clipped.tolist() == CLIPPED
    assert num_tokens.tolist() == [5]


def test_numpy_views_are_written_in_place():
    metadata = np.zeros((2, 8), np.int32)
    requests = np.array([[2, 10], [3, 15]])
    nsa_kernel.fill_draft_extend_metadata(requests[:, 0], requests[:, 1], TOPK, metadata[0, :5], metadata[1, :5])
    assert metadata.tolist() == [[*EXPANDED, 0, 0, 0], [*CLIPPED, 0, 0, 0]]


def test_numpy_replay_with_a_plan():
    seq_lens, table = np.array([2, 3], np.int32), np.arange(0, 40, 2, dtype=np.int32).reshape(2, 10)
    pages, kv = np.zeros((2, 5), np.int32), np.zeros(2, np.int32)
    plan = nsa_kernel.ReplayPlan(
        "decode",
        seq_lens=seq_lens,
        nsa_index_topk=TOPK,
        req_pool_indices=np.array([1, 0]),
        req_to_token=table,
        page_size=2,
        cache_seqlens=kv,
        real_page_table=pages,
    )
    plan.run()
    assert pages.tolist() == [[10, 0, 0, 0, 0], [0, 2, 0, 0, 0]]
    seq_lens += 4
    plan.run()
    assert kv.tolist() == [6, 7]
    assert pages.tolist() == [[10, 12, 14, 0, 0], [0, 2, 4, 6, 0]]


@pytest.mark.parametrize("variant", DIRECT)
def test_numpy_count_is_a_numpy_array(variant):
    q, k = np.array(Q, np.int32), np.array(K, np.int32)
    outputs = np.zeros(5, np.int32), np.zeros(5, np.int32)
    count = getattr(nsa_kernel, f"fill_draft_extend_metadata_cuda_{variant}")(q, k, TOPK, *outputs)
    assert isinstance(count, np.ndarray)
    assert count.dtype == np.int32
    assert count.item() == 5


# JAX: its arrays are immutable, so they are inputs; the outputs are another framework's.


def test_jax_inputs_with_numpy_outputs(jax):
    cpu = jax.devices("cpu")[0]
    q, k = (jax.device_put(np.array(values, np.int32), cpu) for values in (Q, K))
    expanded, clipped = np.zeros(5, np.int32), np.zeros(5, np.int32)
    nsa_kernel.fill_draft_extend_metadata(q, k, TOPK, expanded, clipped)
    assert expanded.tolist() == EXPANDED
    assert clipped.tolist() == CLIPPED


def test_jax_inputs_with_torch_outputs(jax, device):
    q, k = on_jax(jax, device)
    expanded, clipped = (torch.zeros(5, dtype=torch.int32, device=device) for _ in range(2))
    nsa_kernel.fill_draft_extend_metadata(q, k, TOPK, expanded, clipped)
    assert expanded.tolist() == EXPANDED
    assert clipped.tolist() == CLIPPED


def test_jax_replay(jax, device):
    table = np.arange(0, 40, 2).reshape(2, 10)
    seq_lens, req_pool_indices, req_to_token = on_jax(jax, device, [2, 3], [1, 0], table)
    pages = torch.zeros(2, 5, dtype=torch.int32, device=device)
    nsa_kernel.fill_replay_metadata(
        "decode",
        seq_lens=seq_lens,
        nsa_index_topk=TOPK,
        req_pool_indices=req_pool_indices,
        req_to_token=req_to_token,
        page_size=2,
        real_page_table=pages,
    )
    assert pages.tolist() == [[10, 0, 0, 0, 0], [0, 2, 0, 0, 0]]


def test_jax_inputs_with_cupy_outputs(jax, cupy):
    q, k = on_jax(jax, "cuda")
    expanded, clipped = cupy.zeros(5, cupy.int32), cupy.zeros(5, cupy.int32)
    nsa_kernel.fill_draft_extend_metadata(q, k, TOPK, expanded, clipped)
    assert expanded.tolist() == EXPANDED
    assert clipped.tolist() == CLIPPED


def test_jax_inputs_are_read_when_they_are_ready(jax, device):
    """JAX computes on a stream of its own."""
    q, k = on_jax(jax, device)
    for step in range(20):
        late = jax.numpy.cumsum(jax.numpy.ones(1 << 20, jax.numpy.int32))[:2] * 0 + k + step
        expanded, clipped = (torch.zeros(5, dtype=torch.int32, device=device) for _ in range(2))
        nsa_kernel.fill_draft_extend_metadata(q, jax.device_put(late, k.device), TOPK, expanded, clipped)
        assert expanded.tolist() == [length + step for length in EXPANDED]


def test_jax_output_is_refused(jax, device):
    q, k = on_jax(jax, device)
    with pytest.raises(TypeError, match="out_seqlens_expanded is a JAX array, which is immutable, must be writable"):
        nsa_kernel.fill_draft_extend_metadata(q, k, TOPK, jax.numpy.zeros(5, jax.numpy.int32), q)


@pytest.mark.parametrize("variant", DIRECT)
def test_jax_count_is_a_jax_array(jax, device, variant):
    q, k = on_jax(jax, device)
    outputs = [torch.zeros(5, dtype=torch.int32, device=device) for _ in range(2)]
    count = getattr(nsa_kernel, f"fill_draft_extend_metadata_cuda_{variant}")(q, k, TOPK, *outputs)
    assert isinstance(count, jax.Array)
    assert count.item() == 5


def on_jax(jax, device, *arrays):
    """Arrays, by default the worked example's inputs, where `device` is; skips where JAX sees no such device."""
    try:
        place = jax.devices(device)[0]
    except RuntimeError as error:
        pytest.skip(f"JAX sees no {device} device: {error}")
    return [jax.device_put(np.array(values, np.int32), place) for values in arrays or (Q, K)]


# CuPy.


def test_cupy(cupy):
    q, k = cupy.array(Q, cupy.int32), cupy.array(K, cupy.int64)
    expanded, clipped, num_tokens = cupy.zeros(5, cupy.int32), cupy.zeros(5, cupy.int32), cupy.zeros(1, cupy.int32)
    nsa_kernel.fill_draft_extend_metadata(q, k, TOPK, expanded, clipped, num_tokens)
    assert expanded.tolist() == EXPANDED
    assert clipped.tolist() == CLIPPED
    assert num_tokens.tolist() == [5]
    assert nsa_kernel.fill_draft_extend_metadata_cuda(q, k, TOPK, expanded, clipped) == 5


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
    seq_lens, table = cupy.array([2, 3]), cupy.arange(0, 40, 2, dtype=cupy.int32).reshape(2, 10)
    pages = cupy.zeros((2, 5), cupy.int32)
    nsa_kernel.fill_replay_metadata(
        "decode",
        seq_lens=seq_lens,
        nsa_index_topk=TOPK,
        req_pool_indices=cupy.array([1, 0]),
        req_to_token=table,
        page_size=2,
        real_page_table=pages,
    )
    assert pages.tolist() == [[10, 0, 0, 0, 0], [0, 2, 0, 0, 0]]


@pytest.mark.parametrize("variant", DIRECT)
def test_cupy_count_is_a_cupy_array(cupy, variant):
    q, k = cupy.array(Q, cupy.int32), cupy.array(K, cupy.int32)
    outputs = cupy.zeros(5, cupy.int32), cupy.zeros(5, cupy.int32)
    count = getattr(nsa_kernel, f"fill_draft_extend_metadata_cuda_{variant}")(q, k, TOPK, *outputs)
    assert isinstance(count, cupy.ndarray)
    assert count.item() == 5


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


@pytest.mark.skipif(not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="torch before 2.10 has no table")
@pytest.mark.parametrize("wrap", [subclassed, parameter, own_parameter, torch.nn.Buffer])
def test_torch_subclasses_go_the_fast_way(device, wrap, monkeypatch):
    def slow(*args, **kwargs):
        raise AssertionError("__dlpack__ was called")

    monkeypatch.setattr(torch.Tensor, "__dlpack__", slow)
    q, k = (wrap(torch.tensor(values, dtype=torch.int32, device=device)) for values in (Q, K))
    outputs = [wrap(torch.zeros(5, dtype=torch.int32, device=device)) for _ in range(2)]
    nsa_kernel.fill_draft_extend_metadata(q, k, TOPK, *outputs)
    assert [output.tolist() for output in outputs] == [EXPANDED, CLIPPED]
    nsa_kernel.DraftExtendPlan(q, k, TOPK, *outputs).run()


BEFORE_TORCH_2_10 = """
import sys, torch, nsa_kernel
if hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    del torch.Tensor.__dlpack_c_exchange_api__

class Lengths(torch.Tensor): "A subclass, as users make them."

device = torch.device(sys.argv[1], 0 if sys.argv[1] == "cuda" else None)
side = torch.cuda.Stream() if device.type == "cuda" else None
for wrap in (lambda tensor: tensor, lambda tensor: tensor.as_subclass(Lengths)):
    for variant in ("basic", "adaptive", "optimized"):
        call = getattr(nsa_kernel, f"fill_draft_extend_metadata_cuda_{variant}")
        q, k, expanded, clipped = (wrap(torch.zeros(5, dtype=torch.int32, device=device)) for _ in range(4))
        with torch.cuda.stream(side):
            if side is not None:
                side.wait_stream(torch.cuda.default_stream())
                torch.cuda._sleep(20_000_000)
            q[:2] += 2
            k += 10
            count = call(q, k, 12, expanded, clipped)
        assert isinstance(count, torch.Tensor) and count.dtype == torch.int32 and count.device == device
        if side is not None:
            side.synchronize()
        assert count.tolist() == [4], count
        assert expanded.tolist() == [9, 10, 9, 10, 0], expanded
"""


def test_torch_without_an_exchange_table(device):
    """Older releases export through Python: their arrays and current stream count all the same."""
    command = [sys.executable, "-c", BEFORE_TORCH_2_10, device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_frameworks_may_be_mixed():
    q, k = np.array(Q, np.int32), torch.tensor(K)
    expanded, clipped = torch.zeros(5, dtype=torch.int32), np.zeros(5, np.int32)
    nsa_kernel.fill_draft_extend_metadata(q, k, TOPK, expanded, clipped)
    assert expanded.tolist() == EXPANDED
    assert clipped.tolist() == CLIPPED
