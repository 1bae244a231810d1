"""The command line, `motion-lora`: the library's work from a shell.

Exit status: 0 done, 2 a mistake in what was asked for (exactly one line on stderr says which), 130 interrupted.
Heavy imports happen inside the commands, so that help and mistakes in flags are answered at once.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from ...core.errors import MotionLoRAError, is_out_of_memory
from ...core.surroundings import way_out_of
from .console import leave_closed_pipe, one_line, prepare_streams, quiet_libraries
from .interrupt import StoppedError

OK, USER_ERROR, INTERRUPTED = 0, 2, 130

# In the order of the help; each module of this package has `add(commands)`, which adds its parsers.
COMMANDS = (
    "demo",
    "train",
    "sample",
    "compare",
    "score",
    "invert",
    "inspect",
    "files",
    "methods",
    "targets",
    "playground",
    "bench",
)

_OUT_OF_MEMORY = (
    "It ran out of memory; lower the size or the number of frames, use --dtype bf16, or another --device; see --help."
)
_DESCRIPTION = """\
Take the motion out of a video clip as a LoRA of a text-to-video model, and put it into new videos.

  motion-lora demo                      the whole job on the built-in model, results in out/demo/
  motion-lora train --help              train a motion LoRA on your own clip
  motion-lora sample --help             make videos with motion LoRAs
"""


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is answered by one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: {one_line(message)} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The complete parser with all commands."""
    parser = Parser(prog="motion-lora", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verbose", action="store_true", help="show logs and warnings")
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f".{name}", __package__).add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        options = build_parser().parse_args(arguments)
    except SystemExit as leaving:
        return int(leaving.code or 0)
    prepare_streams()
    quiet_libraries(options.verbose)
    try:
        status: int = options.run(options)
    except BrokenPipeError:
        leave_closed_pipe()
        return OK
    except (MotionLoRAError, OSError) as error:
        return _complain(options.command, _explain(error), USER_ERROR)
    except ImportError as error:
        return _complain(options.command, way_out_of(error), USER_ERROR)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return _complain(options.command, _OUT_OF_MEMORY, USER_ERROR)
    except StoppedError as stopped:
        return _complain(options.command, str(stopped), INTERRUPTED)
    except KeyboardInterrupt:
        return _complain(options.command, "Interrupted.", INTERRUPTED)
    return status


def _explain(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _complain(command: str, message: str, status: int) -> int:
    sys.stderr.write(f"motion-lora {command}: {one_line(message)}\n")
    return status
