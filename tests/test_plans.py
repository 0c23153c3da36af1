"""Plans: bound once, run every step."""

import gc
import sys
import weakref

import nsa_kernel
import pytest
import torch
from draft_extend_cases import VARIANTS
from memory import POISON, lengths, words_at
from reference import draft_extend, replay


def draft_extend_arrays(device, bs=3, capacity=16):
    inputs = [lengths([2] * bs, device=device), lengths([9] * bs, device=device)]
    outputs = [torch.full((size,), POISON, dtype=torch.int32, device=device) for size in (capacity, capacity, 1)]
    return inputs, outputs


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_follows_inputs_that_changed_in_place(device, variant):
    (q, k), outputs = draft_extend_arrays(device)
    plan = nsa_kernel.DraftExtendPlan(q, k, 7, *outputs, variant=variant)
    for values in ([2, 3, 1], [0, 0, 0], [9, 9, 9], [1, 0, 2]):
        for output in outputs:
            output.fill_(POISON)
        q.copy_(torch.tensor(values))
        assert plan.run() is None
        expected = draft_extend(values, [9] * 3, 7, 16)
        for output, want in zip(outputs, (expected[0], expected[1], [expected[2]]), strict=True):
            assert output.tolist() == [POISON if value is None else value for value in want]


def test_a_replay_plan_follows_inputs_that_changed_in_place(device):
    s, indices = lengths([4, 5], device=device), lengths([0, 1], device=device)
    pool = torch.arange(20, dtype=torch.int32, device=device).reshape(2, 10)
    page_table = torch.full((4, 10), POISON, dtype=torch.int32, device=device)
    plan = nsa_kernel.ReplayPlan(
        "draft_extend",
        seq_lens=s,
        nsa_index_topk=7,
        num_draft_tokens=2,
        req_pool_indices=indices,
        req_to_token=pool,
        page_table=page_table,
    )
    for values, rows in (([4, 5], [0, 1]), ([10, 0], [1, 1]), ([3, 12], [5, 0])):
        page_table.fill_(POISON)
        s.copy_(torch.tensor(values))
        indices.copy_(torch.tensor(rows))
        assert plan.run(stream=None) is None
        want = replay(
            "draft_extend",
            values,
            7,
            {"page_table": (4, 10)},
            num_draft_tokens=2,
            req_pool_indices=rows,
            req_to_token=pool.tolist(),
            req_to_token_width=10,
        )["page_table"]
        assert page_table.tolist() == [[POISON if slot is None else slot for slot in row] for row in want]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_arrays_live_as_long_as_the_plan(device, variant):
    inputs, outputs = draft_extend_arrays(device, bs=1000, capacity=2000)
    plan = nsa_kernel.DraftExtendPlan(*inputs, 7, *outputs, variant=variant)
    result = outputs[0]
    alive = [weakref.ref(array) for array in (*inputs, *outputs)]
    del inputs, outputs
    gc.collect()
    assert all(reference() is not None for reference in alive)
    others = [torch.full((1000,), 5, dtype=torch.int32, device=device) for _ in range(50)]
    plan.run()
    assert result.tolist() == draft_extend([2] * 1000, [9] * 1000, 7, 2000)[0]
    del plan, result, others
    gc.collect()
    assert [reference() for reference in alive] == [None] * 5, "a plan that is gone keeps arrays alive"


def test_the_arrays_of_a_replay_plan_live_as_long(device):
    s, table = lengths([3], device=device), torch.ones((1, 4), dtype=torch.int32, device=device)
    out = torch.zeros((1, 4), dtype=torch.int32, device=device)
    bound = {"seq_lens": s, "req_pool_indices": lengths([0], device=device), "req_to_token": table, "page_table": out}
    plan = nsa_kernel.ReplayPlan("decode", nsa_index_topk=7, **bound)
    alive = [weakref.ref(array) for array in bound.values()]
    del s, table, bound
    gc.collect()
    assert all(reference() is not None for reference in alive)
    plan.run()
    assert out.tolist() == [[1, 1, 1, 0]]
    del plan, out
    gc.collect()
    assert [reference() for reference in alive] == [None] * 4


def give_data(tensor):
    tensor.data = torch.full((1,), POISON, dtype=torch.int32, device=tensor.device)


def swap(tensor):
    torch.utils.swap_tensors(tensor, torch.full((1,), POISON, dtype=torch.int32, device=tensor.device))


OTHER_MEMORY = {
    "data": give_data,
    "set_": lambda tensor: tensor.set_(),
    "set_ to another": lambda tensor: tensor.set_(torch.full((1,), POISON, dtype=tensor.dtype, device=tensor.device)),
    "swap_tensors": swap,
}


