"""Where the files of a UMLS release are: in a folder, in a zip as it was downloaded, or in the .nlm files of one.

Members of a zip are read as streams, and nothing is unpacked. A release is where one of MRCONSO, MRREL and MRSTY is.
Its files may be compressed (NAME.RRF.gz) or cut in parts (NAME.RRF.aa, NAME.RRF.ab.gz), as they are in .nlm files.

    for part in find_rrf("umls-2026AA-metathesaurus-full.zip", "MRREL"): ...
"""

import gzip
import io
import itertools
import lzma
import re
import string
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from configs import UserError

TABLES = {"MRCONSO", "MRREL", "MRSTY"}
FILE_NAME = re.compile(r"([a-z0-9]+)\.rrf(?:\.(?!gz$)([a-z]{2}))?(\.gz)?", re.I)  # (table, letters of a part, .gz)
MAX_RATIO, MIN_LIMIT = 100, 64 << 20  # releases inflate up to ten times; of the first 64 MB there is no limit
BROKEN = zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, struct.error, ValueError, OSError


class Part(NamedTuple):
    """A file of a release or a part of it, on disk or in a zip; or a zip in a zip."""

    name: str  # of the file alone
    shown: str  # its whole name for messages: "X.zip: 2026AA/META/MRREL.RRF"
    container: str  # the folder or zip that all files of the release are in
    folder: str  # in the container
    disk_file: Path  # the file on disk that it is, or is in
    n_bytes: int  # its size; of a .gz that of the .gz
    n_packed: int  # the bytes that it takes on disk
    crc: int | None  # of a member of a zip
    open: Callable  # gives a context manager of its bytes, as a binary file

    def __str__(self):
        return self.shown

    @property
    def table(self):
        """MRREL of MRREL.RRF.aa.gz; "" of a zip."""
        found = FILE_NAME.fullmatch(self.name)
        return found[1].upper() if found else ""

    @property
    def release(self):
        """(container, folder) of its release: the folder that holds META, or the files themselves."""
        return self.container, re.sub("(^|/)META$", "", self.folder, flags=re.I)

    def chunks(self, size):
        """Yields (bytes of the file, `size` at a time, how many of its n_bytes they took). Raises: UserError."""
        is_gz, n_read, position = self.name.lower().endswith(".gz"), 0, 0
        with errors_explained(self), self.open() as raw, gzip.open(raw) if is_gz else raw as f:
            while chunk := f.read(size):
                n_read, before, position = n_read + len(chunk), position, raw.tell()
                if n_read > MIN_LIMIT + MAX_RATIO * min(position, self.n_packed):
                    raise UserError(f"{self} {TOO_LARGE}")
                yield chunk, position - before
        if not is_gz and n_read != self.n_bytes:
            message = f"{self}: {n_read:,} bytes instead of the stated {self.n_bytes:,}"
            raise UserError(f"{message}; copy or download it again")


TOO_LARGE = f"inflates to more than {MAX_RATIO} times its size; this is no file of a release"


@contextmanager
def errors_explained(name):
    """Turns every error of a damaged or unusual archive into a UserError of one line."""
    try:
        yield
    except (*BROKEN, RuntimeError) as e:
        # RuntimeError: a password is needed, or Python lacks the method of compression.
        if "is encrypted" in str(e):
            raise UserError(f"{name}: it is encrypted; unpack the archive with its password") from None
        advice = "unpack it with another program" if isinstance(e, RuntimeError) else "copy or download it again"
        raise UserError(f"{name}: cannot be read ({printable(e)}); {advice}") from None


def printable(text):
    """A name or message from an archive, without control characters and not longer than 200."""
    return "".join(c for c in str(text) if c.isprintable())[-200:]


# ---------------------------------------------------------------- files and members


def file_part(path, top):
    """The Part of a file on disk, in the folder `top` or below it; or it is `top`."""
    size, folder = path.stat().st_size, "/".join(path.relative_to(top).parts[:-1])
    return Part(path.name, str(path), str(top), folder, path, size, size, None, partial(open, path, "rb"))


def read_directory(archive):
    """The Parts of RRF files in a zip, and of the zips and .nlm files in it. Raises: UserError.

    archive: the Part of the zip. The .nlm files of a folder, or of a zip, share the release that they hold.
    """
    with errors_explained(archive), archive.open() as raw:
        if not zipfile.is_zipfile(raw):
            advice = "give the folder or zip of a UMLS release, or download it again"
            raise UserError(f"{archive}: this is not a zip, or its end is missing; {advice}")
        with zipfile.ZipFile(raw) as directory:
            infos = directory.infolist()
    parts, container = [], archive.container if archive.name.lower().endswith(".nlm") else str(archive)
    for info in infos:
        path = info.filename.replace("\\", "/")
        folder, _, name = path.rpartition("/")
        if "__MACOSX" in folder.split("/") or not (FILE_NAME.fullmatch(name) or is_archive(name)):
            continue  # macOS adds a file of the same name there, or beginning with ._
        opener = partial(open_stored if is_archive(name) else open_member, archive, info)
        n_packed = min(info.compress_size, archive.n_packed)  # more may be stated
        about = archive.disk_file, info.file_size, n_packed, info.CRC, opener
        parts.append(Part(name, f"{archive}: {printable(path)}", container, folder, *about))
        if info.file_size > max(MIN_LIMIT, MAX_RATIO * n_packed):
            raise UserError(f"{parts[-1]} {TOO_LARGE}")
    return parts


