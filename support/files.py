"""Files: what is read, what an output may replace, atomic writes, locks, progress bars, and errors that name a file."""

import errno
import fcntl
import gzip
import io
import json
import mmap
import os
import re
import secrets
import shutil
import stat
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from configs import UserError


def reject_device(f, name):
    """Raises UserError if an open file never ends, as /dev/zero. A terminal does, and so does /dev/null."""
    with suppress(io.UnsupportedOperation):  # of a stream in memory
        found = os.fstat(f.fileno())
        is_device = stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)
        if is_device and not f.isatty() and found.st_rdev != os.stat(os.devnull).st_rdev:
            raise UserError(f"{name} is a device, not a file")


def read_bytes(path):
    """The content of a file, or what the pipe of a shell gives, as in <(zcat x.gz).

    Raises: UserError for a device or a pipe in the place of a file: reading all of it might never end.
    """
    if stat.S_ISFIFO(os.stat(path).st_mode) and os.path.exists(os.path.realpath(path)):
        raise UserError(f"{path} is a pipe, not a file")
    with open(path, "rb") as f:
        reject_device(f, path)
        return f.read()


def read_utf8(path, bom=""):
    """The text of a file (of a .gz what is in it), line ends as they are; but CR is LF in a file that has no LF.

    Args: bom: what to have in the place of a byte order mark; offsets of brat count it. With it each CR stays, too.
    Raises: UserError naming the row of bad UTF-8, or what cannot be read.
    """
    try:
        content = read_bytes(path)
        content = gzip.decompress(content) if Path(path).suffix == ".gz" else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise UserError(f"{path}: cannot be read ({e}); copy or download it again") from None
    if not bom and b"\n" not in content:
        content = content.replace(b"\r", b"\n")
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
        content = json.loads(read_bytes(path).decode())
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


# ---------------------------------------------------------------- what an output may replace


def check_output(path, form, *inputs):
    """Raises UserError if an output would replace an input, a file that this program did not write, or a folder of one.

    Args:
        form: how ours are recognised. Of a file, a regular expression that its beginning matches. Of a folder, {name:
            such an expression, or None} of all files that it may hold, one of which must match.
        inputs: files and folders; 0 is standard input. A file must not be in one, a folder must not hold one.
    """
    is_folder, real = isinstance(form, dict), Path(os.path.realpath(path))
    if not is_folder and is_stream(path):
        return
    for source in inputs:
        place = Path(os.path.realpath(source)) if source else None
        if is_same_file(path, source) or real == place:
            raise UserError(f"{path} is the input, which would be replaced; choose another name")
        if source and (place.is_relative_to(real) if is_folder else real.is_relative_to(place)):
            raise UserError(f"{path} {'holds' if is_folder else 'is in'} the input {source}; choose another place")
    if is_folder and real.is_dir():
        if Path.cwd().is_relative_to(real) or os.path.ismount(real):
            raise UserError(f"{path} cannot be replaced as a whole; name a folder in it")
        found = sorted(real.iterdir())
        foreign = [p for p in found if p.name not in form or not p.is_file()]
        if not foreign and not any(form[p.name] and begins_with(p, form[p.name]) for p in found):
            foreign = found
        if foreign and not form:
            raise UserError(f"{path} is not an empty folder; choose another place")
        if foreign:
            what = f"{path} holds {foreign[0].name}, which this command did not write"
            raise UserError(f"{what}; move it away, or choose another place")
    elif real.exists() and (is_folder or (real.stat().st_size and not begins_with(real, form))):
        raise UserError(f"{path} is not an output of this command; move it away, or choose another name")


def check_output_file(path, form, *inputs):
    """check_output of a file whose folder must be there; raises UserError too if it cannot be written."""
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder; give the name of a file")
    if not Path(path).parent.is_dir():
        raise UserError(f"{Path(path).parent} is not a folder")
    check_output(path, form, *inputs)


def begins_with(path, form):
    """Whether the beginning of a file matches a regular expression; False if there is nothing in it."""
    if not path.stat().st_size:
        return False
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return bool(re.match(form, content))


def is_same_file(path, other):
    """Whether two paths, or a path and a descriptor, are one file; False if one of them is not there."""
    with suppress(OSError):
        return os.path.samefile(path, other)
    return False


def is_stream(path):
    """Whether a path is written to, not replaced: standard output by another name, a pipe or a device."""
    return is_same_file(path, 1) or (os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path))


# ---------------------------------------------------------------- written whole or not at all


def write_json(path, content):
    """Writes a JSON file atomically, with replacement characters for what is not Unicode in the names of files."""
    text = to_json(content, indent=1, ensure_ascii=False) + "\n"
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    write_atomic(path, lambda f: f.write(text.encode()))


def write_atomic(path, write, previous=None):
    """Calls write(file) on a file beside `path`, flushes it to disk, then renames it to `path`; links are followed.

    Args: previous: where the file that is replaced is kept. Raises: UserError if it cannot be written. What may be
    replaced is checked before, by check_output.
    """
    with errors_named(path):
        if is_stream(path):
            with open(1, "wb", closefd=False) if is_same_file(path, 1) else open(path, "wb") as f:
                return write(f)
        path = Path(os.path.realpath(path))
        with made_beside(path) as (new, number):
            with open(number, "wb", closefd=False) as f:
                write(f)
                f.flush()
                os.fsync(number)
            if previous and path.exists():
                path.replace(previous)
            new.replace(path)


