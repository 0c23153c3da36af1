"""What records the calls of a program has ours in it, or is told how: torch.compile, jit.trace, make_fx, torch.export.

Importing `nsa_kernel.torch_ops` changes a process for good, so what runs without it runs in a process of its own.
"""

import importlib

import nsa_kernel
import processes
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

UNTOUCHED = -7
EXPANDED, CLIPPED = [9, 10, 13, 14, 15], [9, 10, 12, 12, 12]


def ints(*values, device):
    return torch.tensor(values, dtype=torch.int32, device=device)


def empty(size, device):
    return torch.full((size,), UNTOUCHED, dtype=torch.int32, device=device)


class Holder:
    """Something with a plan."""

    def __init__(self, plan):
        self.plan = plan


class Module(torch.nn.Module):
    """A module that calls a function."""

    def __init__(self, function, plan=None):
        super().__init__()
        self.function, self.plan = function, plan

    def forward(self, *args):
        return self.function(*args) if self.plan is None else self.plan.run()


class Buffers:
    """The arrays of one fill, and a plan that is bound to them."""

    def __init__(self, device):
        self.inputs = ints(2, 3, device=device), ints(10, 15, device=device)
        self.outputs = empty(5, device), empty(5, device)
        self.plan = nsa_kernel.DraftExtendPlan(*self.inputs, 12, *self.outputs)

    def check(self, *, added):
        """The outputs of lengths to which so much was added."""
        assert self.outputs[0].tolist() == [value + added for value in EXPANDED]
        assert self.outputs[1].tolist() == [min(value + added, 12) for value in EXPANDED]
        for output in self.outputs:
            output.fill_(UNTOUCHED)

    def check_untouched(self):
        assert all(bool((output == UNTOUCHED).all()) for output in self.outputs)


buffers = None  # of a child, as a global that compiled functions read
plan = None


def run_a_global(x):
    plan.run()
    return x + buffers.outputs[0].sum()


def run_an_attribute(x):
    buffers.plan.run(stream=None)
    return x + buffers.outputs[0].sum()


def run_a_bound_method(x):
    run = plan.run
    run()
    return x + buffers.outputs[0].sum()


def run_an_argument(x, given):
    given.run()
    return x + buffers.outputs[0].sum()


def run_of_a_holder(x, holder):
    holder.plan.run()
    return x + buffers.outputs[0].sum()


def fill(x):
    nsa_kernel.fill_draft_extend_metadata(*buffers.inputs, 12, *buffers.outputs)
    return x + buffers.outputs[0].sum()


def fill_and_wait(x):
    count = nsa_kernel.fill_draft_extend_metadata_cuda(*buffers.inputs, 12, *buffers.outputs)
    return x + buffers.outputs[0].sum() + 0 * count


def fill_and_return_the_count(x):
    count = nsa_kernel.fill_draft_extend_metadata_cuda_basic(*buffers.inputs, 12, *buffers.outputs)
    return x + buffers.outputs[0].sum() + 0 * count[0]


def bind_and_run(x):
    nsa_kernel.DraftExtendPlan(*buffers.inputs, 12, *buffers.outputs).run()
    return x + buffers.outputs[0].sum()


def fill_replay(x):
    """Of a ragged draft-extend, whose lengths are the same."""
    q, k = buffers.inputs
    expanded, clipped = buffers.outputs
    nsa_kernel.fill_replay_metadata(
        "draft_extend",
        seq_lens=k,
        extend_seq_lens=q,
        nsa_index_topk=12,
        seqlens_expanded=expanded,
        nsa_cache_seqlens=clipped,
    )
    return x + expanded.sum()


CALLS = [
    run_a_global,
    run_an_attribute,
    run_a_bound_method,
    fill,
    fill_and_wait,
    fill_and_return_the_count,
    bind_and_run,
    fill_replay,
]


def set_up(device, with_operators):
    """The globals of a child."""
    global buffers, plan  # noqa: PLW0603
    if with_operators:
        importlib.import_module("nsa_kernel.torch_ops")
    buffers = Buffers(device)
    plan = buffers.plan


def child_compiles(device, with_operators):
    """Default torch.compile, which may break its graph; pytorch #194556 lost the plan there."""
    set_up(device, with_operators)
    calls = [(call, ()) for call in CALLS]
    calls += [(run_an_argument, (plan,)), (run_of_a_holder, (Holder(plan),)), (Module(None, plan), ())]
    for call, more in calls:
        torch.compiler.reset()
        compiled = torch.compile(call, backend="aot_eager")
        for added in range(3):
            result = compiled(torch.ones((), dtype=torch.int64, device=device), *more)
            assert result is None or int(result) == 1 + sum(EXPANDED) + 5 * added, call
            buffers.check(added=added)
            buffers.inputs[1].add_(1)
        buffers.inputs[1].sub_(3)


