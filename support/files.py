"""Files and messages: atomic writes, UTF-8, progress bars, and errors for users."""

import contextlib
import errno
import fcntl
import gzip
import json
import mmap
import os
import re
import shutil
import sys
import time
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from tqdm import tqdm

import configs
from configs import UserError


def read_utf8(path, bom=""):
    """The text of a file (of a .gz what is in it), line ends as they are.

    Args: bom: what to have in the place of a byte order mark; offsets of brat count it.
    Raises: UserError naming the row of bad UTF-8, or what cannot be read.
    """
    try:
        content = Path(path).read_bytes()
        content = gzip.decompress(content) if Path(path).suffix == ".gz" else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise UserError(f"{path}: cannot be read ({e}); copy or download it again") from None
    try:
        text = content.decode("utf-8")
        return bom + text[1:] if text[:1] == "\ufeff" else text
    except UnicodeDecodeError as e:
        row = content[: e.start].count(b"\n") + 1
        raise UserError(f"{path}, row {row}: not UTF-8; convert the file") from None


def read_json(path, kind=dict):
    """The object in a JSON file, or the list where kind is list; empty if there is no such file. Raises: UserError."""
    try:
        reject_lfs_pointer(path)
        content = json.loads(Path(path).read_bytes().decode("utf-8"))
        if type(content) is not kind:
            raise ValueError("not an object" if kind is dict else "not a list")
        return content
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path}: cannot be read as JSON: {e}") from None


def to_json(content, **options):
    """JSON text, with null for a number that is not finite: JSON has none, though json.loads lets NaN in.

    The rest of a record is worth keeping, and nobody can say which number was meant. Raises: UserError if it is nested
    too deep.
    """
    try:
        return json.dumps(content, allow_nan=False, **options)
    except ValueError:
        finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
        return json.dumps(finite, allow_nan=False, **options)
    except RecursionError:
        raise UserError("a JSON object is nested too deep to be written") from None


def write_json(path, content):
    """Writes a JSON file atomically, with replacement characters for what is not Unicode in the names of files."""
    text = to_json(content, indent=1, ensure_ascii=False) + "\n"
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    write_atomic(path, lambda f: f.write(text.encode()))


