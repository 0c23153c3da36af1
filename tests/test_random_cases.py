"""Random cases of every op: a seed is one case on every device, and a case that fails says how to run it again.

A case is drawn on the host from its seed alone; `--cases=10000` is the full run of each op.
"""

import copy
import random

import pytest
from ops import OPS


@pytest.mark.parametrize("op", OPS)
def test_random_cases_equal_the_oracle(device, op, random_cases):
    for seed, reproducible in random_cases:
        with reproducible:
            OPS[op].check(**OPS[op].draw_case(random.Random(seed)), device=device)


@pytest.mark.parametrize("op", OPS)
def test_a_seed_is_one_case(op):
    for seed in range(100):
        assert OPS[op].draw_case(random.Random(seed)) == OPS[op].draw_case(random.Random(seed))


@pytest.mark.parametrize("op", OPS)
def test_running_a_case_leaves_it_as_it_was(device, op):
    for seed in range(20):
        case = OPS[op].draw_case(random.Random(seed))
        before = copy.deepcopy(case)
        OPS[op].check(**case, device=device)
        assert case == before


@pytest.mark.parametrize("op", OPS)
def test_a_failing_case_prints_how_to_run_it(op, random_cases):
    (seed, reproducible), *_ = random_cases
    with pytest.raises(AssertionError) as caught, reproducible:
        raise AssertionError
    assert caught.value.__notes__[0].endswith(f"--seed={seed} --cases=1")
    assert f"::test_a_failing_case_prints_how_to_run_it[{op}]" in caught.value.__notes__[0]
