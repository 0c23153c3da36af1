"""What the plug-in tells SGLang's log."""

import contextlib
import logging

logger = logging.getLogger("nsa_kernel.sglang")

# SGLang's processes load plug-ins before they set up logging; there a line waits for the first call.
unsaid: list[str] = []
_said: set[str] = set()


def announce(line: str) -> None:
    """Says a line as soon as the log takes it."""
    unsaid.append(line)
    if logger.isEnabledFor(logging.INFO):
        say()


def say() -> None:
    """Says what waits."""
    with contextlib.suppress(IndexError):  # another thread was first
        logger.info(unsaid.pop())


def say_once(line: str) -> None:
    """Says a line the first time."""
    if line not in _said:
        _said.add(line)
        logger.info(line)