@pytest.mark.parametrize("give_other_memory", OTHER_MEMORY.values(), ids=OTHER_MEMORY.keys())
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_plan_keeps_the_memory_of_tensors_that_are_given_other_memory(device, variant, give_other_memory):
    """Nothing else is allocated there while the plan lives, and what it reads and writes there is right."""
    q, k, expected = [2, 3] * 500, [10, 15] * 500, [9, 10, 13, 14, 15] * 500
    inputs = [torch.tensor(values, dtype=torch.int32, device=device) for values in (q, k)]
    outputs = [torch.full((size,), POISON, dtype=torch.int32, device=device) for size in (2500, 2500, 1)]
    arrays = [*inputs, *outputs]
    addresses = [array.data_ptr() for array in arrays]
    plan = nsa_kernel.DraftExtendPlan(*inputs, 12, *outputs, variant=variant)
    for array in arrays:
        give_other_memory(array)
    others = [torch.full((size,), 7, dtype=torch.int32, device=device) for size in (1000, 2500, 1) for _ in range(20)]
    assert not {other.data_ptr() for other in others} & set(addresses)
    plan.run()
    assert all(bool((other == 7).all()) for other in others)
    assert words_at(addresses[2], 2500, device) == expected
    assert words_at(addresses[3], 2500, device) == [min(value, 12) for value in expected]
    assert words_at(addresses[4], 1, device) == [2500]
    assert words_at(addresses[0], 1000, device) == q


def test_a_replay_plan_keeps_the_memory_of_tensors_that_are_given_other_memory(device):
    bs, width = 300, 40
    table = torch.arange(bs * width, dtype=torch.int32, device=device).reshape(bs, width)
    bound = {
        "seq_lens": torch.full((bs,), width, dtype=torch.int32, device=device),
        "req_pool_indices": torch.arange(bs, device=device),
        "req_to_token": table.clone(),
        "page_table": torch.full((bs, width), POISON, dtype=torch.int32, device=device),
        "cu_seqlens_k": torch.full((bs + 1,), POISON, dtype=torch.int32, device=device),
    }
    addresses = {name: array.data_ptr() for name, array in bound.items()}
    plan = nsa_kernel.ReplayPlan("decode", **bound)
    for array in bound.values():
        array.set_()
    others = [torch.full(size, 7, device=device) for size in ((bs, width), (bs,), (bs + 1,)) for _ in range(20)]
    others = [other.to(torch.int32) for other in others]
    plan.run()
    assert all(bool((other == 7).all()) for other in others)
    assert words_at(addresses["page_table"], bs * width, device) == table.flatten().tolist()
    assert words_at(addresses["cu_seqlens_k"], bs + 1, device) == list(range(0, bs * width + 1, width))


@pytest.mark.cuda
def test_the_caching_allocator_gives_no_memory_of_a_plan_away(device):
    """Blocks come back to it only once the plan is gone."""
    size = 2**20
    inputs = [torch.full((size,), 2, dtype=torch.int32, device=device) for _ in range(2)]
    outputs = [torch.full((size,), POISON, dtype=torch.int32, device=device) for _ in range(2)]
    addresses = {array.data_ptr() for array in (*inputs, *outputs)}
    plan = nsa_kernel.DraftExtendPlan(*inputs, 12, *outputs)
    for array in (*inputs, *outputs):
        give_data(array)
    before = torch.cuda.memory_allocated()
    others = [torch.full((size,), 7, dtype=torch.int32, device=device) for _ in range(8)]
    assert not {other.data_ptr() for other in others} & addresses
    plan.run()
    assert all(bool((other == 7).all()) for other in others)
    del plan, others
    gc.collect()
    assert torch.cuda.memory_allocated() <= before - 4 * 4 * size
    again = [torch.empty(size, dtype=torch.int32, device=device) for _ in range(16)]
    assert {other.data_ptr() for other in again} & addresses


def test_calls_hold_no_array_after_they_return(device):
    inputs, outputs = draft_extend_arrays(device)
    arrays = [*inputs, *outputs]
    before = [sys.getrefcount(array) for array in arrays]
    for _ in range(10):
        nsa_kernel.fill_draft_extend_metadata(*inputs, 7, *outputs)
        nsa_kernel.fill_draft_extend_metadata_cuda(*inputs, 7, *outputs[:2])
        nsa_kernel.DraftExtendPlan(*inputs, 7, *outputs).run()
        nsa_kernel.fill_replay_metadata("decode", seq_lens=inputs[1], nsa_index_topk=7, cache_seqlens=outputs[0])
        with pytest.raises(ValueError, match="nsa_index_topk"):
            nsa_kernel.fill_draft_extend_metadata(*inputs, -1, *outputs)
    gc.collect()
    assert [sys.getrefcount(array) for array in arrays] == before


