"""RRF files: bytes on disk -> rows, with file, row and column of every fault.

An RRF file is UTF-8, `|`-delimited, with a trailing `|` on each row, no header and no quoting: `"` is an ordinary
character (UMLS Reference Manual, chapter 3). MRREL has 5 GB and 25 million rows, so nothing is made a string that is
not needed as one. A block of 4 MB is searched for its `|` once; a field is then a pair of positions, and an identifier
is read eight digits at a time.

    for cuis in read_rrf("2022AB", "MRSTY", lambda rows: rows.parse_cui("CUI")): ...
"""

import copy
import re
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from configs import UserError
from support.archives import TABLES, find_release, find_rrf, read_whole
from support.files import progress

COLUMNS = {  # of the release files that are read here, in order
    "MRCONSO": "CUI LAT TS LUI STT SUI ISPREF AUI SAUI SCUI SDUI SAB TTY CODE STR SRL SUPPRESS CVF".split(),
    "MRREL": "CUI1 AUI1 STYPE1 REL CUI2 AUI2 STYPE2 RELA RUI SRUI SAB SL RG DIR SUPPRESS CVF".split(),
    "MRSTY": "CUI TUI STN STY ATUI CVF".split(),
    "MRRANK": "RANK SAB TTY SUPPRESS".split(),
    "MRCUI": "CUI1 VER REL RELA MAPREASON CUI2 MAPIN".split(),
    "MRSAB": (
        "VCUI RCUI VSAB RSAB SON SF SVER VSTART VEND IMETA RMETA SLC SCC SRL TFR CFR CXTY TTYL ATNL LAT CENC CURVER "
        "SABIN SSN SCIT"
    ).split(),
    "MRDOC": "DOCKEY VALUE TYPE EXPL".split(),
}
TABLE_FILES = ("MRCONSO", "MRREL", "MRSTY", "MRRANK", "MRSAB")  # those that the tables of a language are made of
BLOCK_SIZE = 4 << 20  # bytes of a file that are parsed at a time
MAX_ROW = 64 << 20  # bytes: a longer row is no row
N_SHOWN = 5  # malformed rows of a file; the others are only counted
MAX_BAD_ROWS = 10_000  # of a block: more of them, if they are over half of its rows, are not left out
PADDING = bytes(8)  # around each block, so that eight bytes can be read at any of its positions
FIRST_BYTES = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)  # masks the first n of eight bytes


def check_files(umls, *names):
    """Raises UserError if a release lacks one of these files."""
    missing = [name for name in names if not find_rrf(umls, name)]
    if missing and (found := sorted(TABLES & {part.table for part in find_release(umls)})):
        advice = "umls-...-metathesaurus-full.zip has all of them"
        raise UserError(f"{umls} holds only {', '.join(found)}: {', '.join(missing)} must be there too; {advice}")
    if missing and Path(umls).is_file():
        raise UserError(f"{umls}: no {missing[0]}.RRF in this zip; give the folder or zip of a UMLS release")
    if missing:
        found = [*Path(umls).glob("*"), *Path(umls, "META").glob("*")]
        packed = sorted(str(p) for p in found if p.suffix in (".gz", ".tar", ".tgz", ".7z"))
        advice = f"unpack {packed[0]} first" if packed else "give the folder or zip of a UMLS release"
        raise UserError(f"{missing[0]}.RRF is neither in {umls} nor in {Path(umls, 'META')}; {advice}")