def write_atomic(path, write):
    """Calls write(file) on a file beside `path`, flushes it to disk, then renames it to `path`; links are followed."""
    path = Path(os.path.realpath(path)) if Path(path).is_symlink() else Path(path)
    beside = path.with_name(path.name + ".tmp")
    try:
        if path.is_char_device() or path.is_fifo():  # such as /dev/null: written to, not replaced
            with open(path, "wb") as f:
                return write(f)
        with open(beside, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, path)
    except (OSError, RuntimeError) as e:  # torch.save wraps a full disk in a RuntimeError
        beside.unlink(missing_ok=True)
        why = getattr(e, "strerror", None) or f"is the disk full? ({e})"
        raise UserError(f"{path}: cannot be written: {why}") from None
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_directory(out, parent_is_locked=False):
    """A new folder beside `out` to write to, which takes the place of `out` if all went well.

    Another process that replaces a folder there waits for this one. What a killed process left behind is put right.
    Where `out` is a symbolic link it stays one, and the folder that it names is replaced.

    Args: parent_is_locked: whether the caller holds the folder_lock of the folder that `out` is in.
    """
    out = Path(os.path.realpath(out)) if out.is_symlink() else out
    new, old = (out.with_name(f".{out.name}.{what}") for what in ("building", "old"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(out.parent, os.O_RDONLY)
        try:
            if not parent_is_locked:
                fcntl.flock(lock, fcntl.LOCK_EX)
            if old.exists() and not out.exists():  # killed between the two renames below
                old.rename(out)
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            yield new
            shutil.rmtree(old, ignore_errors=True)
            if out.exists():
                out.rename(old)
            new.rename(out)
        finally:
            if old.exists() and not out.exists():
                old.rename(out)
            for folder in (new, old):
                shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
    except OSError as e:
        raise UserError(f"{out}: cannot be written: {e.strerror or e}") from None


@contextmanager
def folder_lock(folder, message):
    """Keeps other processes out of a folder; the system frees the lock when this process ends, however it does.

    Raises: UserError with the message if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: {message}") from None
        except OSError:  # a file system without locks, as some clusters have
            pass
        yield
    finally:
        os.close(lock)


def name_of(path):
    """The name of a file or folder; a symbolic link keeps its own."""
    return os.path.basename(os.path.abspath(path))


def progress(what, total, unit=""):
    """A tqdm bar on a terminal, nothing elsewhere. total: a number, None if unknown, or something to iterate over."""
    options = {"desc": what, "disable": None, "leave": False, "dynamic_ncols": True}
    if total is None or isinstance(total, int):
        return tqdm(total=total, unit=unit or "it", unit_scale=True, **options)
    return tqdm(total, **options)


def memory_map(path):
    """A file mapped into memory, as pyarrow reads it; of pyarrow's own the path would have to be UTF-8."""
    with open(path, "rb") as f:
        return pa.BufferReader(pa.py_buffer(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)))


def check_output_file(path, source=""):
    """Raises UserError for a file that cannot be written, or that is the input `source` and would be replaced."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is not a folder")
    if source and path.resolve() == Path(source).resolve():
        raise UserError(f"{path} is the input, which would be replaced; choose another name")


def standard_output():
    """Standard output for bytes, without a buffer: nothing waits in it when the disk is full."""
    return getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)


def write_all(f, content):
    """Writes bytes to a raw file, which may take fewer at a time than it is given. Raises: UserError."""
    content = memoryview(content).cast("B")
    try:
        while len(content):
            n_taken = f.write(content)
            if not n_taken:
                raise OSError(errno.EAGAIN, "it takes no more")
            content = content[n_taken:]
    except BrokenPipeError:
        raise
    except OSError as e:
        raise UserError(f"standard output cannot be written: {e.strerror}") from None


def reject_lfs_pointer(path):
    """Raises UserError if Git LFS left a pointer in the place of the file."""
    if Path(path).stat().st_size < 1000 and Path(path).read_bytes().startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS, not the file: run 'git lfs pull' there")


class Launch(NamedTuple):
    """This process among those of a run, and among those of the run on this machine."""

    rank: int
    world: int
    local_rank: int
    local_world: int


def read_launch():
    """The Launch that torchrun or configs/slurm.sh has put into the environment; without them this process is alone.

    Raises: UserError naming the variable.
    """
    values = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        text = os.environ.get(name)
        if text is not None and not re.fullmatch("[0-9]{1,6}", text):
            raise UserError(f"{name} = '{text}' in the environment is not a number; unset it, or start with torchrun")
        values[name] = None if text is None else int(text)
    rank, world, local_rank, local_world = values.values()
    rank, world, local_rank = rank or 0, 1 if world is None else world, local_rank or 0
    local_world = local_rank + 1 if local_world is None else local_world
    for name, value, of, n in (
        ("", rank, "WORLD_SIZE", world),
        ("LOCAL_", local_rank, "LOCAL_WORLD_SIZE", local_world),
    ):
        if value >= n:
            raise UserError(f"{name}RANK = {value} in the environment is not below {of} = {n}; start with torchrun")
    return Launch(rank, world, local_rank, local_world)


def is_first_here():
    """Whether this process is the first on its machine, as one is whose environment is wrong."""
    try:
        return read_launch().local_rank == 0
    except UserError:
        return True


def end_process(status):
    """Ends as sys.exit does, with a line on stderr and 1, or a number, but takes no threads down.

    Those of pyarrow, just begun, aborted the process now and then, with a line of their own after the error.
    """
    if isinstance(status, str) and sys.stderr:
        print(status, file=sys.stderr)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(1 if isinstance(status, str) else status or 0)


def run_command(doc, commands, default=None):
    """Runs a program: a UserError becomes one line on stderr (from the first rank of each node) and exit status 1.

    torchrun ends with a long report of its own. Each rank leaves the line in a file that this report shows last.

    Args: doc, commands, default: as in configs.parse.
    """
    if sys.stdout:  # a terminal or locale that lacks a letter, or a file name that is not UTF-8, ends no command
        sys.stdout.reconfigure(errors="replace")
    try:
        function, settings = configs.parse(sys.argv[1:], doc, commands, default)
        function(settings)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (UserError, OSError, SystemExit) as e:  # OSError: a disk that is full, a folder that may not be written to
        reason = getattr(e, "strerror", None) or e
        if getattr(e, "filename", None):
            reason = f"{e.filename}: {reason}"
        line = e.code if isinstance(e, SystemExit) else f"{Path(sys.argv[0]).name}: error: {reason}"
        report = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if report and isinstance(line, str):
            message = {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}
            with contextlib.suppress(OSError):
                Path(report).write_text(json.dumps({"message": message}))
        end_process(line if is_first_here() or isinstance(e, SystemExit) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
