"""What the plug-ins of engines share: the switch in the environment, and the log."""

import contextlib
import logging
import os

import torch


def switch_of(variable: str) -> str:
    """What is asked for: ``0``, ``functions`` or ``1``, for which unset and empty stand too."""
    return os.environ.get(variable) or "1"


def obstacle(variable: str) -> str:
    """Why an engine has to stay as it is, as far as switch and torch say; empty where nothing speaks against it."""
    switch = switch_of(variable)
    if switch == "0":
        return f"{variable} is 0"
    if switch not in ("1", "functions"):
        return f"{variable} is {switch!r}, must be 0, functions or 1"
    return "" if torch.version.hip is None else "torch is built for ROCm"


class Log:
    """An engine's log.

    Its processes may load plug-ins before they set up logging; there a line waits for the first call.
    """

    def __init__(self, name: str) -> None:
        self.unsaid: list[str] = []
        self._logger = logging.getLogger(name)
        self._said: set[str] = set()

    def announce(self, line: str) -> None:
        """Says a line as soon as the log takes it."""
        self.unsaid.append(line)
        if self._logger.isEnabledFor(logging.INFO):
            self.say()

    def say(self) -> None:
        """Says what waits."""
        with contextlib.suppress(IndexError):  # another thread says the last line
            while self.unsaid:
                self._logger.info(self.unsaid.pop(0))

    def say_once(self, line: str) -> None:
        """Says a line the first time."""
        if line not in self._said:
            self._said.add(line)
            self._logger.info(line)