def is_archive(name):
    """Whether a file name is that of a zip; .nlm files are zips too."""
    return name.lower().endswith((".zip", ".nlm")) and not name.startswith("._")


@contextmanager
def open_member(archive, info):
    """The bytes of a member of a zip. info: its ZipInfo."""
    with archive.open() as raw, zipfile.ZipFile(raw) as z, z.open(info) as f:
        yield f


@contextmanager
def open_stored(archive, info):
    """The bytes of a zip in a zip, where they are. Raises: UserError if it is compressed there."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise UserError(f"{archive}: {printable(info.filename)} is compressed in it; unpack the outer zip")
    with archive.open() as raw, zipfile.ZipFile(raw) as z, z.open(info):  # which checks its header
        raw.seek(info.header_offset + 26)
        n_name, n_extra = struct.unpack("<HH", raw.read(4))
        yield io.BufferedReader(Slice(raw, info.header_offset + 30 + n_name + n_extra, info.file_size))


class Slice(io.RawIOBase):
    """A range of the bytes of a file, as a file."""

    def __init__(self, file, offset, size):
        self.file, self.offset, self.size, self.position = file, offset, size, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, n, whence=io.SEEK_SET):
        self.position = n + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        if self.position < 0:
            raise OSError("an offset before the beginning of the file")
        return self.position

    def readinto(self, buffer):
        self.file.seek(self.offset + self.position)
        n = self.file.readinto(memoryview(buffer)[: max(0, self.size - self.position)])
        self.position += n
        return n


# ---------------------------------------------------------------- the release in a place


def find_release(umls):
    """The Parts of the release in a folder or zip, [] if there is none. Raises: UserError if there are several.

    The first of these places that holds a release is taken: the folder itself and its META, then folders and archives
    in it, then archives within archives.
    """
    top = Path(umls)
    paths = [top] if top.is_file() else sorted([*top.glob("*"), *top.glob("*/*"), *top.glob("*/META/*")])
    paths = [path for path in paths if FILE_NAME.fullmatch(path.name) or is_archive(path.name) or path == top]
    files = [file_part(path, top) for path in paths if path.is_file()]
    parts = [part for part in files if part.table]
    releases = group_by_release(parts)
    if own := releases.get((str(top), "")):
        return own
    members = [m for part in files if not part.table and not part.folder for m in read_directory(part)]
    parts += members
    if not (releases := group_by_release(parts)):
        inner = [part for part in members if not part.table]
        inner = [part for part in inner if part.name.lower().endswith(".nlm")] or inner  # without the mmsys.zip beside
        parts += [m for part in inner for m in read_directory(part)]
        releases = group_by_release(parts)
    if not releases and any(part.table == "RXNCONSO" for part in parts):
        raise UserError(f"{umls} is RxNorm, which has no CUIs; take a UMLS release, which has RXNORM among its sources")
    if len(releases) > 1:
        names = sorted(": ".join(filter(None, (place, printable(folder)))) for place, folder in releases)
        raise UserError(f"{umls} holds several releases ({'; '.join(names)}); give one by its path, or unpack it")
    return next(iter(releases.values()), [])


def group_by_release(parts):
    """{Part.release: its Parts} of those that hold one of TABLES. Raises: UserError if a file is there twice."""
    releases, seen = {}, {}
    for part in parts:
        releases.setdefault(part.release, []).append(part)
    found = {key: group for key, group in releases.items() if TABLES & {part.table for part in group}}
    for part in itertools.chain(*found.values()):
        other = seen.setdefault((part.container, part.folder, part.name.lower()), part)
        if other is not part and part.table:
            raise UserError(f"{part} is there twice ({other}); remove one of them")
    return found


def find_rrf(umls, name, folder=None):
    """The Parts of a file of a release: of NAME.RRF, NAME.RRF.gz, or NAME.RRF.aa and so on; [] if it is not there.

    folder: that of another Part, to find only files beside it. Raises: UserError, also if a part is missing.
    """
    release = find_release(umls)
    for place in sorted({part.folder for part in release}) if folder is None else [folder]:
        found = [part for part in release if part.table == name and part.folder == place]
        # A plain file is preferred to the same as .gz.
        found = {FILE_NAME.fullmatch(part.name)[2]: part for part in sorted(found, key=lambda p: -len(p.name))}
        if None in found:
            return [found[None]]
        if found:
            found = {letters.lower(): part for letters, part in found.items()}
            expected = map("".join, itertools.product(string.ascii_lowercase, repeat=2))
            for letters, _ in zip(expected, found):
                if letters not in found:
                    what = f"{found[min(found)]}: part {letters} is missing, of {' '.join(sorted(found))}"
                    raise UserError(f"{what}; copy or download the parts again")
            return [found[letters] for letters in sorted(found)]
    return []


def read_whole(parts):
    """The bytes of a small file."""
    return b"".join(chunk for part in parts for chunk, _ in part.chunks(1 << 20))


def describe_release(umls):
    """For the manifest: the name of a release, from MRDOC or else its folder in the zip, and the names of its zips."""
    release = find_release(umls)
    archives = sorted({part.disk_file.name for part in release if part.crc is not None})
    name = printable(release[0].release[1].rpartition("/")[2]) if archives else ""
    with suppress(UserError):  # the build does not need MRDOC
        rows = read_whole(find_rrf(umls, "MRDOC"))
        if stated := re.search(rb"\|umls\.release\.name\|[^|\n]*\|([^|\n]+)\|", rows):
            name = printable(stated[1].decode(errors="replace"))
    return {"release": name, "archives": archives}
