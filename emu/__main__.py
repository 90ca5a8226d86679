"""`python -m emu` and `emu`: the command line.

Signals are handled before anything heavy is imported: what Ctrl-C interrupts may be an import, in which an exception
could become any error, or none.
"""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

_SAID = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "the terminal is gone"}


def main() -> None:
    """Runs the command line; Ctrl-C ends it with exit code 130, SIGTERM with 143, at any time."""
    for number in _SAID:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell's background jobs have it
            signal.signal(number, _stop)
    try:
        from emu.cli import main as run

        run()
    finally:
        for number in _SAID:
            if signal.getsignal(number) is _stop:  # nothing is left to do
                signal.signal(number, lambda number, frame: _end(number))


def _stop(number: int, frame: FrameType | None) -> None:
    """Ends the command by an exception, so that nothing half-written is left; within an import at once."""
    files = sys.modules.get("emu.files")
    if _is_importing(frame) and not (files and getattr(files, "unfinished", bool)()):
        _end(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _end(number: int) -> NoReturn:
    os.write(2, f"Error: {_SAID[signal.Signals(number)]}.\n".encode())
    os._exit(128 + number)


if __name__ == "__main__":
    main()