def read_rrf(umls, name, parse_block, skipped=None, nci=None):
    """Yields parse_block(rows) for each block of Rows of NAME.RRF, in order. Two threads parse.

    Args:
        umls: the folder or zip of a release. name: a key of COLUMNS. skipped: a Counter by file of malformed rows,
        which are left out; None: they are errors. nci: a Counter by file of the rows of concepts with NCI ids.

    Raises: UserError with file, row and column, or if MRFILES.RRF states more rows.
    """
    parts = find_rrf(umls, name)
    where = parts[0] if len(parts) == 1 else f"{parts[0]} (and the parts after it)"
    offset = n_found = n_rows = 0
    for result, rows in parse_in_threads(parts, name, parse_block):
        if rows.malformed:
            raise UserError(f"{where}, row {offset + rows.malformed[0] + 1}{rows.malformed[1]}")
        first_fault_of_row = dict(reversed(rows.faults))
        for line, fault in sorted(first_fault_of_row.items()):
            report_bad_row(skipped, f"{name}.RRF", f"{where}, row {offset + line + 1}{fault}")
        offset, n_found, n_rows = offset + rows.n_lines, n_found + rows.n_found, n_rows + len(rows.start)
        n_nci = len({line for lines in rows.nci_lines for line in lines.tolist()} - first_fault_of_row.keys())
        if nci is not None and n_nci:
            nci[f"{name}.RRF"] += n_nci
        yield result
    if n_rows == 0:
        well_formed = " well-formed" if skipped and skipped[f"{name}.RRF"] else ""
        raise UserError(f"{where}: there is no{well_formed} row in it; unpack the release again")
    mrfiles = read_whole(find_rrf(umls, "MRFILES", parts[0].folder))
    check_row_count(skipped, mrfiles, name, where, n_found)


def check_row_count(skipped, mrfiles, name, where, n_found):
    """Compares the rows of a file with the number that the MRFILES.RRF beside it states.

    Missing rows are an error, or counted in `skipped`. Additional rows are only reported. Bytes are not compared,
    because copies with other line ends have another number of them.
    """
    row_of_file = rf"^{name}\.RRF\|(?:[^|\n]*\|){{3}}([0-9]{{1,15}})\|"
    stated = re.search(row_of_file.encode(), mrfiles, re.M | re.I)
    if not stated or (n_missing := int(stated[1]) - n_found) == 0:
        return
    message = f"{where}: {n_found:,} rows, and MRFILES.RRF beside it states {int(stated[1]):,}"
    if n_missing > 0 and skipped is None:
        advice = "copy the file again; if rows were left out on purpose, remove MRFILES.RRF"
        raise UserError(f"{message}: {advice} (--skip_bad_rows counts the missing ones and goes on)")
    if n_missing > 0:
        skipped[f"{name}.RRF"] += n_missing
    tqdm.write(message, file=sys.stderr)


def check_empty_cuis(umls, n_empty, n_rows):
    """Raises UserError if over 1 % of the rows of MRREL have an empty CUI1 or CUI2.

    As users report, rows of .nlm files leave out the fields that they share with the row before.
    """
    if n_empty * 100 > n_rows:
        message = f"{find_rrf(umls, 'MRREL')[0]}: {n_empty:,} of {n_rows:,} rows have no CUI1 or no CUI2"
        advice = "make a subset with it, or download umls-...-metathesaurus-full.zip"
        raise UserError(f"{message}; this MRREL is the input of MetamorphoSys: {advice}")


def parse_in_threads(parts, name, parse_block):
    """Yields (parse_block(rows), rows) of each block in order; a few blocks are in flight, not the whole file."""

    def parse(block, cut):
        rows = Rows(block, cut, COLUMNS[name])
        return parse_block(rows), rows

    waiting = deque()
    with ThreadPoolExecutor(2) as pool:
        for block in read_blocks(parts):
            waiting.append(pool.submit(parse, *block))
            if len(waiting) > 3:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def read_blocks(parts):
    """Yields (whole rows as bytes with PADDING around them, whether the file ends within the last row).

    parts: of one file; they may be cut anywhere.
    """
    rest, is_first = b"", True
    with progress(parts[0].name, sum(part.n_bytes for part in parts), "B") as bar:
        for part in parts:
            for chunk, n_bytes in part.chunks(BLOCK_SIZE):
                if is_first and chunk[:2] in (b"\xff\xfe", b"\xfe\xff"):
                    raise UserError(f"{part}: UTF-16, and an RRF file must be UTF-8; convert it with iconv")
                chunk = chunk.removeprefix(b"\xef\xbb\xbf") if is_first else chunk  # a byte order mark
                is_first, cut = False, chunk.rfind(b"\n") + 1
                if cut:
                    yield b"".join([PADDING, rest, memoryview(chunk)[:cut], PADDING]), False
                    rest = b""
                rest += chunk[cut:]
                if len(rest) > MAX_ROW:
                    raise UserError(f"{part}: no line end in 64 MB; this is not an RRF file")
                bar.update(n_bytes)
    if rest:
        yield b"".join([PADDING, rest, b"\n", PADDING]), True


