"""torch.compile sees the public functions as operators; eager mode does not notice."""

import subprocess
import sys

import nsa_kernel
import pytest
import torch
from arguments import CALLS, ROLES, is_output, valid_arguments
from replay_cases import MODES, shapes_of
from torch import library
from torch._dynamo.utils import counters

EAGER = {
    name: getattr(nsa_kernel, name)
    for name in nsa_kernel.__all__
    if name.startswith("fill_") and "_cuda" not in name and not name.endswith("_inplace")
}

import nsa_kernel.torch_ops  # noqa: E402  (after EAGER, to see that it changes nothing there)

ops = torch.ops.nsa_kernel


def lengths(bs, device):
    """(extend_seq_lens, seq_lens) of `bs` requests; their tokens number 3 or fewer a request."""
    b = torch.arange(bs, dtype=torch.int32, device=device)
    return b % 3 + 1, 2 * b + 7


def empty(*shape, device):
    return torch.full(shape, -7, dtype=torch.int32, device=device)


def replay_arguments(mode, bs, device, n=3, width=64, page_size=16):
    """Arguments of fill_replay_metadata with every output that the mode has."""
    q, k = lengths(bs, device)
    ragged = mode == "ragged"
    rows = bs if mode == "decode" else int(q.sum()) + 2 if ragged else bs * n
    arguments = {
        "seq_lens": k,
        "nsa_index_topk": 12,
        "req_pool_indices": torch.arange(bs, device=device).flip(0),
        "req_to_token": torch.arange(bs * width, dtype=torch.int32, device=device).reshape(bs, width),
        "page_size": page_size,
    }
    shapes = shapes_of(mode, bs, rows, n, width, page_size)
    arguments |= {name: empty(*shape, device=device) for name, shape in shapes.items()}
    if ragged:
        arguments["extend_seq_lens"] = q
    elif mode != "decode":
        arguments["num_draft_tokens"] = n
    return ("draft_extend" if ragged else mode), arguments


def copied(arguments):
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}


def test_import_of_the_package_imports_no_torch():
    code = "import sys, nsa_kernel; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_eager_functions_stay_the_same_objects():
    for name, function in EAGER.items():
        assert getattr(nsa_kernel, name) is function


def test_every_function_that_returns_nothing_has_an_operator():
    assert EAGER.keys() == CALLS.keys() == {name for name in dir(ops) if name.startswith("fill_")}


def outputs_of(op):
    return {name for (of, name), role in ROLES.items() if of == op and is_output(role)}


@pytest.mark.parametrize("op", EAGER)
def test_operators_declare_that_they_write_every_output_and_no_input(op):
    arguments = getattr(ops, op).default._schema.arguments
    tensors = {argument.name: argument for argument in arguments if "Tensor" in str(argument.type)}
    assert tensors.keys() == {name for of, name in ROLES if of == op}
    written = {name for name, argument in tensors.items() if argument.alias_info and argument.alias_info.is_write}
    assert written == outputs_of(op)
    assert not getattr(ops, op).default._schema.returns


def positional(given):
    """The word that comes first, taken from the arguments."""
    return tuple(given.pop(name) for name in ("mode", "layout") if name in given)


@pytest.mark.parametrize("op", EAGER)
def test_operators_raise_the_version_of_what_they_write(device, op):
    given, _ = valid_arguments(op, device)
    step = positional(given)
    tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
    counts = outputs_of(op) & {"num_tokens", "out_num_tokens"}
    for absent in ({}, dict.fromkeys(counts)):
        before = {name: tensor._version for name, tensor in tensors.items()}
        getattr(ops, op)(*step, **given | absent)
        raised = {name for name, tensor in tensors.items() if tensor._version > before[name]}
        assert raised == outputs_of(op) - absent.keys()


@pytest.mark.parametrize("op", EAGER)
def test_opcheck_of_every_operator(device, op):
    given, _ = valid_arguments(op, device)
    library.opcheck(getattr(ops, op).default, positional(given), given)


