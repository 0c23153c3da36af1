"""How the public callables are called: signatures, names, pickles, and arguments that have no place."""

import inspect
import pickle
import re

import nsa_kernel
import pytest
import torch

DRAFT_EXTEND = "extend_seq_lens, seq_lens, nsa_index_topk, out_seqlens_expanded, out_nsa_cache_seqlens"
REPLAY = (
    "mode, *, seq_lens, nsa_index_topk=None, req_pool_indices=None, req_to_token=None, extend_seq_lens=None, "
    "num_draft_tokens=None, page_size=1, cache_seqlens=None, cu_seqlens_k=None, seqlens_expanded=None, "
    "nsa_cache_seqlens=None, nsa_cu_seqlens_k=None, page_table=None, real_page_table=None, ctx_lens_2d=None, "
    "num_tokens=None, schedule=None, schedule_format=None, schedule_rows='token', schedule_atoms=None, topk_plan=None, "
    "topk_plan_format=None, topk_plan_clusters=None"
)
SIGNATURES = {
    nsa_kernel.fill_draft_extend_metadata: f"{DRAFT_EXTEND}, out_num_tokens=None, *, variant='optimized', stream=None",
    nsa_kernel.DraftExtendPlan: f"{DRAFT_EXTEND}, out_num_tokens=None, *, variant='optimized'",
    nsa_kernel.fill_draft_extend_metadata_cuda: (
        f"{DRAFT_EXTEND}, use_adaptive=True, use_optimized=True, *, stream=None"
    ),
    nsa_kernel.fill_draft_extend_metadata_cuda_basic: f"{DRAFT_EXTEND}, *, stream=None",
    nsa_kernel.fill_draft_extend_metadata_cuda_adaptive: f"{DRAFT_EXTEND}, *, stream=None",
    nsa_kernel.fill_draft_extend_metadata_cuda_optimized: f"{DRAFT_EXTEND}, *, stream=None",
    nsa_kernel.fill_replay_metadata: f"{REPLAY}, stream=None",
    nsa_kernel.ReplayPlan: REPLAY,
    nsa_kernel.DraftExtendPlan.run: "self, /, stream=None",
    nsa_kernel.ReplayPlan.run: "self, /, stream=None",
    nsa_kernel.is_cuda_kernel_available: "",
    nsa_kernel.get_kernel_info: "",
}
PUBLIC = [value for value in vars(nsa_kernel).values() if getattr(value, "__module__", "") == "nsa_kernel"]


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_the_signature_can_be_inspected(function):
    assert str(inspect.signature(function)) == f"({SIGNATURES[function]})"


def test_the_signature_of_a_bound_run_can_be_inspected():
    arrays = [torch.ones(1, dtype=torch.int32) for _ in range(4)]
    plan = nsa_kernel.DraftExtendPlan(*arrays[:2], 7, *arrays[2:])
    assert str(inspect.signature(plan.run)) == "(stream=None)"


def test_every_public_name_is_found_by_its_own_words():
    assert {value.__name__ for value in PUBLIC} | {"__version__", "fill_draft_extend_metadata_inplace"} == {
        *nsa_kernel.__all__
    }
    for value in PUBLIC:
        assert getattr(nsa_kernel, value.__qualname__) is value
        assert inspect.getdoc(value)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            assert pickle.loads(pickle.dumps(value, protocol)) is value


def run(*args, **kwargs):
    arrays = [torch.ones(1, dtype=torch.int32) for _ in range(4)]
    nsa_kernel.DraftExtendPlan(*arrays[:2], 7, *arrays[2:]).run(*args, **kwargs)