class Rows:
    """The rows of one block of an RRF file as positions in its bytes; nothing is copied or decoded.

    Attributes:
        start: (n,) first byte of each row. line: (n,) its line within the block. pipes: (n, columns) positions of `|`.
        faults: [(line within the block, ", column X: what is wrong")]; such rows are left out.
        nci_lines: arrays of lines of concepts with NCI Metathesaurus ids (CL and digits); these too.
        malformed: None, or (line, ": what is wrong") if most rows have other columns: this is no RRF file.
        n_lines: lines of the block, malformed ones too. n_found: those that are not empty.
    """

    def __init__(self, block, cut, columns):
        self.columns, self.block, self.faults, self.nci_lines, self.malformed = columns, block, [], [], None
        self.bytes = np.frombuffer(block, np.uint8)
        self.words = np.ndarray(len(block) - 7, np.uint64, block, strides=(1,))  # eight bytes from each position
        self.n_lines = np.count_nonzero(self.bytes == ord("\n"))
        pipes, width = np.flatnonzero(self.bytes == ord("|")), len(columns)
        ends = pipes[width - 1 :: width] + 1
        regular = len(pipes) == width * self.n_lines and (self.bytes[ends] == ord("\n")).all()
        if not regular:
            ends = np.flatnonzero(self.bytes == ord("\n"))
        self.start, self.line = np.concatenate([[len(PADDING)], ends[:-1] + 1]), np.arange(len(ends))
        self.n_found = len(ends)
        utf8 = is_utf8(block)
        if not (regular and utf8):
            pipes = self._leave_out_malformed(pipes, ends, cut, utf8)
        self.pipes, self.selection = pipes.reshape(-1, width), slice(None)

    def _leave_out_malformed(self, pipes, ends, cut, utf8):
        """Keeps rows of the right number of columns and of valid UTF-8; notes other faults. Returns: their pipes."""
        width = len(self.columns)
        ends = ends - (self.bytes[ends - 1] == ord("\r"))  # Windows line ends
        self.n_found = np.count_nonzero(ends > self.start)
        count = np.diff(np.searchsorted(pipes, ends), prepend=0)
        good = (count == width) & (self.bytes[ends - 1] == ord("|"))
        bad = np.flatnonzero(~good & (ends > self.start))
        if len(bad) > max(MAX_BAD_ROWS, self.n_found / 2):
            what = f"{count[bad[0]]} columns instead of {width}, and most rows after it are wrong too"
            self.malformed, bad = (int(bad[0]), f": {what}; this is not an RRF file"), bad[:0]
        for i in bad.tolist():
            what = f"{count[i]} columns instead of {width}" if count[i] != width else "text after the last column"
            last = ", and the file ends in the middle of it" if cut and i == len(ends) - 1 else ""
            self.faults.append((i, f": {what}{last}"))
        for i in [] if utf8 else np.flatnonzero(good).tolist():
            row = self.block[self.start[i] : ends[i]]
            try:
                row.decode()
            except UnicodeDecodeError as e:
                good[i] = False
                column = self.columns[row[: e.start].count(b"|")]
                self.faults.append((i, f", column {column}: byte 0x{row[e.start]:02x} is not UTF-8"))
        self.start, self.line = self.start[good], self.line[good]
        return pipes[np.repeat(good, count)]

    def filter(self, which):
        """Some of the rows (a mask, or positions in ascending order), as Rows."""
        rows = copy.copy(self)
        rows.selection = np.arange(len(self.start))[self.selection][which]
        return rows

    def span(self, column):
        """First byte of the field in each row, and the one after its last."""
        k = self.columns.index(column)
        start = self.pipes[self.selection, k - 1] + 1 if k else self.start[self.selection]
        return start, self.pipes[self.selection, k]

    def count_empty(self, *columns):
        """The number of rows in which one of these fields is empty."""
        return np.count_nonzero(np.any([np.equal(*self.span(column)) for column in columns], axis=0))

    def prefix8(self, column):
        """The field's first eight bytes as one integer, to compare with prefix8(text)."""
        start, end = self.span(column)
        return self.words[start] & FIRST_BYTES[np.minimum(end - start, 8)]

    def strings(self, first, last=None):
        """The fields as an Arrow array (those from `first` to `last` with the `|` between them)."""
        start, end = self.span(first)[0], self.span(last or first)[1]
        # Offsets start[0], end[0], start[1], ... make strings of which every other one is a field.
        offsets = np.stack([start, end], axis=1).astype(np.int32).ravel()
        both = pa.StringArray.from_buffers(max(0, len(offsets) - 1), pa.py_buffer(offsets), pa.py_buffer(self.block))
        return both.take(pa.array(np.arange(0, len(offsets), 2)))

    def parse_digits(self, start, end, prefix, min_digits, max_digits):
        """(whether each field is the prefix and that many digits, at most eight; its number, int64)."""
        n_digits = end - start - len(prefix)
        x = self.words[end - 8] ^ np.uint64(0x3030303030303030)
        x = x & ~FIRST_BYTES[np.clip(8 - n_digits, 0, 8)]
        good = (x | x + np.uint64(0x7676767676767676)) & np.uint64(0x8080808080808080) == 0  # each byte is 0..9
        good &= (n_digits >= min_digits) & (n_digits <= max_digits)
        for i, letter in enumerate(prefix):
            good &= self.bytes[start + i] == ord(letter)
        # Eight digits at once: pairs become two-digit numbers, these four-digit ones, these one of eight digits.
        x = x * np.uint64(10 << 8 | 1) >> np.uint64(8) & np.uint64(0x00FF00FF00FF00FF)
        x = x * np.uint64(100 << 16 | 1) >> np.uint64(16) & np.uint64(0x0000FFFF0000FFFF)
        x = x * np.uint64(10000 << 32 | 1) >> np.uint64(32)
        return good, x.astype(np.int64)

    def parse_id(self, column, letter, min_digits, max_digits, optional=False):
        """Identifiers of a letter and digits (C0000123) -> int64 numbers; -1 if malformed, or empty and optional."""
        start, end = self.span(column)
        good, numbers = self.parse_digits(start, end, letter, min_digits, max_digits)
        wrong = np.flatnonzero(~good & ((end > start) | (not optional)))
        if letter == "C" and len(wrong):  # CL105989 is no UMLS concept, but nothing malformed either
            is_nci, _ = self.parse_digits(start[wrong], end[wrong], "CL", 1, 8)
            self.nci_lines.append(self.line[self.selection][wrong[is_nci]])
            wrong = wrong[~is_nci]
        for i in wrong.tolist():
            text = self.block[start[i] : end[i]].decode()
            text = repr(text[:40]) + "..." * (len(text) > 40)
            digits = f"{min_digits} digits" if min_digits == max_digits else f"{min_digits} or {max_digits} digits"
            line = int(self.line[self.selection][i])
            self.faults.append((line, f", column {column}: {text} is not {letter} and {digits}"))
        return np.where(good, numbers, -1)

    def parse_cui(self, column, optional=False):
        """The numbers of CUIs (C and seven digits), int64; -1 as in parse_id."""
        return self.parse_id(column, "C", 7, 7, optional)


def prefix8(text):
    """The first eight bytes of a text as one integer, as Rows.prefix8 gives them."""
    return np.uint64(int.from_bytes(text.encode()[:8], "little"))


def is_utf8(block):
    """Whether bytes are valid UTF-8, without making a string of them."""
    offsets = np.array([0, len(block)], np.int32)
    try:
        pa.StringArray.from_buffers(1, pa.py_buffer(offsets), pa.py_buffer(block)).validate(full=True)
        return True
    except pa.ArrowInvalid:
        return False


def report_bad_row(skipped, file, message):
    """A malformed row is an error (skipped is None), or counted by file in `skipped`; the first N_SHOWN are shown."""
    if skipped is None:
        raise UserError(f"{message}; repair the file or fetch it again (--skip_bad_rows leaves such rows out)")
    skipped[file] += 1
    if skipped[file] <= N_SHOWN:
        tqdm.write(f"{message}; left out", file=sys.stderr)