def child_refuses(device, with_operators):
    """Whatever records operators alone would miss the call."""
    set_up(device, with_operators)
    x = torch.ones((), dtype=torch.int64, device=device)
    recorders = {
        "jit.trace": lambda call: torch.jit.trace(call, (x,), check_trace=False),
        "make_fx": lambda call: make_fx(call)(x),
        "make_fx before dispatch": lambda call: make_fx(call, pre_dispatch=True)(x),
        "make_fx of fakes": lambda call: make_fx(call, tracing_mode="fake")(x),
        "export": lambda call: torch.export.export(Module(call), (x,), strict=False),
    }
    for call in CALLS:
        op = "fill_replay_metadata" if call is fill_replay else "fill_draft_extend_metadata"
        words = (
            f"^{op}: torch is tracing, which does not record this call, must record torch.ops.nsa_kernel.{op} "
            r"\(import nsa_kernel.torch_ops\)"
        )
        for record in recorders.values():
            with pytest.raises(RuntimeError, match=words):
                record(call)
            buffers.check_untouched()
        call(x)
        buffers.check(added=0)


@pytest.mark.parametrize("with_operators", [False, True], ids=["without operators", "with operators"])
@pytest.mark.parametrize("child", [child_compiles, child_refuses], ids=lambda child: child.__name__)
def test_calls_that_are_recorded(device, child, with_operators):
    processes.run(child, device, with_operators)


def step(q, k):
    """The operator, between operators of torch."""
    outputs = torch.full((5,), UNTOUCHED, dtype=torch.int32, device=q.device), torch.zeros_like(q).repeat(3)[:5]
    torch.ops.nsa_kernel.fill_draft_extend_metadata(q, k, 12, *outputs)
    return outputs[0] + 1, outputs[1] * 2


def plain_step(q, k):
    """The same with the function."""
    outputs = torch.full((5,), UNTOUCHED, dtype=torch.int32, device=q.device), torch.zeros_like(q).repeat(3)[:5]
    nsa_kernel.fill_draft_extend_metadata(q, k, 12, *outputs)
    return outputs[0] + 1, outputs[1] * 2


RECORDERS = {
    "jit.trace": lambda inputs: torch.jit.trace(step, inputs),
    "make_fx": lambda inputs: make_fx(step)(*inputs),
    "make_fx before dispatch": lambda inputs: make_fx(step, pre_dispatch=True)(*inputs),
    "make_fx of fakes": lambda inputs: make_fx(step, tracing_mode="fake")(*inputs),
    "make_fx of symbols": lambda inputs: make_fx(step, tracing_mode="symbolic")(*inputs),
    "export": lambda inputs: torch.export.export(Module(step), inputs, strict=False).module(),
    "strict export": lambda inputs: torch.export.export(Module(step), inputs, strict=True).module(),
    "strict export of the function": lambda inputs: torch.export.export(
        Module(plain_step), inputs, strict=True
    ).module(),
}


@pytest.mark.parametrize("record", RECORDERS.values(), ids=RECORDERS.keys())
def test_operators_that_are_recorded(device, record):
    importlib.import_module("nsa_kernel.torch_ops")
    recorded = record((ints(2, 3, device=device), ints(10, 15, device=device)))
    first, second = recorded(ints(1, 3, device=device), ints(8, 14, device=device))
    assert (first.tolist()[:4], second.tolist()[:4]) == ([9, 13, 14, 15], [16, 24, 24, 24])
    first, second = recorded(ints(2, 3, device=device), ints(10, 15, device=device))
    assert first.tolist() == [value + 1 for value in EXPANDED]
    assert second.tolist() == [value * 2 for value in CLIPPED]


class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        return function(*args, **kwargs or {})


class Passed(TorchFunctionMode):
    def __torch_function__(self, function, kinds, args=(), kwargs=None):
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("mode", [Seen, Passed, lambda: torch.device("cpu"), torch.inference_mode, torch.no_grad])
def test_other_modes_of_torch_record_nothing(device, mode):
    held = Buffers(device)
    with mode():
        nsa_kernel.fill_draft_extend_metadata(*held.inputs, 12, *held.outputs)
        held.check(added=0)
        held.plan.run()
        held.check(added=0)
        assert nsa_kernel.DraftExtendPlan(*held.inputs, 12, *held.outputs).run() is None
    held.check(added=0)


def child_lacks(names):
    """A version of torch without some private names, in a mode, for which it is asked all that is asked."""
    with Passed(), pytest.MonkeyPatch.context() as patch:
        for name in names.split():
            patch.delattr(name)
        held = Buffers("cpu")
        nsa_kernel.fill_draft_extend_metadata(*held.inputs, 12, *held.outputs)
        held.check(added=0)
        held.plan.run()
        held.check(added=0)


PRIVATE = [
    "torch._C._is_tracing",
    "torch._C._len_torch_function_stack",
    "torch._C._get_dispatch_mode",
    "torch._C._TorchDispatchModeKey",
    "torch._ops._get_dispatch_mode_pre_dispatch",
]


@pytest.mark.parametrize("names", [*PRIVATE, " ".join(PRIVATE)])
def test_private_names_that_torch_lacks_are_not_needed(names):
    processes.run(child_lacks, names)
