"""Whose turn it is to compute: one thread's at a time. Knows no requests.

A thread that cannot have the turn sleeps on a lock of its own. What is shared are two dicts, and each change of them is one operation of
theirs, which the interpreter does not interrupt. So a signal handler or a finalizer never waits for what the frame below it holds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

TURN = "turn"
PATIENCE = 1.0  # seconds; a sleeper looks again after so long, should an interrupt have swallowed the call that was meant for it


class Claim:
    """What a thread wants the turn for.

    is_done: whether it wants it no more; asked by other threads too. needs_turn: whether it wants the turn for itself; else the steps of
    others serve it as well, and it takes the turn only where nobody else does. thread: whose it is. is_called: whether the turn was left
    to it.
    """

    def __init__(self, is_done: Callable[[], bool], *, needs_turn: bool = False) -> None:
        self.is_done, self.needs_turn = is_done, needs_turn
        self.thread, self.is_called = threading.get_ident(), False
        self._bell = threading.Lock()
        self._bell.acquire()

    def wake(self) -> None:
        """Ends the thread's sleep, or its next one."""
        with suppress(RuntimeError):  # it was woken before
            self._bell.release()

    def sleep(self) -> None:
        self._bell.acquire(timeout=PATIENCE)


class Turns:
    """The turn, and the claims that wait for it.

    Only who has the turn ends it; who ends it, or waits no more, calls the next while the turn is free. A thread that was not called does
    not come before one that was.
    """

    def __init__(self) -> None:
        self._holder: dict[str, Claim] = {}  # one at most: `setdefault` decides between threads
        self._waiting: dict[Claim, None] = {}  # in order of arrival

    @property
    def is_held_here(self) -> bool:
        """Whether the calling thread has the turn: it is in a step, or below a signal handler or a finalizer that interrupted one."""
        holder = self._holder.get(TURN)
        return holder is not None and holder.thread == threading.get_ident()

    @property
    def is_needed(self) -> bool:
        """Whether a claim waits that other threads' steps do not serve."""
        return any(claim.needs_turn for claim in list(self._waiting))

    def holds(self, claim: Claim) -> bool:
        return self._holder.get(TURN) is claim

    def snatch(self, claim: Claim) -> bool:
        """Takes the turn if it is free, whoever waits; for what is brief."""
        return self._holder.setdefault(TURN, claim) is claim

    def take(self, claim: Claim) -> bool:
        """Takes the turn if it is free, and was left to nobody else. True where the claim has it already."""
        is_left_to_another = not claim.is_called and any(other.is_called for other in list(self._waiting))
        if not self.holds(claim) and (is_left_to_another or not self.snatch(claim)):
            claim.is_called = False
            return False
        self._waiting.pop(claim, None)
        claim.is_called = False
        return True

    def wait(self, claim: Claim) -> None:
        """Sleeps until the claim is called or woken. Returns at once the first time: the caller looks again, now that others see it."""
        if claim in self._waiting:
            claim.sleep()
        self._waiting[claim] = None

    def leave(self, claim: Claim) -> None:
        """Ends the turn, if the claim has it, and the waiting for it."""
        self._waiting.pop(claim, None)
        if self.holds(claim):
            del self._holder[TURN]
        while (waiting := list(self._waiting)) and not self._holder:
            chosen = next((one for one in waiting if one.needs_turn != claim.needs_turn), waiting[0])  # steps and other work alternate
            chosen.is_called = True
            chosen.wake()
            if chosen in self._waiting:
                break  # else it went meanwhile, and may not have seen that it was called

    def wake_done(self) -> None:
        """Wakes those that wait for nothing any more."""
        for claim in list(self._waiting):
            if claim.is_done():
                claim.wake()
