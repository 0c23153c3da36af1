"""The Python blocks of README and concepts run, and print what the page says they print."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from arguments import DRAFT_EXTEND, OUTPUT_SHAPES, REPLAY

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


@pytest.mark.parametrize("op", [DRAFT_EXTEND, REPLAY])
def test_the_tables_list_every_output(op):
    """In the table of outputs of the op's chapter."""
    noun = op.removeprefix("fill_").removesuffix("_metadata")
    chapter = README.read_text().partition(f"\n## {noun}: ")[2].partition("\n## ")[0]
    table = chapter.partition("| output | shape | value")[2].partition("\n\n")[0]
    first_cells = " ".join(re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", first_cells)) == OUTPUT_SHAPES[op].keys()


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