@pytest.mark.parametrize("op", EAGER)
def test_every_function_compiles_whole(device, op):
    torch.compiler.reset()
    function, (given, outputs) = EAGER[op], valid_arguments(op, device)
    expected, filled = valid_arguments(op, device)
    torch.compile(lambda arguments: function(**arguments), fullgraph=True, backend="aot_eager")(given)
    function(**expected)
    for name, output in outputs.items():
        assert output.memory.tolist() == filled[name].memory.tolist(), name


def test_autograd_notices_what_operators_write(device):
    """Indices that a gradient needs have changed by then."""
    q, k = lengths(4, device)
    indices, clipped = torch.zeros(12, dtype=torch.int32, device=device), empty(12, device=device)
    weights = torch.ones((30, 2), requires_grad=True, device=device)
    result = torch.nn.functional.embedding(indices, weights).sum()
    ops.fill_draft_extend_metadata(q, k, 12, indices, clipped)
    with pytest.raises(RuntimeError, match="has been modified by an inplace operation"):
        result.backward()


def test_operators_fill_tensors_of_inference(device):
    with torch.inference_mode():
        q, k = lengths(2, device)
        outputs = empty(3, device=device), empty(3, device=device)
        ops.fill_draft_extend_metadata(q, k, 8, *outputs)
        assert [output.tolist() for output in outputs] == [[7, 8, 9], [7, 8, 8]]


@pytest.mark.parametrize("variant", ["basic", "adaptive", "optimized"])
@pytest.mark.parametrize("counted", [False, True])
def test_opcheck_of_draft_extend(device, variant, counted):
    q, k = lengths(5, device)
    count = empty(1, device=device) if counted else None
    outputs = (empty(12, device=device), empty(12, device=device), count)
    library.opcheck(ops.fill_draft_extend_metadata.default, (q, k, 12, *outputs), {"variant": variant})


@pytest.mark.parametrize("mode", MODES)
def test_opcheck_of_replay(device, mode):
    mode, arguments = replay_arguments(mode, 5, device)
    library.opcheck(ops.fill_replay_metadata.default, (mode,), arguments)


def test_opcheck_of_replay_with_few_outputs(device):
    arguments = {"seq_lens": lengths(5, device)[1], "nsa_index_topk": 12, "cu_seqlens_k": empty(6, device=device)}
    library.opcheck(ops.fill_replay_metadata.default, ("decode",), arguments)


def test_operators_do_what_the_functions_do(device):
    q, k = lengths(5, device)
    ours, theirs = ([empty(12, device=device) for _ in range(2)] for _ in range(2))
    ops.fill_draft_extend_metadata(q, k, 12, *ours)
    nsa_kernel.fill_draft_extend_metadata(q, k, 12, *theirs)
    torch.testing.assert_close(ours, theirs)
    for mode in MODES:
        name, arguments = replay_arguments(mode, 5, device)
        expected = copied(arguments)
        ops.fill_replay_metadata(name, **arguments)
        nsa_kernel.fill_replay_metadata(name, **expected)
        torch.testing.assert_close(arguments, expected)


def draft_extend_step(q, k, topk):
    """Fills outputs and reads them: the compiler must keep the order."""
    expanded = q.new_full((3 * q.shape[0],), -7)
    clipped, count = torch.zeros_like(expanded), q.new_zeros(1)
    nsa_kernel.fill_draft_extend_metadata(q, k, topk, expanded, clipped, count)
    return expanded + 1, clipped.cumsum(0), count


