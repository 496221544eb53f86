"""`python -m edge_agent.launch --state-dir DIR -- run --config FILE`: runs the newest agent that works.

The agent fetches and checks what was released; this starts it, and falls back by itself when something on
trial does not become healthy: it ended too often, or its time was over. Only the standard library, and never
replaced by an update: whatever a release breaks, this goes on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

from edge_agent.launch_state import LAUNCHED, MOST_BOOTS, RESTART_STATUS, UpdateState

_POLL_S: Final = 0.1
_STOP_S: Final = 40.0
# The agent judges itself; this is for one that cannot.
_GRACE_S: Final = 30.0
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 10.0


class Launcher:
    """Keeps one agent running until it is told to stop."""

    def __init__(self, state_dir: Path, arguments: Sequence[str], *, grace_s: float = _GRACE_S) -> None:
        self._state_dir = state_dir
        self._arguments = list(arguments)
        self._grace_s = grace_s
        self._asked: list[int] = []
        self._child: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Until a signal or, without anything on trial, a configuration that cannot work; the exit status."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)
        wait_s = _FIRST_WAIT_S
        while True:
            state = self._ready()
            began = time.monotonic()
            status = self._once(state)
            if self._asked:
                return 128 + self._asked[0] if status is None else status
            on_trial = UpdateState.load(self._state_dir).trial is not None
            if status == RESTART_STATUS or on_trial or state.trial is not None:
                continue
            if status == 0 or (status == 2 and not state.in_force()):
                return status  # it said why in one line, and there is nothing to fall back to
            wait_s = _FIRST_WAIT_S if time.monotonic() - began > 60 else min(wait_s * 2, _LONGEST_WAIT_S)
            _say("agent_ended", exit_status=status, restart_s=wait_s)
            self._pause(wait_s)
            if self._asked:
                return 0

    def _ready(self) -> UpdateState:
        """The state, with this start counted, durably: a power cut during a trial counts as one too."""
        state = UpdateState.load(self._state_dir)
        if state.trial is not None and state.trial.boots >= MOST_BOOTS:
            self._roll_back(state, f"ended {state.trial.boots} times before it was healthy")
        path = state.path("agent")
        if path is not None and not path.is_dir():
            _say("agent_missing", path=str(path))
            if state.trial is not None and state.trial.kind == "agent":
                self._roll_back(state, "its files are gone")
            else:
                state.current.pop("agent", None)
                self._save(state)
        if state.trial is not None:
            state.trial.boots += 1
            self._save(state)
        return state

    def _once(self, state: UpdateState) -> int | None:
        """Run an agent until it ends, or has to; its exit status."""
        path = state.path("agent")
        slots = state.in_force()
        env = {**os.environ, LAUNCHED: "1"}
        if path is not None:
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH")]))
        _say(
            "agent_starting",
            version=slots["agent"].version if path is not None else "as installed",
            trial=state.trial.kind if state.trial is not None else None,
        )
        # -P: what lies in the folder that we happen to be in must not come first.
        command = [sys.executable, "-P", "-m", "edge_agent", *self._arguments]
        self._child = child = subprocess.Popen(command, env=env)
        try:
            return self._watch(child, state)
        finally:
            self._child = None
            if child.poll() is None:
                child.kill()
                child.wait()

    def _watch(self, child: subprocess.Popen[bytes], state: UpdateState) -> int | None:
        end = time.monotonic() + state.trial.deadline_s + self._grace_s if state.trial is not None else None
        while True:
            if self._asked:
                return self._stop(child)
            try:
                return child.wait(_POLL_S)
            except subprocess.TimeoutExpired:
                pass
            if end is not None and time.monotonic() > end:
                end = None
                if UpdateState.load(self._state_dir).trial is None:
                    continue  # it was confirmed
                self._stop(child)
                now = UpdateState.load(self._state_dir)
                if now.trial is not None:
                    self._roll_back(now, "it hung: it neither became healthy nor ended")
                return RESTART_STATUS

    def _stop(self, child: subprocess.Popen[bytes]) -> int | None:
        child.send_signal(self._asked[0] if self._asked else signal.SIGTERM)
        try:
            return child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()

    def _roll_back(self, state: UpdateState, reason: str) -> None:
        assert state.trial is not None  # noqa: S101  # the callers saw it
        _say("rolled_back", kind=state.trial.kind, version=state.trial.slot.version, reason=reason)
        state.roll_back(reason)

    def _save(self, state: UpdateState) -> None:
        try:
            state.save()
        except OSError as problem:
            _say("state_not_written", reason=str(problem))

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self._asked.append(number)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._asked and time.monotonic() < end:
            time.sleep(_POLL_S)


def _say(event: str, **fields: Any) -> None:
    """A line like the agent's own."""
    line = {**fields, "event": event, "level": "info", "logger": "launcher"}
    sys.stderr.write(json.dumps(line) + "\n")
    sys.stderr.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    given = list(sys.argv[1:] if argv is None else argv)
    if len(given) < 4 or given[0] != "--state-dir" or given[2] != "--" or given[3] != "run":
        sys.stderr.write("usage: python -m edge_agent.launch --state-dir DIR -- run --config FILE ...\n")
        return 2
    return Launcher(Path(given[1]), given[3:]).run()


if __name__ == "__main__":
    raise SystemExit(main())