FILL, DROP_IN = nsa_kernel.fill_draft_extend_metadata, nsa_kernel.fill_draft_extend_metadata_cuda
NO_PLACE = [
    (
        nsa_kernel.fill_replay_metadata,
        ("decode",),
        {"seq_len": 1},
        "seq_len is not the name of an argument, must be seq_lens",
    ),
    (
        nsa_kernel.ReplayPlan,
        ("decode",),
        {"pagetable": 1},
        "pagetable is not the name of an argument, must be page_table",
    ),
    (nsa_kernel.ReplayPlan, (), {"mod": "decode"}, "mod is not the name of an argument, must be mode"),
    (FILL, (), {"Variant": "basic"}, "Variant is not the name of an argument, must be variant"),
    (FILL, (), {"variant\0": "basic"}, r"variant\0 is not the name of an argument, must be variant"),
    (
        DROP_IN,
        (),
        {"xyz": 1},
        "xyz is not the name of an argument, must be one of extend_seq_lens, seq_lens, nsa_index_topk, "
        "out_seqlens_expanded, out_nsa_cache_seqlens, use_adaptive, use_optimized, stream",
    ),
    (nsa_kernel.get_kernel_info, (), {"json": True}, "json is not the name of an argument, must be absent"),
    (run, (), {"strea": 0}, "strea is not the name of an argument, must be stream"),
    (run, (), {"out": 0}, "out is not the name of an argument, must be stream"),
    (run, (0,), {"stream": 0}, "stream is given by position and by name, must be given once"),
    (run, (0, 1), {}, "2 arguments are given by position, must be at most 1"),
    (
        nsa_kernel.fill_replay_metadata,
        ("decode", 1),
        {},
        "2 arguments are given by position, must be at most 1; seq_lens goes by name",
    ),
    (nsa_kernel.get_kernel_info, (1,), {}, "1 argument is given by position, must be at most 0"),
    (
        nsa_kernel.DraftExtendPlan,
        (1, 2, 3, 4, 5, 6, "basic"),
        {},
        "7 arguments are given by position, must be at most 6; variant goes by name",
    ),
    (FILL, (1,), {"extend_seq_lens": 1}, "extend_seq_lens is given by position and by name, must be given once"),
    (nsa_kernel.ReplayPlan, ("decode",), {"mode": 1}, "mode is given by position and by name, must be given once"),
    (FILL, (), {}, "extend_seq_lens is absent, must be given"),
    (FILL, (1, 2, 3, 4), {}, "out_nsa_cache_seqlens is absent, must be given"),
    (DROP_IN, (1,), {"out_nsa_cache_seqlens": 1}, "seq_lens is absent, must be given"),
    (nsa_kernel.fill_replay_metadata, ("decode",), {}, "seq_lens is absent, must be given"),
    (nsa_kernel.ReplayPlan, (), {"seq_lens": 1, "nsa_index_topk": 1}, "mode is absent, must be given"),
]


@pytest.mark.parametrize(("function", "args", "kwargs", "message"), NO_PLACE, ids=[message for *_, message in NO_PLACE])
def test_arguments_that_have_no_place(function, args, kwargs, message):
    name = "DraftExtendPlan.run" if function is run else function.__name__
    with pytest.raises(TypeError, match="^" + re.escape(f"{name}: {message}") + "$"):
        function(*args, **kwargs)


@pytest.mark.parametrize("call", [nsa_kernel.fill_replay_metadata, nsa_kernel.ReplayPlan])
def test_names_that_are_no_str(call):
    with pytest.raises(TypeError):
        call("decode", **{1: 2})


def test_names_are_found_whatever_str_they_are():
    """Not interned, out of order, and of a subclass."""

    class Name(str):
        __slots__ = ()

    seq_lens, out = torch.tensor([3], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    arguments = {"cache_seqlens": out, "page_size": 1, "nsa_index_topk": 7, "seq_lens": seq_lens, "mode": "decode"}
    for make in (str, Name, lambda name: "".join(list(name))):
        for call in (nsa_kernel.fill_replay_metadata, lambda **given: nsa_kernel.ReplayPlan(**given).run()):
            out.zero_()
            call(**{make(name): value for name, value in arguments.items()})
            assert out.tolist() == [3]