def in_memory_of(block, size, stride):
    """A view of the first elements of a block, which every view of it begins with."""
    return block.as_strided(size, stride)


def replay_views(device):
    """Arguments of a call, and for each of them others at the same address."""
    blocks = {}

    def views(name, values, *layouts):
        blocks[name] = block = torch.tensor(values, dtype=torch.int32, device=device)
        return [in_memory_of(block, *layout) for layout in layouts]

    def lengths_of(name, values):
        return [*views(name, values, ((3,), (1,)), ((3,), (2,)), ((2,), (1,))), blocks[name].view(torch.int64)[:3]]

    def output(name, size, fewest):
        return [*views(name, [POISON] * (size + 2), ((size,), (1,)), ((size + 1,), (1,)), ((fewest,), (1,))), None]

    def table_of(name, values, rows, cols):
        layouts = [((rows, cols), (16, 1)), ((rows, cols), (15, 1)), ((rows, cols - 1), (16, 1))]
        return views(name, values, *layouts, ((rows - 1, cols), (16, 1)))

    choices = {
        "mode": ["draft_extend", "target_verify", "decode"],
        "seq_lens": lengths_of("seq_lens", [5, 0, 9, 0, 7, 0]),
        "nsa_index_topk": [6, 4],
        "req_pool_indices": lengths_of("req_pool_indices", [2, 0, 1, 0, 3, 0]),
        "req_to_token": table_of("req_to_token", range(100, 164), 4, 12),
        "extend_seq_lens": [None, *lengths_of("extend_seq_lens", [1, 0, 2, 0, 2, 0])],
        "num_draft_tokens": [2, 1, None],
        "page_size": [2, 4],
        "cache_seqlens": output("cache_seqlens", 3, 2),
        "cu_seqlens_k": output("cu_seqlens_k", 4, 3),
        "seqlens_expanded": output("seqlens_expanded", 6, 5),
        "nsa_cache_seqlens": output("nsa_cache_seqlens", 6, 5),
        "nsa_cu_seqlens_k": output("nsa_cu_seqlens_k", 7, 6),
        "page_table": [*table_of("page_table", [POISON] * 128, 6, 10), None],
        "real_page_table": [*table_of("real_page_table", [POISON] * 128, 6, 3), None],
        "ctx_lens_2d": [None, *table_of("ctx_lens_2d", [POISON] * 64, 3, 2)],
        "num_tokens": output("num_tokens", 1, 0),
    }
    return choices, blocks


def outcome(function, arguments, blocks):
    """All memory after a call, or the words of its refusal."""
    for name, block in blocks.items():
        if name not in ("seq_lens", "req_pool_indices", "req_to_token", "extend_seq_lens"):
            block.fill_(POISON)
    try:
        function(**arguments)
    except ValueError as refusal:
        return str(refusal)
    return {name: block.tolist() for name, block in blocks.items()}


def bound_anew(**arguments):
    nsa_kernel.ReplayPlan(**arguments).run()


def test_a_call_is_its_own_after_one_at_the_same_addresses(device):
    """A call may use the plan of an earlier one, but never where a layout or a number differs."""
    choices, blocks = replay_views(device)
    for ragged in (False, True):
        first = {name: values[0] for name, values in choices.items()}
        if ragged:
            first["extend_seq_lens"] = choices["extend_seq_lens"][1]
        else:
            first["ctx_lens_2d"] = choices["ctx_lens_2d"][1]
        for name, values in choices.items():
            for value in values:
                changed = first | {name: value}
                expected = outcome(bound_anew, changed, blocks)
                for arguments in (first, changed, first):
                    got = outcome(nsa_kernel.fill_replay_metadata, arguments, blocks)
                    assert arguments is first or got == expected, f"{name} after {first[name]} is {value}"


def test_a_plan_does_not_change(device):
    inputs, outputs = draft_extend_arrays(device)
    plan = nsa_kernel.DraftExtendPlan(*inputs, 7, *outputs)
    for name in ("seq_lens", "nsa_index_topk", "anything"):
        with pytest.raises(AttributeError):
            setattr(plan, name, 1)


def test_several_plans_do_not_share_state(device):
    plans = []
    for count in range(1, 6):
        inputs, outputs = draft_extend_arrays(device, bs=count)
        plans.append((nsa_kernel.DraftExtendPlan(*inputs, 7, *outputs, variant=VARIANTS[count % 3]), outputs, count))
    for plan, _, _ in reversed(plans):
        plan.run()
    for _, outputs, count in plans:
        assert outputs[2].tolist() == [2 * count]


def test_a_run_takes_no_arrays(device):
    inputs, outputs = draft_extend_arrays(device)
    plan = nsa_kernel.DraftExtendPlan(*inputs, 7, *outputs)
    with pytest.raises(TypeError):
        plan.run(*inputs)
