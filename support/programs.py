"""How a command runs and ends: its arguments, its place among the processes of a run, one line for an error."""

import errno
import json
import os
import re
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import configs
from configs import UserError, command_line
from support.files import check_output_file, write_all, write_atomic


class Launch(NamedTuple):
    """This process among those of a run, and among those of the run on this machine."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def read_launch():
    """The Launch that torchrun or configs/slurm.sh put into the environment, else of one process. Raises: UserError."""

    def read(name, default):
        text = os.environ.get(name, str(default))
        if not re.fullmatch("[0-9]{1,6}", text):
            raise UserError(f"{name} = '{text}' in the environment is no number from 0 on; unset it, or use torchrun")
        return int(text)

    rank, world_size, local_rank = read("RANK", 0), read("WORLD_SIZE", 1), read("LOCAL_RANK", 0)
    launch = Launch(rank, world_size, local_rank, read("LOCAL_WORLD_SIZE", local_rank + 1))
    for name, value, n in (("", rank, world_size), ("LOCAL_", local_rank, launch.local_world_size)):
        if value >= n:
            what = f"{name}RANK = {value} in the environment is not below {name}WORLD_SIZE = {n}"
            raise UserError(f"{what}; start with torchrun")
    return launch


def is_first_here():
    """Whether this process is the first on its machine, as one is whose environment is wrong."""
    try:
        return read_launch().local_rank == 0
    except UserError:
        return True


def standard_output():
    """Standard output for bytes, without a buffer: nothing waits in it when the disk is full."""
    return getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)


def check_destination(out, form, *inputs):
    """Raises UserError if write_output cannot write, or would replace another file than ours; as check_output_file."""
    if out:
        check_output_file(out, form, *inputs)
    elif not sys.stdout:
        raise UserError("standard output is closed; give --out")


def write_output(out, content):
    """Writes bytes to a file, whole or not at all, or to standard output if `out` is ""."""
    write_chunks(out, [content])


def write_chunks(out, chunks):
    """Writes chunks of bytes as write_output does, with one of them in memory at a time."""
    if out:
        write_atomic(out, lambda f: f.writelines(chunks))
        return
    for chunk in chunks:
        write_all(standard_output(), chunk)


def end_process(status):
    """Ends as sys.exit does, with a line on stderr and 1, or a number, but takes no threads down.

    Those of pyarrow, just begun, aborted the process now and then, with a line of their own after the error.
    """
    if isinstance(status, str) and sys.stderr:
        print(status, file=sys.stderr)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with suppress(OSError):
            stream.flush()
    os._exit(1 if isinstance(status, str) else status or 0)


def is_out_of_memory(error):
    """Whether an exception says that memory ran out; torch.OutOfMemoryError is a RuntimeError."""
    said = isinstance(error, RuntimeError) and re.search("out of memory|allocate memory|ALLOC_FAILED", str(error))
    return isinstance(error, MemoryError) or bool(said)


def out_of_memory_message(error):
    """One line about it, with the beginning of what the allocator says."""
    said = ". ".join((str(error).splitlines() or [""])[0].split(". ")[:2])
    advice = "end other programs that use this memory, or give a smaller batch, a smaller model or --device cpu"
    return f"out of memory: {advice}" + f" ({said})" * bool(said)


def run_command(doc, commands, default=None):
    """Runs a program: a UserError becomes one line on stderr (from the first rank of each node) and exit status 1.

    torchrun ends with a long report of its own. Each rank leaves the line in a file that this report shows last.

    Args: doc, commands, default: as in command_line.parse.
    """
    if sys.stdout:  # a terminal or locale that lacks a letter, or a file name that is not UTF-8, ends no command
        sys.stdout.reconfigure(errors="replace")
    if sys.stderr:
        sys.stderr.reconfigure(errors="replace")
    try:
        if signal.getsignal(signal.SIGINT) is configs.end_quietly:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        function, settings = command_line.parse(sys.argv[1:], doc, commands, default)
        function(settings)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (UserError, OSError, SystemExit, RuntimeError, MemoryError) as e:  # OSError: such as a disk that is full
        if isinstance(e, RuntimeError | MemoryError):
            if not is_out_of_memory(e):
                raise
            e = SystemExit(f"{configs.program_name()}: error: {out_of_memory_message(e)}")  # of any rank
        reason = getattr(e, "strerror", None) or e
        if getattr(e, "filename", None):
            reason = f"{e.filename}: {reason}"
        elif getattr(e, "errno", None) == errno.ENOSPC:  # of print: writers name their file
            reason = f"standard output cannot be written: {reason}"
        line = e.code if isinstance(e, SystemExit) else f"{configs.program_name()}: error: {reason}"
        report = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if report and isinstance(line, str):
            message = {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}
            with suppress(OSError):
                Path(report).write_text(json.dumps({"message": message}))
        end_process(line if is_first_here() or isinstance(e, SystemExit) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