def replay_step(k, pool, table, n):
    bs = k.shape[0]
    expanded, cu = k.new_empty(bs * n), k.new_empty(bs + 1)
    pages = k.new_full((bs * n, table.shape[1] // 16), -7)
    nsa_kernel.fill_replay_metadata(
        "target_verify",
        seq_lens=k,
        nsa_index_topk=12,
        req_pool_indices=pool,
        req_to_token=table,
        num_draft_tokens=n,
        page_size=16,
        seqlens_expanded=expanded,
        cu_seqlens_k=cu,
        real_page_table=pages,
    )
    return expanded * 2, cu[1:] - cu[:-1], pages.clamp(min=0)


def replay_inputs(bs, device):
    _, arguments = replay_arguments("target_verify", bs, device)
    return arguments["seq_lens"], arguments["req_pool_indices"], arguments["req_to_token"]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_functions_are_right_and_do_not_recompile(device, backend):
    torch.compiler.reset()
    draft_extend = torch.compile(draft_extend_step, fullgraph=True, dynamic=True, backend=backend)
    replay = torch.compile(replay_step, fullgraph=True, dynamic=True, backend=backend)
    draft_extend(*lengths(4, device), 12)
    replay(*replay_inputs(4, device), 3)
    with torch.compiler.set_stance("fail_on_recompile"):
        for bs in (2, 3, 17, 64, 5):
            q, k = lengths(bs, device)
            torch.testing.assert_close(draft_extend(q, k, bs + 4), draft_extend_step(q, k, bs + 4))
            inputs = replay_inputs(bs, device)
            torch.testing.assert_close(replay(*inputs, 3), replay_step(*inputs, 3))


def replay_of_any_mode(mode, arguments):
    nsa_kernel.fill_replay_metadata(mode=mode, **arguments)


def test_compiled_function_fills_the_callers_buffers(device):
    torch.compiler.reset()
    compiled = torch.compile(replay_of_any_mode, fullgraph=True, backend="aot_eager")
    for mode in MODES:
        name, arguments = replay_arguments(mode, 5, device)
        expected = copied(arguments)
        compiled(name, arguments)
        nsa_kernel.fill_replay_metadata(name, **expected)
        torch.testing.assert_close(arguments, expected)


def test_functions_imported_by_name_trace_too(device):
    torch.compiler.reset()
    fill = EAGER["fill_draft_extend_metadata"]

    def step(q, k, out, clipped):
        fill(q, k, 12, out, clipped, variant="basic", stream=None)
        return out + 0

    q, k = lengths(5, device)
    out, clipped = empty(12, device=device), empty(12, device=device)
    torch.testing.assert_close(torch.compile(step, fullgraph=True, backend="aot_eager")(q, k, out, clipped), out)
    assert out[0] == k[0] - q[0] + 1


def test_a_stream_is_refused_while_compiling(device):
    torch.compiler.reset()

    def step(q, k, out, clipped):
        nsa_kernel.fill_draft_extend_metadata(q, k, 12, out, clipped, stream=0)

    outputs = empty(12, device=device), empty(12, device=device)
    with pytest.raises(Exception, match="stream is given, must be absent"):
        torch.compile(step, fullgraph=True, backend="aot_eager")(*lengths(5, device), *outputs)


def test_a_mode_that_is_given_twice_is_refused_while_compiling(device):
    torch.compiler.reset()

    def step(seq_lens, out):
        nsa_kernel.fill_replay_metadata("decode", mode="target_verify", seq_lens=seq_lens, cache_seqlens=out)

    with pytest.raises(Exception, match="positional argument"):
        torch.compile(step, fullgraph=True, backend="aot_eager")(lengths(5, device)[1], empty(5, device=device))


@pytest.mark.cuda
def test_reduce_overhead_captures_the_ops_in_cuda_graphs(device):
    torch.compiler.reset()
    counters.clear()
    draft_extend = torch.compile(draft_extend_step, fullgraph=True, mode="reduce-overhead")
    replay = torch.compile(replay_step, fullgraph=True, mode="reduce-overhead")
    q, k = lengths(9, device)
    inputs = replay_inputs(9, device)
    for step in range(5):
        k += step
        got = [output.clone() for output in draft_extend(q, k, 12)]
        torch.testing.assert_close(got, list(draft_extend_step(q, k, 12)))
        inputs[0].add_(step)
        torch.compiler.cudagraph_mark_step_begin()
        got = [output.clone() for output in replay(*inputs, 3)]
        torch.testing.assert_close(got, list(replay_step(*inputs, 3)))
    assert counters["inductor"]["cudagraph_skips"] == 0