@contextmanager
def atomic_directory(out, form):
    """A new folder beside `out` to write to, which takes the place of `out` if all went well.

    What a killed process left behind is put right. Where `out` is a symbolic link it stays one, and the folder that it
    names is replaced. Args: form: of what may be replaced, as in check_output. Raises: UserError.
    """
    real = Path(os.path.realpath(out))
    with errors_named(out), made_folder(real.parent):
        put_right(real)
        check_output(out, form)
        with made_beside(real, is_folder=True) as (new, _):
            try:
                yield new
            except UserError as e:  # of a file in it, which the user knows by the name that it was to have
                raise UserError(str(e).replace(str(new), str(out))) from None
            check_output(out, form)
            try:
                exchange(new, real)
            finally:
                put_right(real)


def exchange(new, out):
    """Renames a folder to `out` and what is there to a name of its own. Of several processes the last one wins."""
    while True:
        with suppress(FileNotFoundError):
            out.rename(name_beside(out, "old"))
        try:
            return new.rename(out)
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # these: another process was faster
                raise


def put_right(out):
    """Removes the folders that were replaced, or puts the last one back if a process was killed within `exchange`."""
    replaced = left_beside(out, "old")
    with suppress(OSError):  # another process does the same
        if replaced and not out.exists():
            max(replaced, key=lambda folder: folder.stat().st_mtime).rename(out)
    if out.exists():
        for folder in replaced:
            shutil.rmtree(folder, ignore_errors=True)


def name_beside(path, end):
    """A hidden name that is no one else's: .<name>.<8 digits>.<end>"""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{end}")


def left_beside(path, end):
    """The files or folders of such names."""
    names = re.compile(re.escape(f".{path.name}.") + rf"[0-9a-f]{{8}}\.{end}")
    return [path.with_name(name) for name in os.listdir(path.parent) if names.fullmatch(name)]


@contextmanager
def made_beside(path, is_folder=False):
    """A new file or folder beside `path`: (its path, its descriptor). It is removed in the end, if it was not renamed.

    It is locked as long as this process lives. Those of killed processes are not, and are removed here. On a file
    system without locks, as some clusters have, they stay.
    """
    for left in left_beside(path, "tmp"):
        with suppress(OSError):
            lock = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(left)
            finally:
                os.close(lock)
    new = name_beside(path, "new")
    if is_folder:
        new.mkdir()
    number = os.open(new, os.O_RDONLY if is_folder else os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with suppress(OSError):
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new = new.rename(new.with_suffix(".tmp"))  # only now: under this name it would be removed without its lock
        yield new, number
    finally:
        remove(new)
        os.close(number)


def remove(path):
    """Removes a file or folder that may be there."""
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def append_line(path, line):
    """Adds bytes to a file, all or none of them. Raises: UserError."""
    with errors_named(path), open(path, "ab", buffering=0) as f:
        size = f.tell()
        try:
            write_all(f, line, f"{path}:")
        except UserError:
            f.truncate(size)
            if not size:
                os.unlink(path)
            raise


@contextmanager
def errors_named(path):
    """Has a file that cannot be written end in a UserError that names it. An error that names an input stays."""
    try:
        yield
    except BrokenPipeError:  # `| head` has seen enough
        raise
    except (OSError, RuntimeError) as e:
        if isinstance(e, RuntimeError) and not re.search("unexpected pos|PytorchStreamWriter", str(e)):
            raise  # torch.save has these for a full disk
        if isinstance(named := getattr(e, "filename", None), str | os.PathLike) and not is_part_of(named, path):
            raise
        why = getattr(e, "strerror", None) or f"is the disk full? ({e})"
        raise UserError(f"{path}: cannot be written: {why}") from None


def is_part_of(path, out):
    """Whether a path is an output, beside it under a name of its own (name_beside), in either, or a folder of it."""
    path, out = (Path(os.path.realpath(x)) for x in (path, out))
    is_beside = any(p.parent == out.parent and p.name.startswith(f".{out.name}.") for p in (path, *path.parents))
    return is_beside or path.is_relative_to(out) or out.is_relative_to(path)


@contextmanager
def made_folder(folder):
    """Makes a folder and those above it. If the block fails, those of them that are empty are removed again."""
    made = []  # by this process: of two that begin at once, only one may remove them
    try:
        for place in (*reversed(folder.parents), folder):
            try:
                place.mkdir()
                made.append(place)
            except OSError:
                if not place.is_dir():
                    raise
        yield
    except BaseException:
        for place in reversed(made):
            with suppress(OSError):
                place.rmdir()
        raise


@contextmanager
def folder_lock(folder, message):
    """Keeps other processes out of a folder; the system frees the lock when this process ends, however it does.

    Raises: UserError with the message if another process holds it.
    """
    with made_folder(folder):
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


# ---------------------------------------------------------------- names, progress bars, streams


def name_of(path):
    """The name of a file or folder; a symbolic link keeps its own."""
    return os.path.basename(os.path.abspath(path))


def progress(what, total, unit=""):
    """A tqdm bar on a terminal, nothing elsewhere. total: a number, None if unknown, or something to iterate over."""
    options = {"desc": what, "disable": None, "leave": False, "dynamic_ncols": True}
    if total is None or isinstance(total, int):
        return tqdm(total=total, unit=unit or "it", unit_scale=True, **options)
    return tqdm(total, **options)


def write_all(f, content, name="standard output"):
    """Writes bytes to a raw file, which may take fewer at a time than it is given. Raises: UserError with the name."""
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
        raise UserError(f"{name} cannot be written: {e.strerror}") from None


def reject_lfs_pointer(path):
    """Raises UserError if Git LFS left a pointer in the place of the file."""
    path = Path(path)
    if path.is_file() and path.stat().st_size < 1000 and read_bytes(path).startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS, not the file: run 'git lfs pull' there")
