"""The drop-in functions: names, flags, defaults and return values of the wrapper that they replace.

What each framework's arrays give is in `test_frameworks.py`.
"""

import importlib.metadata
import inspect

import nsa_kernel
import pytest
import torch
from memory import POISON, Output, lengths
from reference import draft_extend

OP = "fill_draft_extend_metadata"
DIRECT = [f"fill_draft_extend_metadata_cuda_{variant}" for variant in ("basic", "adaptive", "optimized")]
Q, K, TOPK = [2, 3], [10, 15], 12
EXPANDED, CLIPPED = [9, 10, 13, 14, 15], [9, 10, 12, 12, 12]


def arguments(device="cpu", capacity=5):
    return [
        lengths(Q, device=device),
        lengths(K, device=device),
        TOPK,
        *(torch.full((capacity,), POISON, dtype=torch.int32, device=device) for _ in range(2)),
    ]


@pytest.mark.parametrize("use_adaptive", [True, False])
@pytest.mark.parametrize("use_optimized", [True, False])
def test_every_flag_gives_the_same_answer(device, use_adaptive, use_optimized):
    for by_position in (True, False):
        args = arguments(device)
        if by_position:
            count = nsa_kernel.fill_draft_extend_metadata_cuda(*args, use_adaptive, use_optimized)
        else:
            flags = {"use_optimized": use_optimized, "use_adaptive": use_adaptive}
            count = nsa_kernel.fill_draft_extend_metadata_cuda(*args, **flags)
        assert type(count) is int
        assert count == 5
        assert args[3].tolist() == EXPANDED
        assert args[4].tolist() == CLIPPED


def test_arguments_have_the_original_names(device):
    q, k, topk, expanded, clipped = arguments(device)
    count = nsa_kernel.fill_draft_extend_metadata_cuda(
        extend_seq_lens=q,
        seq_lens=k,
        nsa_index_topk=topk,
        out_seqlens_expanded=expanded,
        out_nsa_cache_seqlens=clipped,
        use_adaptive=True,
        use_optimized=True,
        stream=None,
    )
    assert count == 5
    assert expanded.tolist() == EXPANDED


def test_the_triton_name_is_the_same_function():
    assert nsa_kernel.fill_draft_extend_metadata_inplace is nsa_kernel.fill_draft_extend_metadata_cuda


@pytest.mark.parametrize("bs", [0, 1, 16, 17, 1000, 100_000])
def test_the_count_of_many_calls_in_a_row(device, bs):
    """The count reaches the host before the fill ends: every call must see its own."""
    for tokens in range(5):
        q, k = lengths([tokens] * bs, device=device), lengths([9] * bs, device=device)
        outputs = [Output(bs * tokens, device=device) for _ in range(2)]
        count = nsa_kernel.fill_draft_extend_metadata_cuda(q, k, TOPK, *(output.array for output in outputs))
        assert count == bs * tokens
        expected = draft_extend([tokens] * bs, [9] * bs, TOPK, bs * tokens)
        outputs[0].check(expected[0], "out_seqlens_expanded")
        outputs[1].check(expected[1], "out_nsa_cache_seqlens")


@pytest.mark.parametrize("capacity", [0, 1, 3, 4])
@pytest.mark.parametrize(
    ("longer", "shorter"),
    [((0, 1), "out_seqlens_expanded"), ((1, 0), "out_nsa_cache_seqlens")],
    ids=["first", "second"],
)
def test_over_capacity_raises_after_writing_what_fits(device, capacity, longer, shorter):
    args = arguments(device)
    outputs = [Output(capacity + more, device=device) for more in longer]
    message = f"{OP}: {shorter} has {capacity} elements, must have at least 5, the number of tokens"
    with pytest.raises(ValueError, match=f"^{message}$"):
        nsa_kernel.fill_draft_extend_metadata_cuda(*args[:3], *(output.array for output in outputs))
    outputs[0].check(EXPANDED[:capacity], "out_seqlens_expanded")
    outputs[1].check(CLIPPED[:capacity], "out_nsa_cache_seqlens")


