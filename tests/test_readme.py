"""The Python blocks of README and concepts run, and print what the page says they print."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nsa_kernel
import pytest
import torch

README = Path(__file__).parents[1] / "README.md"
CONCEPTS = README.parent / "docs" / "concepts.md"
# A Python block, and the plain block that may follow it at once: its output.
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\s*^```(?:text)?\n(?P<output>.*?)^```$)?", re.MULTILINE | re.DOTALL
)


def blocks(page):
    if not page.exists():  # tests may be run from a copy without it
        return []
    return [(match["code"], match["output"]) for match in BLOCK.finditer(page.read_text())]


def test_the_readme_is_short_and_has_blocks():
    assert len(blocks(README)) >= 2
    assert len(README.read_text().splitlines()) <= 150


def test_the_table_of_ops_names_every_function_and_plan():
    """The variants of the drop-in function stand in one row; what each op writes stands in docs/api.md."""
    table = README.read_text().partition("\n## Ops\n")[2].partition("\n## ")[0]
    first_cells = " ".join(re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE))
    ops = {name for name in nsa_kernel.__all__ if name.startswith("fill_") or name.endswith("Plan")}
    variants = {name for name in ops if re.search(r"_(basic|adaptive|optimized|inplace)$", name)}
    assert set(re.findall(r"`(\w+)`", first_cells)) - {"schedule", "topk_plan"} == ops - variants


def test_no_release_is_offered_before_there_is_one():
    changes = README.with_name("CHANGELOG.md").read_text()
    if "] - unreleased" in changes.partition("## [")[2] and changes.count("## [") == 1:
        assert not re.search(r"^ {4}pip install .*nsa-kernel", README.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("code", "expected"), blocks(README) + blocks(CONCEPTS), ids=lambda value: (value or "").strip().split("\n")[0][:40]
)
def test_a_block_runs(code, expected, tmp_path):
    if "cuda" in code.lower() and not torch.cuda.is_available():
        pytest.skip("the block needs a GPU")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    if expected is not None:
        assert done.stdout.strip() == expected.strip()
