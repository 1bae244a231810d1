"""What the command line shows: results on stdout, everything else on stderr, a progress bar for long work."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from ...media.tables import aligned

_TERMINAL_INTERVAL = 0.2
_LOG_INTERVAL = 15.0


def write(text: str = "") -> None:
    """A line of result on stdout."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def write_json(value: Any) -> None:
    """A result for programs: one JSON document on stdout."""
    write(json.dumps(value, indent=2))


def note(text: str) -> None:
    """A line about what is going on, on stderr; stays out of the way of a progress bar."""
    tqdm.write(text, file=sys.stderr)


def one_line(text: object) -> str:
    """Any message as a single line: libraries like to add paragraphs."""
    return " ".join(str(text).split())


def write_table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> None:
    """Columns aligned by spaces; numbers to the right."""
    for line in aligned(rows, header):
        write(line)


def prepare_streams() -> None:
    """A caption in another script must not stop a command on a console that cannot show it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def leave_closed_pipe() -> None:
    """The reader of our output has gone, as `head` does; nothing more can be written, not even at exit."""
    sys.stdout = io.TextIOWrapper(io.BytesIO())


def quiet_libraries(verbose: bool) -> None:
    """Our own log on stderr; warnings and progress bars of the libraries below only when asked for."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("motion_lora").setLevel(logging.INFO if verbose else logging.WARNING)
    if not verbose:
        warnings.simplefilter("ignore")
        for name in ("diffusers", "transformers", "huggingface_hub", "peft"):
            logging.getLogger(name).setLevel(logging.ERROR)


class Progress:
    """A bar per stage with loss, speed and time left. `update` may be called for any stage in turn."""

    def __init__(self, *, hidden: bool = False) -> None:
        self._hidden = hidden
        self._stage = ""
        self._bar: Any = None
        self._began = time.monotonic()

    def update(self, stage: str, step: int, total: int, loss: float | None = None) -> None:
        """`step` of `total` steps of `stage` are done."""
        if stage != self._stage or self._bar is None:
            self.close()
            self._stage = stage
            self._bar = self._open(stage, step - 1, total)
        if loss is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """End the bar that is shown; the next update opens another."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _open(self, stage: str, done: int, total: int) -> Any:
        interval = _TERMINAL_INTERVAL if sys.stderr.isatty() else _LOG_INTERVAL
        return tqdm(
            desc=stage.ljust(18),
            initial=max(done, 0),
            total=total,
            file=sys.stderr,
            mininterval=interval,
            maxinterval=max(interval, 10.0),
            disable=self._hidden,
            dynamic_ncols=True,
            unit="step",
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()
