"""Signals held back while a training step changes parameters, so that a step is taken whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Interrupts"]

Handler = Callable[[int, FrameType | None], Any]


class Interrupts:
    """Handlers of signals that wait for the end of a step.

    Python runs handlers in its main thread alone, so elsewhere there is nothing to hold back. A
    second signal does not wait.

    Example:
        >>> interrupts, done = Interrupts(), []
        >>> with interrupts.installed():
        ...     try:
        ...         with interrupts.held():
        ...             signal.raise_signal(signal.SIGINT)
        ...             done.append("step")
        ...     except KeyboardInterrupt:
        ...         done.append("interrupt")
        >>> done
        ['step', 'interrupt']
    """

    def __init__(self) -> None:
        self.holding = False
        self.waiting: list[tuple[Handler, int, FrameType | None]] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Put the handlers in the place of those that Python has now."""
        found: dict[int, tuple[Handler, Handler]] = {}
        if threading.current_thread() is threading.main_thread():
            for number in map(int, signal.valid_signals()):
                handler = signal.getsignal(number)
                if callable(handler) and not isinstance(handler, signal.Handlers):
                    found[number] = handler, self.wrap(handler)
                    signal.signal(number, found[number][1])
        try:
            yield
        finally:
            for number, (handler, ours) in found.items():
                if signal.getsignal(number) is ours:
                    signal.signal(number, handler)

    def wrap(self, handler: Handler) -> Handler:
        """Return a handler that waits while a step is taken."""

        def wait(number: int, frame: FrameType | None) -> Any:
            if not self.holding or self.waiting:
                return handler(number, frame)
            self.waiting.append((handler, number, frame))
            return None

        return wait

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold signals back, and handle them at the end."""
        self.holding = True
        try:
            yield
        finally:
            self.holding = False
            while self.waiting:
                handler, number, frame = self.waiting.pop()
                handler(number, frame)