@pytest.mark.parametrize("name", DIRECT)
def test_direct_functions_return_an_array_of_one_count(device, name):
    args = arguments(device)
    count = getattr(nsa_kernel, name)(*args)
    assert isinstance(count, torch.Tensor)
    assert count.shape == (1,)
    assert count.dtype == torch.int32
    assert count.device == args[0].device
    assert count.item() == 5
    assert type(count.item()) is int
    assert args[3].tolist() == EXPANDED
    assert args[4].tolist() == CLIPPED


@pytest.mark.parametrize("name", DIRECT)
def test_direct_functions_do_not_raise_over_capacity(device, name):
    args = arguments(device, capacity=3)
    assert getattr(nsa_kernel, name)(*args).item() == 5
    assert args[3].tolist() == EXPANDED[:3]


@pytest.mark.parametrize("name", DIRECT)
def test_the_returned_arrays_are_independent(device, name):
    function, args = getattr(nsa_kernel, name), arguments(device)
    first = function(*args)
    args[0][0] = 1
    second = function(*args)
    del args
    assert (first.item(), second.item()) == (5, 4)


def test_cuda_errors_are_runtime_errors():
    assert issubclass(nsa_kernel.CudaError, RuntimeError)


def test_signatures_document_the_defaults():
    """The signature is in the docstring, where `help` finds it."""
    for name in ("fill_draft_extend_metadata_cuda", "fill_draft_extend_metadata", "fill_replay_metadata", *DIRECT):
        documented = inspect.getdoc(getattr(nsa_kernel, name))
        for word in ("nsa_index_topk", "Args:"):
            assert word in documented, name
    assert "use_optimized" in inspect.getdoc(nsa_kernel.fill_draft_extend_metadata_cuda)


def test_the_kernel_info_has_the_original_keys():
    info = nsa_kernel.get_kernel_info()
    assert type(info) is dict
    assert info["available"] is nsa_kernel.is_cuda_kernel_available()
    assert info["backend"] == ("CUDA C++" if info["available"] else "CPU C++")
    assert set(info["variants"]) == {"basic", "adaptive", "optimized"}
    assert all(isinstance(line, str) and "\n" not in line for line in info["variants"].values())
    assert info["default"] == "optimized"
    assert info["adaptive"] is True
    assert info["binary_search_threshold"] == 16
    assert isinstance(info["block_size"], int)
    assert info["block_size"] > 0
    assert info["prefix_sum_fusion"] is True
    assert info["version"] == nsa_kernel.__version__
    assert {"cuda_version", "architectures", "devices"} <= info.keys()
    assert ("reason" in info) is not info["available"]


def test_the_version_is_that_of_the_package():
    assert nsa_kernel.__version__ == importlib.metadata.version("nsa-kernel")


def test_availability_says_whether_a_device_can_run_the_kernels(device):
    assert type(nsa_kernel.is_cuda_kernel_available()) is bool
    if device == "cuda":
        assert nsa_kernel.is_cuda_kernel_available()
        info = nsa_kernel.get_kernel_info()
        assert len(info["devices"]) >= torch.cuda.device_count()
        assert torch.cuda.get_device_name(0) in str(info["devices"])


def test_every_public_name_is_exported():
    names = {
        "fill_draft_extend_metadata_cuda",
        "fill_draft_extend_metadata_inplace",
        "is_cuda_kernel_available",
        "get_kernel_info",
        "fill_draft_extend_metadata",
        "fill_replay_metadata",
        "DraftExtendPlan",
        "ReplayPlan",
        "CudaError",
        "__version__",
        *DIRECT,
    }
    assert names <= set(nsa_kernel.__all__)
    assert all(hasattr(nsa_kernel, name) for name in nsa_kernel.__all__)
