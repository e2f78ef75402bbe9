"""RRF files + clinical text -> knowledge graph -> four task data sets -> tokens on disk -> batches.

    python data.py build --lang fr --umls 2022AB --e3c E3C-Corpus            -> datasets/fr
    python data.py build configs/v2-multi.toml --umls 2022AB --e3c E3C-Corpus
    python data.py build --lang fr --tokenizer DrBERT-4GB                    -> datasets/fr-DrBERT-4GB
    python data.py show datasets/fr                                          its tables and examples again

Reads top to bottom in the order in which data flows (paper, section 3.1): the release is read into
one graph per language; triples and paths are sampled from it, stratified by semantic group; terms and
documents become token ids once; training maps the result into memory and masks it batch by batch.
The release is parsed as positions in blocks of bytes, since at its full size (25 million relations) a string
per field costs more than all the rest; what is kept of it stays as Parquet in datasets/tables.
Everything random is a function of the seed alone: same input, same seed, same bytes.
"""

import copy
import fcntl
import gzip
import hashlib
import json
import mmap
import os
import re
import shutil
import sys
import textwrap
import time
import zlib
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc, parquet
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm

import configs
from configs import UserError, progress, read_utf8, tokenization, write_atomic

# Section 3.1's seven relation types. SY last, so that the six classes of link prediction are 0..5.
RELATIONS = ("PAR", "CHD", "AQ", "QB", "RB", "RN", "SY")
SY = 6
INVERSE = np.array([1, 0, 3, 2, 5, 4, 6])
TASKS = ("mlm", "ep", "lp", "tc")
NAMES = ("masked language modelling", "entity prediction", "link prediction", "triple classification")
MLM, EP, LP, TC = range(4)
TRUE, OTHER_PAIR, OTHER_RELATION = range(3)  # kinds of triple-classification examples
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
RELATION_TOKENS = tuple(f"[{r}]" for r in RELATIONS) + ("[HREL]",)
PARTS = ("train", "valid")
SHORTEST_DOCUMENT = 5  # tokens; what is shorter holds nothing to learn from
GRAM, FEWEST = 8, 5  # words of a run, runs of a text: see common
CORPUS_FILES = (".txt", ".tsv", ".conll", ".bio", ".iob", ".iob2", ".pubtator", ".json")

RRF = {  # columns of the release files used here, in order (UMLS Reference Manual, chapter 3)
    "MRCONSO": "CUI LAT TS LUI STT SUI ISPREF AUI SAUI SCUI SDUI SAB TTY CODE STR SRL SUPPRESS CVF".split(),
    "MRREL": "CUI1 AUI1 STYPE1 REL CUI2 AUI2 STYPE2 RELA RUI SRUI SAB SL RG DIR SUPPRESS CVF".split(),
    "MRSTY": "CUI TUI STN STY ATUI CVF".split(),
    "MRRANK": "RANK SAB TTY SUPPRESS".split(),
}
WALKS = 4 << 20  # relations of the paths sought at a time: memory goes with the paths that there are, not with the wish
BLOCK = 4 << 20  # bytes of an RRF file that are parsed at a time
CUIS = 10_000_000  # a CUI is C and seven digits, so a table over all of them is small
LANGUAGES = {  # what users type: (LAT code of the UMLS, folder of E3C)
    "en": ("ENG", "English"), "fr": ("FRE", "French"), "es": ("SPA", "Spanish"), "it": ("ITA", "Italian"),
    "eu": ("BAQ", "Basque"), "de": ("GER", ""), "pt": ("POR", ""), "nl": ("DUT", ""), "cs": ("CZE", ""),
    "da": ("DAN", ""), "el": ("GRE", ""), "et": ("EST", ""), "fi": ("FIN", ""), "he": ("HEB", ""),
    "hr": ("SCR", ""), "hu": ("HUN", ""), "ja": ("JPN", ""), "ko": ("KOR", ""), "lv": ("LAV", ""),
    "no": ("NOR", ""), "pl": ("POL", ""), "ru": ("RUS", ""), "sv": ("SWE", ""), "tr": ("TUR", ""),
    "uk": ("UKR", ""), "zh": ("CHI", ""),
}  # fmt: skip


# ---------------------------------------------------------------- keyed randomness


def mix(*keys):
    """A 64-bit hash of integers (SplitMix64, one round a key), element by element over arrays."""
    x = np.uint64(0)
    with np.errstate(over="ignore"):
        for key in keys:
            x = (x ^ np.asarray(key).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
    return x


def uniform(*keys):
    """mix(*keys) as float64 in [0, 1)."""
    return (mix(*keys) >> np.uint64(11)) * 2.0**-53


def held_out(cui_a, cui_b, seed, share):
    """Whether the unordered concept pair belongs to the validation part (bool array).

    A function of the pair alone, so that the inverse row, every relation and every task of a pair,
    in every language, are on the same side.
    """
    out = np.empty(len(cui_a), bool)
    for i in range(0, len(out), 1 << 15):  # small enough for the cache: seven times as fast
        a, b = cui_a[i : i + (1 << 15)], cui_b[i : i + (1 << 15)]
        out[i : i + (1 << 15)] = uniform(seed, np.minimum(a, b), np.maximum(a, b)) < share
    return out


# ---------------------------------------------------------------- the release: RRF files -> graph


@dataclass
class Graph:
    """The knowledge graph G = (C, E, R) of one language (section 3.1), on integers.

    Concepts are 0..N-1 in the order of their CUIs; the strings of concept c are
    `terms[first_term[c]:first_term[c+1]]`, the preferred one first. `keys` is the set of triples, sorted:
    h, t and r in the bits of one integer, so that membership is a search; h, r, t are made from it.
    """

    lang: str
    cui: np.ndarray  # (N,) int32: the number in the CUI
    group: np.ndarray  # (N,) int16: index into `groups`
    groups: list[str]
    first_term: np.ndarray  # (N + 1,) int64
    terms: pa.Array  # of strings
    keys: np.ndarray  # (E,) int64

    def __post_init__(self):
        self.h = (self.keys >> 27).astype(np.int32)
        self.r = (self.keys & 7).astype(np.int8)
        self.t = (self.keys >> 3 & (1 << 24) - 1).astype(np.int32)
        self.strata = self.stratum(self.h, self.t)
        self.counts = self.count(self.h, self.r, self.t)

    @staticmethod
    def key(h, r, t):
        return (np.asarray(h, np.int64) << 27) | (np.asarray(t, np.int64) << 3) | r

    def contains(self, h, r, t):
        """Whether (h, r, t), or its inverse, is a triple of the graph (bool array)."""
        found = np.zeros(np.shape(h), bool)
        for key in (self.key(h, r, t), self.key(t, INVERSE[r], h)):
            at = np.minimum(np.searchsorted(self.keys, key), len(self.keys) - 1)
            found |= self.keys[at] == key
        return found

    def stratum(self, h, t):
        """(group of h, group of t) as one number below len(groups) ** 2."""
        n = len(self.groups)
        return self.group.astype(np.min_scalar_type(n * n))[h] * np.min_scalar_type(n * n).type(n) + self.group[t]

    def count(self, h, r, t):
        """(len(groups) ** 2, 7): how many of the triples each stratum has of each relation."""
        cell = self.stratum(h, t).astype(np.int32) * len(RELATIONS) + r
        return np.bincount(cell, minlength=len(self.groups) ** 2 * len(RELATIONS)).reshape(-1, len(RELATIONS))


def unpack(umls):
    """What to do with a release folder that lacks its files."""
    there = [*Path(umls).glob("*"), *Path(umls, "META").glob("*")]
    packed = sorted(str(p) for p in there if p.suffix in (".zip", ".nlm", ".gz", ".tar"))
    return f"unpack {packed[0]} first (.nlm files are .zip files too)" if packed else "unpack the release there"


def find_rrf(umls, name):
    """[NAME.RRF] of a release folder, or NAME.RRF.gz, or its .gz parts in order; [] if it is not there."""
    for folder in (Path(umls), Path(umls, "META")):
        if (folder / f"{name}.RRF").is_file():
            return [folder / f"{name}.RRF"]
        if (folder / f"{name}.RRF.gz").is_file():
            return [folder / f"{name}.RRF.gz"]
        if parts := sorted(folder.glob(f"{name}.RRF.*.gz")):
            return parts
    return []


def read_blocks(paths):
    """Yields (whole rows as bytes, whether the file ends within the last of them); about BLOCK each."""
    rest = b""
    with progress(paths[0].name, sum(p.stat().st_size for p in paths), "B") as bar:
        for path in paths:  # parts are cut anywhere, also within a row
            with open(path, "rb") as raw, gzip.open(raw) if path.suffix == ".gz" else raw as f:
                at = 0
                try:
                    while chunk := f.read(BLOCK):
                        if at == 0 and chunk[:2] in (b"\xff\xfe", b"\xfe\xff"):
                            raise UserError(f"{path}: UTF-16, and an RRF file must be UTF-8; convert it with iconv")
                        cut = chunk.rfind(b"\n") + 1
                        if cut:
                            yield b"".join([PADDING, rest, memoryview(chunk)[:cut], PADDING]), False
                            rest = b""
                        rest += chunk[cut:]
                        if len(rest) > 64 << 20:
                            raise UserError(f"{path}: no line end in 64 MB; this is not an RRF file")
                        bar.update(raw.tell() - at)
                        at = raw.tell()
                except (EOFError, zlib.error, OSError) as e:
                    raise UserError(f"{path}: cannot be read ({e}); copy or download it again") from None
    if rest:
        yield b"".join([PADDING, rest, b"\n", PADDING]), True


class Rows:
    """The rows of one block of an RRF file as positions in its bytes; nothing is copied or decoded.

    `|`-delimited with a trailing `|` on each row, no quoting: `"` is an ordinary character. Malformed rows are
    left out and told in `bad`: (line within the block, column and what is wrong). `nci` has the lines of rows of
    concepts that the NCI Metathesaurus numbers.
    """

    def __init__(self, block, cut, columns):
        self.columns, self.block, self.bad, self.nci = columns, block, [], []
        self.bytes = np.frombuffer(block, np.uint8)
        self.words = np.ndarray(len(block) - 7, np.uint64, block, strides=(1,))  # eight bytes from each position
        pipes, width = np.flatnonzero(self.bytes == ord("|")), len(columns)
        ends = pipes[width - 1 :: width] + 1
        self.lines = np.count_nonzero(self.bytes == ord("\n"))
        regular = len(pipes) == width * self.lines and (self.bytes[ends] == ord("\n")).all()
        if not regular:
            ends = np.flatnonzero(self.bytes == ord("\n"))
        self.start, self.line = np.concatenate([[len(PADDING)], ends[:-1] + 1]), np.arange(len(ends))
        utf8 = is_utf8(block)
        if not regular or not utf8:
            ends = ends - (self.bytes[ends - 1] == ord("\r"))  # Windows line ends
            count = np.diff(np.searchsorted(pipes, ends), prepend=0)
            good = (count == width) & (self.bytes[ends - 1] == ord("|"))
            for i in np.flatnonzero(~good & (ends > self.start)).tolist():
                what = f"{count[i]} columns instead of {width}" if count[i] != width else "text after the last column"
                last = ", and the file ends in the middle of it" if cut and i == len(ends) - 1 else ""
                self.bad.append((i, f": {what}{last}"))
            for i in [] if utf8 else np.flatnonzero(good).tolist():
                row = block[self.start[i] : ends[i]]
                try:
                    row.decode()
                except UnicodeDecodeError as e:
                    good[i] = False
                    column = columns[row[: e.start].count(b"|")]
                    self.bad.append((i, f", column {column}: byte 0x{row[e.start]:02x} is not UTF-8"))
            pipes, self.start, self.line = pipes[np.repeat(good, count)], self.start[good], self.line[good]
        self.pipes, self.at = pipes.reshape(-1, width), slice(None)

    def only(self, which):
        """Some of the rows (a mask, or positions in ascending order), as Rows."""
        rows = copy.copy(self)
        rows.at = np.arange(len(self.start))[self.at][which]
        return rows

    def span(self, column):
        """First byte of the field in each row, and the one after its last."""
        k = self.columns.index(column)
        return self.pipes[self.at, k - 1] + 1 if k else self.start[self.at], self.pipes[self.at, k]

    def code(self, column):
        """The field's first eight bytes as one integer, to compare with code(text)."""
        start, end = self.span(column)
        return self.words[start] & SHORTER[np.minimum(end - start, 8)]

    def strings(self, first, last=None):
        """The fields as an Arrow array (those from `first` to `last` with the | between them)."""
        start, end = self.span(first)[0], self.span(last or first)[1]
        spans = np.stack([start, end], axis=1).astype(np.int32).ravel()  # every other one is a field
        both = pa.StringArray.from_buffers(max(0, len(spans) - 1), pa.py_buffer(spans), pa.py_buffer(self.block))
        return both.take(pa.array(np.arange(0, len(spans), 2)))

    def digits(self, start, end, letters, least, most):
        """Whether each field is `letters` and least to most digits (eight can be), and the numbers (int64)."""
        digits = end - start - len(letters)
        x = self.words[end - 8] ^ np.uint64(0x3030303030303030)
        x = x & ~SHORTER[np.clip(8 - digits, 0, 8)]
        good = (x | x + np.uint64(0x7676767676767676)) & np.uint64(0x8080808080808080) == 0  # each byte 0..9
        good &= (digits >= least) & (digits <= most)
        for i, letter in enumerate(letters):
            good &= self.bytes[start + i] == ord(letter)
        # Eight digits at once: to two-digit, four-digit and eight-digit numbers.
        x = x * np.uint64(10 << 8 | 1) >> np.uint64(8) & np.uint64(0x00FF00FF00FF00FF)
        x = x * np.uint64(100 << 16 | 1) >> np.uint64(16) & np.uint64(0x0000FFFF0000FFFF)
        x = x * np.uint64(10000 << 32 | 1) >> np.uint64(32)
        return good, x.astype(np.int64)

    def number(self, column, letter, least, most, optional=False):
        """Identifiers of a letter and digits (C0000123) -> int64 numbers; -1 if malformed (or empty and optional)."""
        start, end = self.span(column)
        good, x = self.digits(start, end, letter, least, most)
        wrong = np.flatnonzero(~good & ((end > start) | (not optional)))
        if letter == "C" and len(wrong):  # CL105989: no UMLS concept, but nothing malformed either
            nci = self.digits(start[wrong], end[wrong], "CL", 1, 8)[0]
            self.nci.append(self.line[self.at][wrong[nci]])
            wrong = wrong[~nci]
        for i in wrong.tolist():
            text = self.block[start[i] : end[i]].decode()
            text = repr(text[:40]) + "..." * (len(text) > 40)
            length = f"{least} digits" if least == most else f"{least} or {most} digits"
            self.bad.append((int(self.line[self.at][i]), f", column {column}: {text} is not {letter} and {length}"))
        return np.where(good, x, -1)

    def cui(self, column, optional=False):
        return self.number(column, "C", 7, 7, optional)


PADDING = bytes(8)  # so that there are eight bytes before and from each position
SHORTER = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)  # the first n bytes of eight


def code(text):
    return np.uint64(int.from_bytes(text.encode(), "little"))


def is_utf8(block):
    whole = np.array([0, len(block)], np.int32)
    try:
        pa.StringArray.from_buffers(1, pa.py_buffer(whole), pa.py_buffer(block)).validate(full=True)
        return True
    except pa.ArrowInvalid:
        return False


def fault(skip, file, message):
    """A malformed row is an error; with --skip_bad_rows (skip: a Counter) it is counted and the first five shown."""
    if skip is None:
        raise UserError(f"{message}; repair the file or fetch it again (--skip_bad_rows leaves such rows out)")
    skip[file] += 1
    if skip[file] <= 5:
        tqdm.write(f"{message}; left out", file=sys.stderr)


def read_rrf(umls, name, take, skip=None, nci=None):
    """Yields take(rows) for each block of Rows of NAME.RRF, in order; two threads parse.

    Args:
        skip: a Counter: malformed rows are left out and counted there, the first few shown. None: they are errors.
        nci: a Counter of the rows left out because the NCI Metathesaurus, not the UMLS, numbers their concept.

    Raises: UserError with file, row and column.
    """
    paths = find_rrf(umls, name)
    where = paths[0] if len(paths) == 1 else f"{paths[0]} (and the parts after it)"
    line = n = 0

    def parse(block, cut):
        rows = Rows(block, cut, RRF[name])
        taken = take(rows)
        theirs = np.setdiff1d(np.concatenate([np.zeros(0, np.int64), *rows.nci]), [line for line, _ in rows.bad])
        return taken, rows.bad, len(theirs), rows.lines, len(rows.start)

    def parsed():
        waiting = deque()  # a few blocks ahead, not the whole file
        with ThreadPoolExecutor(2) as pool:
            for block in read_blocks(paths):
                waiting.append(pool.submit(parse, *block))
                if len(waiting) > 3:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    for taken, bad, theirs, lines, good in parsed():
        for at, what in sorted(dict(reversed(bad)).items()):  # the first fault of each row
            fault(skip, f"{name}.RRF", f"{where}, row {line + at + 1}{what}")
        line, n = line + lines, n + good
        if nci is not None and theirs:
            nci[f"{name}.RRF"] += theirs
        yield taken
    if n == 0:
        well_formed = " well-formed" if skip and skip[f"{name}.RRF"] else ""
        raise UserError(f"{where}: there is no{well_formed} row in it; unpack the release again")


def read_semantic_types(umls, kept, table, skip=None, nci=None):
    """MRSTY and SemGroups.txt -> (groups, (CUIS,) int16 group of each kept concept or -1).

    A concept is kept if one of its semantic types is. Of several kept types the least deep one
    (shortest tree number STN, then STN, then TUI) gives the group used for stratification.

    Args:
        kept: TUIs and group abbreviations. table: a SemGroups.txt (GRP|name|TUI|type name).
    """
    group_of = {}
    try:
        for n, line in enumerate(Path(table).read_text(encoding="utf-8").split("\n"), 1):
            if line.strip():
                fields = line.split("|")
                if len(fields) != 4:
                    raise UserError(f"{table}, row {n}: {len(fields)} columns instead of 4 (GRP|name|TUI|type)")
                group_of[fields[2]] = fields[0]
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{table}: cannot be read: {e}") from None
    unknown = [k for k in kept if k not in group_of and k not in group_of.values()]
    if unknown:
        raise UserError(f"semantic_types: {', '.join(unknown)} not in {table}")
    groups = sorted(set(group_of.values()))

    def take(rows):
        cui, tui = rows.cui("CUI"), rows.number("TUI", "T", 3, 3)
        good = (cui >= 0) & (tui >= 0)
        rows, cui, tui = rows.only(good), cui[good], tui[good]
        rows = rows.only(np.sort(np.unique(tui, return_index=True)[1]))
        return cui, tui, dict(zip(rows.strings("TUI").to_pylist(), rows.strings("STN").to_pylist()))

    cuis, tuis, depth = [], [], {}
    for cui, tui, numbers in read_rrf(umls, "MRSTY", take, skip, nci):
        cuis.append(cui)
        tuis.append(tui)
        depth |= numbers
    # Types in order of preference, so that the least deep one is the smallest number of a concept.
    order = sorted(depth, key=lambda tui: (len(depth[tui]), depth[tui], tui))
    use = [tui for tui in order if tui in kept or group_of.get(tui) in kept]
    preference = np.full(1000, len(use), np.int16)
    preference[[int(tui[1:]) for tui in use]] = np.arange(len(use))
    best = np.full(CUIS, len(use), np.int16)
    np.minimum.at(best, np.concatenate(cuis), preference[np.concatenate(tuis)])
    return groups, np.array([groups.index(group_of[tui]) for tui in use] + [-1], np.int16)[best]


def read_terms(umls, lats, group, skip=None, nci=None):
    """MRCONSO (and MRRANK) -> [(cui, first_term, terms)] of each language, as in Graph, for concepts with a group.

    Rows with SUPPRESS other than N are left out. The strings of a concept are in order of preference:
    TS=P STT=PF ISPREF=Y, then TS=P STT=PF, then TS=P, then the rest; among equals the higher rank of
    (SAB, TTY) in MRRANK, then the lower AUI. The first is the "preferred term" of section 3.1.

    Raises: UserError if a language has no row, naming those that the release has.
    """
    rank, seen, found = {}, set(), {lat: [] for lat in lats}
    if find_rrf(umls, "MRRANK"):
        for of, n in read_rrf(umls, "MRRANK", lambda r: (r.strings("SAB", "TTY"), r.strings("RANK")), skip):
            for s, k in zip(of.to_pylist(), n.to_pylist()):
                rank[s] = max(rank.get(s, 0), min(int(k), 4095) if k.isdecimal() else 0)

    def take(rows):
        lat, out = rows.code("LAT"), {}
        for name in lats:
            r = rows.only((lat == code(name)) & (rows.code("SUPPRESS") == code("N")))
            cui = r.cui("CUI")
            keep = (cui >= 0) & (group[cui] >= 0)
            r, cui = r.only(keep), cui[keep]
            aui = r.number("AUI", "A", 7, 8)
            keep = (aui >= 0) & np.greater(*reversed(r.span("STR")))  # an empty string is no name
            r, cui, aui = r.only(keep), cui[keep], aui[keep]
            p, pf, y = (r.code(c) == code(v) for c, v in (("TS", "P"), ("STT", "PF"), ("ISPREF", "Y")))
            worse = 3 - p.astype(np.int64) - (p & pf) - (p & pf & y)
            source = r.strings("SAB", "TTY").dictionary_encode()
            ranks = np.array([rank.get(s, 0) for s in source.dictionary.to_pylist()] or [0])[source.indices]
            out[name] = (
                cui.astype(np.int32),
                (worse << 39) | ((4095 - ranks) << 27) | aui,
                r.strings("STR").cast(pa.large_string()),
            )
        return out, np.unique(lat)

    for out, codes in read_rrf(umls, "MRCONSO", take, skip, nci):
        seen.update(codes.tolist())
        for lat in lats:
            found[lat].append(out[lat])
    for lat in lats:
        if code(lat) not in seen:
            names = " ".join(sorted(int(c).to_bytes(8, "little").decode(errors="replace").rstrip("\0") for c in seen))
            raise UserError(f"{find_rrf(umls, 'MRCONSO')[0]}: no row in language {lat}; it has {names}")
    return [sort_terms(*zip(*found.pop(lat))) for lat in lats]


def sort_terms(cui, priority, strings):
    """Atoms of one language -> (cui, first_term, terms) as in Graph: by concept, then by priority, each string once."""
    cui, priority, strings = np.concatenate(cui), np.concatenate(priority), pa.concat_arrays(strings)
    there = np.zeros(CUIS, bool)
    there[cui] = True
    concepts = np.flatnonzero(there).astype(np.int32)
    concept = (np.cumsum(there, dtype=np.int32) - 1)[cui].astype(np.int64)
    order = np.argsort(concept.astype(np.uint64) << np.uint64(41) | priority.astype(np.uint64))
    # Of equal strings of a concept the first stays. Only strings of equal length need to be compared.
    length = np.asarray(pc.binary_length(strings)).astype(np.int64)
    key = (concept << 32 | length)[order]
    by_key = np.argsort(key)
    same = np.flatnonzero(key[by_key[1:]] == key[by_key[:-1]])
    alike = np.unique(by_key[np.concatenate([same, same + 1])])
    string = np.asarray(strings.take(pa.array(order[alike])).dictionary_encode().indices)
    once = alike[np.unique(concept[order[alike]] << 32 | string, return_index=True)[1]]
    keep = np.ones(len(order), bool)
    keep[alike], keep[once] = False, True
    order = order[keep]
    first_term = np.concatenate([[0], np.cumsum(np.bincount(concept[order], minlength=len(concepts)))])
    return concepts, first_term, strings.take(pa.array(order))


def read_relations(umls, terms, skip=None, nci=None):
    """MRREL -> the sorted keys (as in Graph) of each language's triples.

    REL is the relation of the SECOND concept to the first: `C1|..|PAR|C2` says that C2 is a parent
    of C1. So h = CUI2, r = REL, t = CUI1. Kept: the seven relations, SUPPRESS=N, both concepts with a
    term in the language; a relation of a concept to itself only if it is SY and the language has two
    strings for it (else there is nothing to say).

    Args: terms: (cui, first_term, ...) of each language. Returns: a list of (E,) int64.
    """
    indices = []
    for cui, *_ in terms:
        index = np.full(CUIS + 1, -1, np.int32)  # the last one for "no concept", -1
        index[cui] = np.arange(len(cui))
        indices.append(index)
    several = [np.append(np.diff(first) > 1, False) for _, first, *_ in terms]
    names = np.array([code(name) for name in RELATIONS])
    relation = np.zeros(1 << 16, np.int8)
    relation[names & np.uint64(0xFFFF)] = np.arange(len(names))

    def take(rows):
        rel = rows.code("REL")
        r = relation[rel & np.uint64(0xFFFF)]  # the first two letters tell the seven apart
        r[names[r] != rel] = -1
        keep = (r >= 0) & (rows.code("SUPPRESS") == code("N"))
        rows, r = rows.only(keep), r[keep]
        t, h, keys = rows.cui("CUI1", optional=True), rows.cui("CUI2", optional=True), []
        for index, synonyms in zip(indices, several):
            a, b = index[h], index[t]
            good = (a >= 0) & (b >= 0) & ((a != b) | ((r == SY) & synonyms[a]))
            keys.append(Graph.key(a[good], r[good], b[good]))
        return keys

    return [unique(np.concatenate(keys)) for keys in zip(*read_rrf(umls, "MRREL", take, skip, nci))]


def unique(keys):
    """np.unique of integers, in place: the triples of English are 20 million."""
    keys.sort()
    return keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys


def read_graphs(umls, langs, s, tables, say, save):
    """One Graph per language of a release; each RRF file is read once, and not at all if `tables` has its outcome.

    Args:
        s: settings (semantic_types, semgroups, skip_bad_rows). tables: folder for the Parquet files of each
        language. say: prints a line. save: called like save_tables for each graph that was read.

    Returns: (graphs, {file: malformed rows left out}, {file: rows left out that the NCI Metathesaurus numbers}).
    """
    for name in ("MRSTY", "MRCONSO", "MRREL"):
        if not find_rrf(umls, name):
            raise UserError(f"{name}.RRF is neither in {umls} nor in {Path(umls, 'META')}; {unpack(umls)}")
    table = Path(s.semgroups or Path(configs.__file__).with_name("SemGroups.txt"))
    stats = {p.name: p.stat() for name in RRF for p in find_rrf(umls, name)}
    source = {
        "version": 2, "folder": str(Path(umls).resolve()),
        "files": {name: [f.st_size, f.st_mtime_ns] for name, f in stats.items()},
        "semantic_types": s.semantic_types, "skip_bad_rows": s.skip_bad_rows,
        "semgroups": hashlib.sha256(table.read_bytes() if table.is_file() else b"").hexdigest(),
    }  # fmt: skip
    graphs, left_out, nci = {}, Counter(), Counter()
    for lang in langs:
        if kept := load_tables(tables / lang, lang, source):
            graphs[lang], left_out, nci = kept[0], left_out | kept[1], nci | kept[2]
            say(f"{lang}: tables of {tables / lang} (made from the same files)")
    if missing := [lang for lang in langs if lang not in graphs]:
        skip, theirs = Counter() if s.skip_bad_rows else None, Counter()
        groups, group = read_semantic_types(umls, s.semantic_types, table, skip, theirs)
        say(f"MRSTY: {np.count_nonzero(group >= 0):,} concepts of the kept semantic types")
        terms = read_terms(umls, [lat_code(lang) for lang in missing], group, skip, theirs)
        say(f"MRCONSO: {sum(len(t[2]) for t in terms):,} terms")
        keys = read_relations(umls, terms, skip, theirs)
        say(f"MRREL: {sum(map(len, keys)):,} relations")
        for lang, (cui, first_term, strings), key in zip(missing, terms, keys):
            if len(key) == 0:
                raise UserError(
                    f"{umls}: no relation left in language {lang} ({lat_code(lang)}): {len(cui)} concepts with a term "
                    "and a kept semantic type, none of them related; see --semantic_types, or use a larger subset"
                )
            graphs[lang] = Graph(lang, cui, group[cui], groups, first_term, strings, key)
            save(tables / lang, graphs[lang], source, skip or {}, theirs)
        left_out, nci = left_out | (skip or Counter()), nci | theirs
    return [graphs[lang] for lang in langs], dict(left_out), dict(nci)


def save_tables(folder, graph, source, left_out, nci):
    """A Graph as three Parquet files, with what it was made from."""
    with replacing(folder) as beside:

        def save(name, **columns):
            options = {"compression": "lz4", "use_dictionary": False, "write_page_checksum": True}
            table = pa.table(columns)
            write_atomic(beside / f"{name}.parquet", lambda f: parquet.write_table(table, f, **options))

        save("concepts", cui=graph.cui, group=graph.group, terms=np.diff(graph.first_term))
        save("terms", term=graph.terms)
        save("relations", head=graph.h, relation=graph.r, tail=graph.t)
        about = {"source": source, "groups": graph.groups, "left_out": left_out, "nci": nci}
        write_atomic(beside / "source.json", lambda f: f.write(json.dumps(about, indent=1).encode()))


def load_tables(folder, lang, source=None):
    """(Graph, left_out, nci) of save_tables; None if it is not there, is damaged or was made from another source."""
    try:
        about = json.loads(Path(folder, "source.json").read_text(encoding="utf-8"))
        if source not in (None, about["source"]):
            return None
        concepts, terms, relations = (
            parquet.read_table(mapped(folder / f"{name}.parquet"), page_checksum_verification=True)
            for name in ("concepts", "terms", "relations")
        )
        first_term = np.concatenate([[0], np.cumsum(concepts["terms"].to_numpy())])
        keys = Graph.key(*(relations[c].to_numpy() for c in ("head", "relation", "tail")))
        graph = Graph(
            lang, concepts["cui"].to_numpy(), concepts["group"].to_numpy(), about["groups"], first_term,
            terms["term"].combine_chunks(), keys,
        )  # fmt: skip
        consistent = first_term[-1] == len(graph.terms) and len(graph.groups) > graph.group.max()
        return (graph, Counter(about["left_out"]), Counter(about.get("nci"))) if consistent else None
    except (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException):
        return None


def mapped(path):
    """A file mapped into memory, for Arrow to read, which takes no path that is not UTF-8 itself."""
    with open(path, "rb") as f:
        return pa.BufferReader(pa.py_buffer(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)))


def lat_code(lang):
    return LANGUAGES[lang][0] if lang in LANGUAGES else lang


def languages(text):
    """What the user typed -> our codes: 'fr', 'FRE', 'french' -> ['fr']; 'multi' -> en, fr, es."""
    if not text:
        raise UserError("say which language: make data LANG=fr (or en, es, multi, ..., or a LAT code such as ITA)")
    if text.lower() == "multi":
        return ["en", "fr", "es"]
    for code, names in LANGUAGES.items():
        if text.lower() in (code, *(name.lower() for name in names if name)):
            return [code]
    if re.fullmatch(r"[A-Z]{3}", text):
        return [text]
    raise UserError(f"unknown language '{text}'; say one of {' '.join(LANGUAGES)}, a LAT code such as FRE, or multi")


# ---------------------------------------------------------------- samplers (section 3.1)


def deal(shares, n, room):
    """n examples over strata in proportion to `shares`, exact to rounding (largest remainder).

    A stratum with less room than its share is filled and the rest is dealt on over the others.
    Returns (strata,) int64 with sum min(n, room.sum()).
    """
    n = min(n, int(room.sum()))
    quota = np.zeros(len(shares), np.int64)
    while quota.sum() < n:
        free = (room > quota) & (shares > 0)
        if not free.any():  # only strata that the shares do not know are left
            free = room > quota
            shares = np.where(free, 1, 0)
        exact = np.where(free, shares, 0) / shares[free].sum() * (n - quota.sum())
        more = np.floor(exact).astype(np.int64)
        rest = n - int(quota.sum() + more.sum())
        more[np.argsort(more - exact, kind="stable")[:rest]] += 1
        quota = np.minimum(quota + more, room)
    return quota


class Pool:
    """Things to draw from, by stratum: those of stratum s are rows[start[s] : start[s] + size[s]]."""

    def __init__(self, rows, strata, number):
        """rows: indices; strata: of each row, one of `number`."""
        self.rows = rows[np.argsort(strata, kind="stable")]  # radix sort: strata are small integers
        self.size = np.bincount(strata, minlength=number)
        self.start = np.cumsum(self.size) - self.size

    def only(self, keep):
        """The Pool of the rows of a mask."""
        kept = copy.copy(self)
        kept.rows = self.rows[keep]
        kept.size = np.bincount(np.repeat(np.arange(len(self.size)), self.size)[keep], minlength=len(self.size))
        kept.start = np.cumsum(kept.size) - kept.size
        return kept

    def one_of(self, rng, strata):
        """One member of each of `strata`, with replacement."""
        return self.rows[self.start[strata] + (rng.random(len(strata)) * self.size[strata]).astype(np.int64)]


def stratified(rng, pool, shares, n, repeat=False):
    """n members of a Pool, drawn without replacement within each stratum; in order of strata.

    Args:
        shares: (strata,) counts that set the proportions.
        repeat: where a stratum has fewer members than its share, use them again in turn.
    """
    quota = deal(shares, n, np.where(pool.size > 0, n, 0) if repeat else pool.size)
    picked = [np.zeros(0, np.int64)]
    for s in np.flatnonzero(quota):
        some = rng.choice(pool.size[s], min(quota[s], pool.size[s]), replace=False)
        picked.append(pool.start[s] + np.resize(some, quota[s]))
    return pool.rows[np.concatenate(picked)]


def negatives(rng, graph, source, redraw, propose, allowed):
    """Distinct triples that are not in the graph, one per true triple of `source`: (3, n) int64.

    Args:
        source: indices of true triples. propose(rng, source) -> candidate (h, r, t).
        redraw(rng, source) -> other true triples of the same strata.
        allowed(h, t) -> bool array: whether the pair is on this part's side of the validation split.

    Instead of a candidate that is true, on the wrong side or taken already another one is proposed, 200
    times at most: in a graph so dense that this fails, fewer come back (and the build says so).
    """
    done, taken = [np.zeros((3, 0), np.int64)], np.zeros(0, np.int64)
    for _ in range(200):
        if len(source) == 0:
            break
        h, r, t = propose(rng, source)
        key = graph.key(h, r, t)
        good = np.zeros(len(key), bool)
        good[np.unique(key, return_index=True)[1]] = True
        good &= ~graph.contains(h, r, t) & allowed(h, t) & ~np.isin(key, taken)
        done.append(np.stack([h, r, t])[:, good])
        taken = np.concatenate([taken, key[good]])
        source = redraw(rng, source[~good])
    return np.concatenate(done, axis=1)


def sample_classification(rng, graph, pool, n, allowed):
    """Triple classification (section 3.1): (kind, h, r, t), 50 % true, 25 % + 25 % negatives.

    OTHER_PAIR: from a true triple with different semantic groups, both concepts drawn anew within
    their groups (among concepts that have relations), the relation kept. OTHER_RELATION: from a true
    triple within one group, another relation, drawn by its frequency within groups. Where one kind
    cannot be had in full the other makes up for it, and the true triples are cut to match: one half is
    always true.

    Args: pool: the triples of this part.
    """
    group, shares, groups = graph.group, graph.counts.sum(axis=1), len(graph.groups)
    crossing = np.arange(groups**2) // groups != np.arange(groups**2) % groups
    related = np.zeros(len(group), bool)
    related[graph.h], related[graph.t] = True, True
    by_group = Pool(np.flatnonzero(related), group[related], groups)

    def other_pair(rng, i):
        return by_group.one_of(rng, group[graph.h[i]]), graph.r[i], by_group.one_of(rng, group[graph.t[i]])

    # As often as among true triples: a relation that only false triples have would give them away.
    common = graph.counts[~crossing].sum(axis=0) + 1e-9

    def other_relation(rng, i):
        weight = np.where(np.arange(len(RELATIONS)) == graph.r[i][:, None], 0, common).cumsum(axis=1)
        return graph.h[i], (rng.random((len(i), 1)) * weight[:, -1:] >= weight).sum(axis=1), graph.t[i]

    def make(propose, strata, n):
        def redraw(rng, i):
            return pool.one_of(rng, graph.strata[i])

        if not pool.size[strata].any():
            return np.zeros((3, 0), np.int64)
        there = shares * strata * (pool.size > 0)
        return negatives(rng, graph, stratified(rng, pool, there, n, repeat=True), redraw, propose, allowed)

    true = min(n // 2, len(pool.rows))
    pairs = make(other_pair, crossing, true - true // 2)
    changed = make(other_relation, ~crossing, true - pairs.shape[1])
    if pairs.shape[1] + changed.shape[1] < true and pairs.shape[1] == true - true // 2:
        pairs = make(other_pair, crossing, true - changed.shape[1])
    true = stratified(rng, pool, shares, pairs.shape[1] + changed.shape[1])
    triples = np.concatenate([np.stack([graph.h[true], graph.r[true], graph.t[true]]), pairs, changed], axis=1)
    kind = np.repeat([TRUE, OTHER_PAIR, OTHER_RELATION], [len(true), pairs.shape[1], changed.shape[1]])
    return kind, *triples


def sample_paths(rng, graph, pool, n, most):
    """Up to n distinct paths h1 r1 h2 r2 ... (section 3.1): (concepts, relations), -1 after the end.

    Random walks over the triples of `pool` other than SY, of 2 to `most` relations, the wanted length uniform;
    their first triples are stratified. No concept comes twice in a path, so that the inverse of a relation
    never stands beside it.
    """
    pool = pool.only(graph.r[pool.rows] != SY)
    edges = np.zeros(len(graph.r), bool)
    edges[pool.rows] = True
    edges = np.flatnonzero(edges)  # in the order of their heads
    first, walks = np.zeros(0, np.int64), np.zeros((0, 2 * most + 1), np.int64)
    shares = graph.counts[:, :SY].sum(axis=1)
    at_once = WALKS // most
    for _ in range(6 + n // at_once):  # walks that meet a dead end or repeat another are replaced by new ones
        before = len(first)
        if before >= n or len(edges) == 0:
            break
        few = min(n - before, at_once)
        starts = stratified(rng, pool, shares, 2 * few + 1000, repeat=True)
        wanted = rng.integers(2, most + 1, len(starts))
        new = np.concatenate(random_walks(rng, graph, edges, starts, wanted, most), axis=1)
        long = new[:, 2] >= 0
        walks, first = np.concatenate([walks, new[long]]), np.concatenate([first, starts[long]])
        at = np.unique(mix(*walks.T), return_index=True)[1]
        walks, first = walks[at], first[at]
        if len(first) - before < few // 20:
            break  # there are hardly any others
    chosen = stratified(rng, Pool(np.arange(len(first)), graph.strata[first], len(shares)), shares, n)
    return walks[chosen, : most + 1], walks[chosen, most + 1 :]


def random_walks(rng, graph, edges, first, length, most):
    """Random walks over `edges`; walk i starts with triple first[i] and ends after length[i] relations,
    or where 8 draws find no new concept. Returns (concepts (n, most+1), relations (n, most)) int64.
    """
    begin = np.concatenate([[0], np.cumsum(np.bincount(graph.h[edges], minlength=len(graph.cui)))])  # sorted by h
    concepts = np.full((len(first), most + 1), -1, np.int64)
    relations = np.full((len(first), most), -1, np.int64)
    concepts[:, 0], relations[:, 0], concepts[:, 1] = graph.h[first], graph.r[first], graph.t[first]
    alive = np.arange(len(first))
    for step in range(1, most):
        pending, moved = alive[length[alive] > step], []
        for _ in range(8):
            here = concepts[pending, step]
            degree = begin[here + 1] - begin[here]
            at = begin[here] + (rng.random(len(pending)) * degree).astype(np.int64)
            edge = edges[np.minimum(at, len(edges) - 1)]
            new = (concepts[pending, : step + 1] != graph.t[edge][:, None]).all(axis=1)
            good = (degree > 0) & new
            concepts[pending[good], step + 1] = graph.t[edge[good]]
            relations[pending[good], step] = graph.r[edge[good]]
            moved.append(pending[good])
            pending = pending[~good]
        alive = np.sort(np.concatenate(moved))
    return concepts, relations


def tail_terms(rng, graph, h, r, t):
    """Index of the string that stands for each tail: the preferred term, "except in the case of synonym relations
    where we randomly select another of the terms" (section 3.1) if there is another; so too in a false triple of a
    concept and itself, which would else have the same name twice."""
    count = graph.first_term[t + 1] - graph.first_term[t]
    another = ((r == SY) | (h == t)) & (count > 1)
    return graph.first_term[t] + np.where(another, 1 + (rng.random(len(t)) * (count - 1)).astype(np.int64), 0)


# ---------------------------------------------------------------- documents


def read_e3c(folder, lang, layers):
    """Texts of data_collection/<Language>/layer<n>/*.json: (texts, Counter of what is odd).

    Files without a text, or that are not JSON, are left out; files named for another language than their folder's
    (in French half of them, twins of the others) are read like the rest. Both are counted, neither is fatal.
    """
    name = LANGUAGES.get(lang, ("", ""))[1]
    if not name:
        raise UserError(f"E3C has no documents in language {lang}; say E3C=none to build without documents")
    texts, odd = [], Counter()
    for layer in layers:
        place = Path(folder, "data_collection", name, f"layer{layer}")
        if not place.is_dir():
            raise UserError(f"{place} not found; E3C must point to the folder that holds data_collection/")
        files = sorted(place.glob("*.json"))
        if not files:
            raise UserError(f"{place} holds no .json file; E3C must point to the corpus")
        for path in progress(f"E3C {name} layer {layer}", files):
            try:
                text = json.loads(path.read_text(encoding="utf-8-sig"))["text"]
                text = text.encode("utf-8", "ignore").decode().strip()  # JSON can hold half a surrogate pair
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                text = ""
            odd["files without text"] += not text
            odd["files named for another language"] += bool(text) and not path.name.upper().startswith(lang.upper())
            texts += [text] * bool(text)
    return texts, odd


def read_text(path, skip=None):
    """Documents of --text: a .jsonl file (the field "text" of each line), a folder of .txt files, or any other
    file, a document a line. UTF-8. Returns (texts, Counter of what is odd)."""
    texts, odd, path = [], Counter(), Path(path)
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*.txt") if f.is_file())
    if not files:
        raise UserError(f"{path}: neither a file nor a folder with .txt files; --text names documents to train on")
    rows = path.suffix.lower() in (".jsonl", ".ndjson")
    with progress(f"text {path.name}", sum(f.stat().st_size for f in files), "B") as bar:
        for file in files:
            with open(file, "rb") as f:
                for n, line in enumerate([f.read()] if path.is_dir() else f, 1):
                    bar.update(len(line))
                    line = line.removeprefix(b"\xef\xbb\xbf") if n == 1 else line
                    try:
                        text = line.decode().strip()
                        if rows and text:
                            text = json.loads(text)["text"].encode("utf-8", "ignore").decode().strip()
                    except UnicodeDecodeError as e:
                        n += line[: e.start].count(b"\n")
                        fault(skip, file.name, f"{file}, row {n}: byte 0x{line[e.start]:02x} is not UTF-8")
                        continue
                    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                        fault(skip, file.name, f'{file}, row {n}: not a JSON object with a field "text"')
                        continue
                    odd["empty texts"] += not text
                    texts += [text] * bool(text)
    return texts, odd


def grams(text):
    """Hashes of the runs of GRAM words of a text: distinct, uint64. A word is letters and digits, in any case."""
    words = np.array([hash(w) for w in re.findall(r"[^\W_]+", text.casefold())], np.int64).view(np.uint64)
    n = len(words) - GRAM + 1
    return np.unique(mix(*(words[i : i + n] for i in range(GRAM)))) if n > 0 else words[:0]


def common(texts, others):
    """For each of texts, the indices of those of `others` that it stands in, or that stand in it.

    So it is if at least half of the shorter one's runs of GRAM words are in the other. What has fewer than FEWEST
    runs is too short to tell.
    """
    runs = [grams(other) for other in others]
    size = np.array([len(g) for g in runs], np.int64)
    owner, runs = np.repeat(np.arange(len(runs)), size), np.concatenate([*runs, np.zeros(0, np.uint64)])
    order = np.argsort(runs, kind="stable")
    owner, runs = owner[order], runs[order]
    for text in texts:
        mine = grams(text)
        first, end = (np.searchsorted(runs, mine, side) for side in ("left", "right"))
        shared = np.bincount(owner[ragged(first, end - first)], minlength=len(size))
        shorter = np.minimum(size, len(mine))
        yield np.flatnonzero((shorter >= FEWEST) & (2 * shared >= shorter))


def corpus_texts(place):
    """The texts of an evaluation corpus, whatever its format: a brat .txt, a document of PubTator or BioC, or the words
    of a file of columns (the first one, or the third if tokens are numbered), all of it and each sentence."""
    texts, place = [], Path(place)
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    for file in (f for f in files if f.is_file() and f.name[0] != "." and f.suffix.lower() in CORPUS_FILES):
        text = re.sub(r"^(###MEDLINE:|-DOCSTART-).*", "", read_utf8(file), flags=re.M)
        first = next((line for line in text.splitlines() if line.strip()), "")
        if file.suffix.lower() == ".json":
            try:
                texts += [" ".join(p["text"] for p in d["passages"]) for d in json.loads(text)["documents"]]
            except (ValueError, KeyError, TypeError):
                raise UserError(f"exclude: {file}: not a collection of BioC in JSON; name another folder") from None
        elif titles := re.findall(r"^\d+\|t\|(.*)\n\d+\|a\|(.*)", text, re.M):
            texts += [" ".join(parts) for parts in titles]
        elif not file.with_suffix(".ann").is_file() and re.search(r"\t| (O|[BI]-\S+)$", first):
            parts = re.split(r"\n\s*\n", text)
            parts = [" ".join(re.findall(r"^(?:\d+\t\d+\t)?([^\t\n ]+)", part, re.M)) for part in parts]
            texts += [" ".join(parts), *parts]
        else:
            texts.append(text)
    if not texts:
        raise UserError(f"exclude: {place} is not, and does not hold, a file ending in {', '.join(CORPUS_FILES)}")
    return texts


def split_documents(texts, seed, share, keep_duplicates):
    """texts -> {part: texts}, in an order that is theirs alone. A text counts once unless keep_duplicates; its copies
    stay in one part."""
    texts = texts if keep_duplicates else set(texts)
    digests = [(int.from_bytes(hashlib.blake2b(t.encode(), digest_size=8).digest(), "little"), t) for t in texts]
    digests.sort()
    valid = uniform(seed, np.array([d for d, _ in digests], np.uint64)) < share
    return {p: [t for (_, t), v in zip(digests, valid) if v == (p == "valid")] for p in PARTS}


# ---------------------------------------------------------------- tokenizer


def train_tokenizer(texts, vocab_size, cased):
    """A WordPiece tokenizer (accents kept) from an iterator of lists of strings.

    tokenizers' WordPieceTrainer numbers its "##x" pieces in the order of a hash table, so that two
    runs differ. Its BPE trainer given those pieces up front learns the same merges and is deterministic,
    whatever the order of the texts; WordPiece then only needs the vocabulary.
    """
    texts = list(texts)
    normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.BertNormalizer(lowercase=not cased, strip_accents=False)]
    )
    words = {word for batch in texts for text in batch for word in text.split()}
    count = Counter(normalizer.normalize_str(" ".join(words)))  # over distinct words: the text itself takes long
    letters = sorted(c for c in count if not c.isspace())
    letters = sorted(sorted(letters, key=lambda c: -count[c])[: vocab_size // 4])
    first = [*SPECIALS, *RELATION_TOKENS, *("##" + c for c in letters)]
    bpe = Tokenizer(models.BPE(continuing_subword_prefix="##"))
    bpe.normalizer, bpe.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=first, initial_alphabet=letters, limit_alphabet=len(letters),
        continuing_subword_prefix="##", show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(models.WordPiece(bpe.get_vocab(), unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenization.add_ends(tokenizer, "[CLS]", "[SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1")
    add_specials(tokenizer, SPECIALS)
    return tokenizer


def add_specials(tokenizer, specials=()):
    """Makes `specials` and the relation tokens (fixed order) special, appending those that are new."""
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in (*specials, *RELATION_TOKENS)])


def load_tokenizer(folder):
    """The tokenizer of a checkpoint folder, relation tokens appended. Raises: UserError."""
    tokenizer = tokenization.load(folder)
    add_specials(tokenizer)
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    if len(set(ids)) < len(ids):  # the library numbers new tokens by how many there are, whatever the largest id is
        raise UserError(f"{folder}: its vocabulary has holes or repeats, so new tokens would share ids with old ones")
    return tokenizer


def special_ids(tokenizer):
    """{"pad", "cls", "sep", "mask", "unk": id, "relations": [ids], "hrel": id}. Raises: UserError."""
    *relations, hrel = map(tokenizer.token_to_id, RELATION_TOKENS)
    return tokenization.special_ids(tokenizer) | {"relations": relations, "hrel": hrel}


# ---------------------------------------------------------------- samples -> sequences of tokens


def ragged(start, length):
    """Positions start[i], start[i]+1, ... (length[i] of them) for all i, one after another."""
    end = np.cumsum(length)
    return np.repeat(start - (end - length), length) + np.arange(end[-1] if len(end) else 0)


class Writer:
    """Collects the examples of one part and writes them as one Arrow record batch.

    Columns: task (index into TASKS), lang (index into the languages), kind (of a tc example), cuis
    (list: the concepts, to prove the split), ids (list: tokens with [CLS] and [SEP]; documents without).
    """

    def __init__(self):
        self.columns = {name: [] for name in ("task", "lang", "kind", "cui", "cuis", "id", "ids")}

    def add(self, task, lang, cuis, n_cuis, ids, n_ids, kind=0):
        n = len(n_ids)
        row = [np.full(n, task), np.full(n, lang), np.broadcast_to(kind, n), cuis, n_cuis, ids, n_ids]
        for column, values in zip(self.columns.values(), row):
            column.append(values)

    def counts(self, lang):
        task, langs = np.concatenate(self.columns["task"]), np.concatenate(self.columns["lang"])
        return np.bincount(task[langs == lang], minlength=len(TASKS)).tolist()

    def bytes(self, lang):
        """What the examples of a language take on disk."""
        return sum(
            19 * len(n_ids) + 4 * (len(cuis) + len(ids))
            for langs, cuis, ids, n_ids in zip(*(self.columns[c] for c in ("lang", "cui", "id", "ids")))
            if len(langs) and langs[0] == lang
        )

    def write(self, f):
        col = {name: np.concatenate(values) for name, values in self.columns.items()}
        small = [pa.array(col[name].astype(np.uint8)) for name in ("task", "lang", "kind")]
        lists = [
            pa.LargeListArray.from_arrays(
                np.concatenate([[0], np.cumsum(col[n])]).astype(np.int64), pa.array(col[values].astype(np.int32))
            )
            for values, n in (("cui", "cuis"), ("id", "ids"))
        ]
        batch = pa.record_batch(small + lists, names=["task", "lang", "kind", "cuis", "ids"])
        with ipc.new_file(f, batch.schema) as out:
            out.write_batch(batch)


def used_terms(graph, samples):
    """Which strings the samples need: sorted indices into graph.terms. The others are never decoded."""
    used = np.zeros(len(graph.terms), bool)
    for (ep_h, _, _, ep_term), (_, tc_h, _, _, tc_term), (concepts, _) in samples:
        used[graph.first_term[np.concatenate([ep_h, tc_h, concepts[concepts >= 0]])]] = True
        used[np.concatenate([ep_term, tc_term])] = True
    return np.flatnonzero(used)


def write_graph_examples(writer, lang, graph, samples, names, seq_len, special):
    """Samples -> equation (1): [CLS] h [REL] t [SEP], and paths [CLS] h1 [R1] h2 [R2] ... [SEP].

    Sequences are gathered from `names`: (used_terms, their token ids one after another, the length of each).
    Long names are cut so that the relation and a part of both names always stay, paths at a whole name.
    """
    (ep_h, ep_r, ep_t, ep_term), (kind, tc_h, tc_r, tc_t, tc_term), (concepts, relations) = samples
    used, ids, length = names
    preferred = graph.first_term[:-1]
    h1, t1, h2, t2, walk = (
        np.searchsorted(used, terms)
        for terms in (preferred[ep_h], ep_term, preferred[tc_h], tc_term, preferred[concepts[concepts >= 0]])
    )
    start = np.cumsum(length) - length
    # The pool ends in the single tokens; a name without any token (control characters) is [UNK].
    single = np.array([special["cls"], special["sep"], special["unk"], *special["relations"]], np.int32)
    cls, sep, unk, rel = len(ids) + np.array([0, 1, 2, 3])
    pool = np.concatenate([ids, single])
    start, length = np.where(length == 0, unk, start), np.maximum(length, 1)

    for task, h, r, t, a, b, k in ((EP, ep_h, ep_r, ep_t, h1, t1, 0), (TC, tc_h, tc_r, tc_t, h2, t2, kind)):
        room = seq_len - 3
        left = np.minimum(length[a], np.maximum(room // 2, room - length[b]))
        right = np.minimum(length[b], room - left)
        one = np.ones(len(h), np.int64)
        starts = np.stack([one * cls, start[a], rel + r, start[b], one * sep], axis=1)
        lengths = np.stack([one, left, one, right, one], axis=1)
        cuis = graph.cui[np.stack([h, t], axis=1)].ravel()
        writer.add(task, lang, cuis, 2 * one, pool[ragged(starts.ravel(), lengths.ravel())], lengths.sum(1), k)

    n, most = relations.shape
    starts, lengths = np.full((n, 2 * most + 3), cls), np.zeros((n, 2 * most + 3), np.int64)
    at, of = np.nonzero(concepts >= 0)
    starts[at, 1 + 2 * of] = start[walk]
    lengths[at, 1 + 2 * of] = np.minimum(length[walk], (seq_len - 4) // 3)  # three names always fit
    at, of = np.nonzero(relations >= 0)
    starts[at, 2 + 2 * of], lengths[at, 2 + 2 * of] = rel + relations[at, of], 1
    fits = np.cumsum(lengths, axis=1)[:, 1::2] <= seq_len - 2  # up to and with each name
    kept = fits & (concepts >= 0)
    lengths[:, 1:-1:2] *= kept
    lengths[:, 2:-1:2] *= kept[:, 1:]
    lengths[:, 0], lengths[:, -1], starts[:, -1] = 1, 1, sep
    cuis = graph.cui[concepts[kept]]
    writer.add(LP, lang, cuis, kept.sum(1), pool[ragged(starts.ravel(), lengths.ravel())], lengths.sum(1))


def write_documents(writer, lang, texts, tokenizer, windows, seq_len):
    """Documents -> mlm examples without [CLS] and [SEP]; returns how many were too short to use.

    windows: "random" stores the whole document (training draws a window of seq_len - 2 tokens each
    epoch), "first" its beginning, "all" every window as an example of its own.
    """
    ids, length = tokenization.encode(tokenizer, texts, "documents")
    start, room = np.cumsum(length) - length, seq_len - 2
    start, length = start[length >= SHORTEST_DOCUMENT], length[length >= SHORTEST_DOCUMENT]
    dropped = len(texts) - len(start)
    if windows == "first":
        length = np.minimum(length, room)
    elif windows == "all":
        pieces = -(-length // room)
        offset = ragged(np.zeros(len(pieces), np.int64), pieces) * room
        offset = np.minimum(offset, np.maximum(np.repeat(length, pieces) - room, 0))  # the last one overlaps
        start, length = np.repeat(start, pieces) + offset, np.minimum(np.repeat(length, pieces), room)
    writer.add(MLM, lang, np.zeros(0), np.zeros(len(start), np.int64), ids[ragged(start, length)], length)
    return dropped


# ---------------------------------------------------------------- the build

WHAT_TO_GET = """
  UMLS: a release with META/MRCONSO.RRF, MRREL.RRF and MRSTY.RRF; free licence and download from the US National
        Library of Medicine, https://uts.nlm.nih.gov (the paper: 2022AB, "Metathesaurus Full Subset"); unzip it.
  E3C:  clinical text, CC BY-NC; git clone https://github.com/hltfbk/E3C-Corpus (the paper: version 2.0.0).
  Put or link them at ./umls and ./E3C-Corpus, or say: make data LANG=fr UMLS=/path/2022AB E3C=/path/E3C-Corpus
  (E3C=none builds without documents, ARGS="--text FILE" with others).
  'make demo' needs neither: it shows all of it on synthetic data."""


def sources(s):
    """The folders (umls, e3c or None) from the settings, the environment, or the default places."""
    umls = s.umls or os.environ.get("UMLS") or "umls"
    e3c = s.e3c or os.environ.get("E3C") or "E3C-Corpus"
    other = s.text and e3c == "E3C-Corpus" and not Path(e3c).is_dir()  # nobody asked for E3C
    e3c = None if e3c == "none" or other else e3c
    for what, folder in (("UMLS release", umls), ("E3C corpus", e3c)):
        if folder and not Path(folder).is_dir():
            raise UserError(f"no {what} in {folder}\n{WHAT_TO_GET}")
    return umls, e3c


def build(s):
    """Builds the data set of settings `s` (configs.Data) in a folder beside `out`, then moves it there."""
    began = time.time()
    langs = languages(s.lang)
    umls, e3c = sources(s)
    name = s.lang.lower() if len(langs) > 1 else langs[0]
    if s.tokenizer:  # not in the place of the data set whose tokenizer is trained
        name += f"-{Path(s.tokenizer).resolve().name}"
    out = Path(s.out or Path("datasets", name))
    if s.windows not in ("random", "first", "all"):
        raise UserError(f"windows = '{s.windows}' is not one of random, first, all")
    if s.text and len(langs) > 1 and "{lang}" not in s.text:
        raise UserError(f"text = '{s.text}': with several languages say where each one's is, as in texts/{{lang}}.txt")
    if not out.name:
        raise UserError(f"--out {out}: name a folder, such as datasets/{name}")
    if out.exists() and not Path(out, "manifest.json").is_file() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not a data set; choose another --out")
    try:
        holds = read_manifest(out)["languages"]
    except UserError:  # there is none, or one to be replaced
        holds = langs
    if holds != langs:
        raise UserError(f"{out} holds a data set of language {' '.join(holds)}, not {s.lang}; choose another --out")
    if not os.access(next(p for p in Path(os.path.realpath(out)).parents if p.exists()), os.W_OK):
        raise UserError(f"{out}: the folder cannot be written to; choose another --out")

    def say(text):
        print(f"[{time.time() - began:6.1f} s] {text}", flush=True)

    # What can be wrong is read first, what takes long later.
    tokenizer = load_tokenizer(s.tokenizer) if s.tokenizer else None
    excluded = [text for place in s.exclude.split(":") if place for text in corpus_texts(place)]
    documents, odd = {}, {}
    skip = Counter() if s.skip_bad_rows else None
    for lang in langs:
        texts, odd[lang] = read_e3c(e3c, lang, s.e3c_layers) if e3c else ([], Counter())
        if s.text:
            more = read_text(s.text.replace("{lang}", lang), skip)
            texts, odd[lang] = texts + more[0], odd[lang] + more[1]
        if excluded:
            found = common(progress(f"{lang}: texts to exclude", texts), excluded)
            kept = [text for text, same in zip(texts, found) if not len(same)]
            odd[lang]["excluded texts"], texts = len(texts) - len(kept), kept
        documents[lang] = split_documents(texts, s.seed, s.valid, s.keep_duplicates)
        odd[lang]["repeated texts"] = len(texts) - sum(map(len, documents[lang].values()))
        told = ", ".join(f"{n:,} {what}" for what, n in sorted(odd[lang].items()) if n or what == "excluded texts")
        say(f"{lang}: {sum(map(len, documents[lang].values())):,} documents" + (f" ({told})" if told else ""))

    wanted = {EP: s.prediction, LP: s.paths, TC: s.classification}
    wanted[TC] -= wanted[TC] % 2  # one half of them true
    sizes = {"train": wanted, "valid": {task: round(s.valid * n / 2) * 2 for task, n in wanted.items()}}
    samples, saving, tables = {}, [], out.parent / "tables"
    with ThreadPoolExecutor(1) as pool:  # the tables are written while samples are drawn
        graphs, left_out, nci = read_graphs(
            umls, langs, s, tables, say, lambda *graph: saving.append(pool.submit(save_tables, *graph))
        )
        left_out |= skip or {}
        if left_out:
            say("malformed rows left out: " + ", ".join(f"{file} {n:,}" for file, n in left_out.items()))
        if nci:
            told = ", ".join(f"{file} {n:,}" for file, n in nci.items())
            say(f"rows of concepts that the NCI Metathesaurus numbers (CL and digits) left out: {told}")
        for g in graphs:
            say(f"{g.lang}: {len(g.terms):,} terms, {len(g.cui):,} CUIs, {len(g.h):,} relations")
            samples[g.lang] = {part: sample(g, part, sizes[part], s) for part in PARTS}
        for saved in saving:
            saved.result()
    say("samples drawn" + (f", tables kept in {tables}" if saving else ""))

    used = [used_terms(g, samples[g.lang].values()) for g in graphs]
    names = [g.terms.take(pa.array(u)).to_pylist() for g, u in zip(graphs, used)]
    if not tokenizer:
        tokenizer = train_tokenizer([*names, *(d[p] for d in documents.values() for p in PARTS)], s.vocab_size, s.cased)
    special, vocab_size = special_ids(tokenizer), tokenization.size(tokenizer)
    say(f"tokenizer: {vocab_size:,} entries")

    writers = {part: Writer() for part in PARTS}
    report = {}
    for i, (lang, g) in enumerate(zip(langs, graphs)):
        tokens = used[i], *tokenization.encode(tokenizer, [" " + name for name in names[i]], f"{lang}: names")
        for part in PARTS:
            write_graph_examples(writers[part], i, g, samples[lang][part], tokens, s.seq_len, special)
            short_texts = write_documents(writers[part], i, documents[lang][part], tokenizer, s.windows, s.seq_len)
            odd[lang]["short texts"] += short_texts
            n = report.setdefault(lang, {})[part] = dict(zip(TASKS, writers[part].counts(i)))
            short = [f"{n[TASKS[t]]:,} {NAMES[t]} of {k:,}" for t, k in sizes[part].items() if n[TASKS[t]] < k]
            told = f" ({short_texts:,} texts of less than {SHORTEST_DOCUMENT} tokens left out)" if short_texts else ""
            say(f"{lang} {part}: {sum(n.values()):,} examples{told}")
            if short:
                say(f"{lang} {part}: the graph gave only {', '.join(short)}")
        report[lang] |= {"terms": len(g.terms), "cuis": len(g.cui), "relations": len(g.h), "odd": dict(odd[lang])}
        report[lang]["megabytes"] = round(writers["train"].bytes(i) / 1e6, 1)
        report[lang]["shares"] = shares(g, *samples[lang]["train"])

    for part in PARTS:
        if not any(n for c in report.values() for n in c[part].values()):
            raise UserError(f"the {part} part would be empty; use a larger release, sizes above 0 or another --valid")
    places = ("umls", "e3c", "text", "exclude", "out", "tokenizer", "semgroups")
    settings = {k: v for k, v in asdict(s).items() if k not in places}
    manifest = {
        "name": name, "languages": langs, "settings": settings,
        "special": special, "vocab_size": vocab_size,
        "source_bytes": {p.name: p.stat().st_size for n in RRF for p in find_rrf(umls, n)},
        "malformed_rows_left_out": left_out, "nci_rows_left_out": nci, "counts": report,
    }  # fmt: skip
    with replacing(out) as beside:
        for part, writer in writers.items():
            write_atomic(beside / f"{part}.arrow", writer.write)
        write_atomic(beside / "tokenizer.json", lambda f: f.write(tokenizer.to_str(pretty=True).encode()))
        manifest["sha256"] = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(beside.iterdir())}
        write_atomic(beside / "manifest.json", lambda f: f.write((json.dumps(manifest, indent=1) + "\n").encode()))
    print_tables(manifest)
    say(f"wrote {out}")


@contextmanager
def replacing(out):
    """A new folder beside `out` to write to, which takes the place of `out` if all went well.

    Another process that replaces a folder there waits for this one. What a killed one left is put right. Where `out`
    is a symbolic link it stays one, and the folder that it names is replaced.
    """
    out = Path(os.path.realpath(out)) if out.is_symlink() else out
    beside, old = (out.with_name(f".{out.name}.{what}") for what in ("building", "old"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(out.parent, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if old.exists() and not out.exists():  # killed between the two renames below
                old.rename(out)
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            yield beside
            shutil.rmtree(old, ignore_errors=True)
            if out.exists():
                out.rename(old)
            beside.rename(out)
        finally:
            if old.exists() and not out.exists():
                old.rename(out)
            for folder in (beside, old):
                shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
    except OSError as e:
        raise UserError(f"{out}: cannot be written: {e.strerror or e}") from None


def sample(graph, part, sizes, s):
    """The three samples of one part: ((h, r, t, tail term), (kind, h, r, t, tail term), paths)."""
    lang = int.from_bytes(graph.lang.encode())
    rng = {task: np.random.default_rng([s.seed, lang, PARTS.index(part), task]) for task in sizes}

    def allowed(h, t):
        return held_out(graph.cui[h], graph.cui[t], s.seed, s.valid) == (part == "valid")

    mine = np.flatnonzero(allowed(graph.h, graph.t))
    pool = Pool(mine, graph.strata[mine], len(graph.counts))
    ep = stratified(rng[EP], pool, graph.counts.sum(axis=1), sizes[EP])
    ep = graph.h[ep], graph.r[ep], graph.t[ep]
    tc = sample_classification(rng[TC], graph, pool, sizes[TC], allowed)
    paths = sample_paths(rng[LP], graph, pool, sizes[LP], s.max_relations)
    return (*ep, tail_terms(rng[EP], graph, *ep)), (*tc, tail_terms(rng[TC], graph, *tc[1:])), paths


def shares(graph, ep, tc, paths):
    """Shares of semantic groups (of heads and tails together) and relation types in the graph and in each sample,
    and how far each sample is from its frame: the largest difference of the share of a (head group, tail group).
    """
    n, counts = len(graph.groups), graph.counts
    crossing = (np.arange(n**2) // n != np.arange(n**2) % n)[:, None]
    concepts, relations = paths
    at, of = np.nonzero(relations >= 0)
    steps = concepts[at, of], relations[at, of], concepts[at, of + 1]
    without_sy = counts * (np.arange(len(RELATIONS)) != SY)
    columns = {"graph": (counts, counts)}  # name: (counts of the sample, of the triples that it is drawn from)
    for column, triples, frame in (
        ("entity prediction", ep[:3], counts),
        ("true", [x[tc[0] == TRUE] for x in tc[1:4]], counts),
        ("other pair", [x[tc[0] == OTHER_PAIR] for x in tc[1:4]], counts * crossing),
        ("other relation", [x[tc[0] == OTHER_RELATION] for x in tc[1:4]], counts * ~crossing),
        ("paths", steps, without_sy),
    ):
        columns[column] = graph.count(*triples), frame
    out = {"columns": list(columns), "groups": {}, "relations": {}, "largest_deviation": {}}
    part = {c: drawn / max(1, drawn.sum()) for c, (drawn, _) in columns.items()}
    by_group = {c: (p.sum(1).reshape(n, n).sum(0) + p.sum(1).reshape(n, n).sum(1)) / 2 for c, p in part.items()}
    for k in np.flatnonzero(by_group["graph"]).tolist():
        out["groups"][graph.groups[k]] = [round(float(p[k]), 6) for p in by_group.values()]
    for k, relation in enumerate(RELATIONS):
        out["relations"][relation] = [round(float(p[:, k].sum()), 6) for p in part.values()]
    for c, (drawn, frame) in columns.items():
        off = np.abs(part[c].sum(1) - frame.sum(1) / max(1, frame.sum())) * bool(drawn.sum())
        k = int(off.argmax())
        out["largest_deviation"][c] = [round(float(off[k]), 6), f"{graph.groups[k // n]} {graph.groups[k % n]}"]
    return out


def print_tables(manifest):
    """Tables 1 and 7 of the paper for this data set, and what the samples are made of."""

    def row(first, values, form="{:>11,}"):
        print(f"{first:<16}" + "".join(form.format(x) if not isinstance(x, str) else f"{x:>11}" for x in values))

    counts = manifest["counts"]
    table_1 = {
        lang: [*(c["train"][task] for task in ("tc", "ep", "lp", "mlm")), sum(c["train"].values()), c["megabytes"]]
        for lang, c in counts.items()
    }
    table_7 = {lang: [c["terms"], c["cuis"], c["relations"]] for lang, c in counts.items()}
    print("\nTable 1: training examples")
    row("", ("triple", "entity", "", "", "", ""))
    row("", ("classif.", "prediction", "paths", "documents", "total", "MB"))
    for table in (table_1, table_7):
        for lang, values in table.items():
            row(lang, values)
        if len(table) > 1:
            row("total", [sum(column) for column in zip(*table.values())])
        if table is table_1:
            print("\nTable 7: the knowledge graph")
            row("", ("terms", "CUIs", "relations"))
    for lang, c in manifest["counts"].items():
        print(f"\n{lang}: shares in the graph and in the training samples (%)")
        row("", [x.partition(" ")[0] for x in c["shares"]["columns"]])
        row("", [x.partition(" ")[2] for x in c["shares"]["columns"]])
        for kind in ("groups", "relations"):
            for k, values in c["shares"][kind].items():
                row(f"  {k}", [100 * v for v in values], "{:>11.2f}")
        off = c["shares"]["largest_deviation"]
        row("  deviation", [100 * off[x][0] for x in c["shares"]["columns"]], "{:>11.3f}")
        worst = max(off, key=lambda x: off[x][0])
        print(f"  largest deviation of a pair of groups from the triples drawn from: {off[worst][1]} in {worst}")
    for file, n in manifest["malformed_rows_left_out"].items():
        print(f"\n{file}: {n:,} malformed rows left out")
    for file, n in manifest["nci_rows_left_out"].items():
        print(f"\n{file}: {n:,} rows left out, of concepts that the NCI Metathesaurus numbers (CL and digits)")
    print()


def show(folder):
    """Prints the tables of a data set again and three examples of each task as the model sees them."""
    examples, manifest = Examples(folder, "train"), read_manifest(folder)
    tokenizer = Tokenizer.from_buffer(read_tokenizer(folder))
    print_tables(manifest)
    rng = np.random.default_rng(0)
    for task, name in enumerate(NAMES):
        rows = np.flatnonzero(examples.task == task)
        kinds = [rows[examples.kind[rows] == kind] for kind in (TRUE, OTHER_PAIR, OTHER_RELATION)]
        each = [1, 1, 1] if task == TC else [3, 0, 0]
        rows = np.concatenate([rng.choice(k, min(n, len(k)), replace=False) for k, n in zip(kinds, each)])
        batch = examples.batch(np.zeros(len(rows), np.int64), rows, 0, 0.15)
        print(name)
        for i in range(len(rows)):
            ids = batch.ids[batch.start[i] : batch.start[i] + batch.length[i]]
            mine = batch.row == i
            text, label = tokenizer.decode(ids.tolist(), skip_special_tokens=False), batch.label[mine].tolist()
            if task == TC:
                answer = ("true", "false: other concepts", "false: another relation")[examples.kind[rows[i]]]
            elif task == LP:
                answer = " ".join(RELATIONS[k] for k in label)
            else:
                answer = tokenizer.decode(label) if task == EP else " | ".join(tokenizer.decode([k]) for k in label)
            for line in (text, f"-> {answer}"):
                print(
                    textwrap.fill(
                        line[:600] + " ..." * (len(line) > 600), 110, initial_indent="  ", subsequent_indent="    "
                    )
                )
        print()


# ---------------------------------------------------------------- the data set at training time


SCHEMA = pa.schema(
    [(name, pa.uint8()) for name in ("task", "lang", "kind")]
    + [(name, pa.large_list(pa.int32())) for name in ("cuis", "ids")]
)
COUNTS = dict.fromkeys(TASKS, int)
MANIFEST = {  # what read_manifest asks for; see misfit
    "name": str,
    "languages": [str],
    "settings": {"seq_len": int},
    "special": dict.fromkeys(("pad", "cls", "sep", "mask", "unk", "hrel"), int) | {"relations": (int,) * 7},
    "vocab_size": int,
    "malformed_rows_left_out": {str: int},
    "nci_rows_left_out": {str: int},
    "counts": {
        str: {
            "train": COUNTS, "valid": COUNTS, "terms": int, "cuis": int, "relations": int, "megabytes": float,
            "shares": {
                "columns": [str], "groups": {str: [float]}, "relations": {str: [float]},
                "largest_deviation": {str: (float, str)},
            },
        }
    },
    "sha256": {"train.arrow": str, "valid.arrow": str, "tokenizer.json": str},
}  # fmt: skip


@dataclass
class Batch:
    """An effective batch after masking, flat: example i is ids[start[i] : start[i] + length[i]].

    One target per entry of row (ascending), col, task, label: the position to predict, and the token id (mlm, ep),
    the relation class 0..5 (lp) or true/false (tc, at [CLS]). counts: targets of each task.
    """

    ids: np.ndarray
    start: np.ndarray
    length: np.ndarray
    row: np.ndarray
    col: np.ndarray
    task: np.ndarray
    label: np.ndarray
    counts: np.ndarray
    pad: int


class Examples:
    """One part of a data set, mapped into memory: nothing is copied but the batches.

    rows: the examples of `tasks`, as rows of the file. An ablation leaves rows out and changes nothing of the others.
    """

    def __init__(self, folder, part, tasks=TASKS):
        self.manifest = read_manifest(folder)
        path = Path(folder, f"{part}.arrow")
        try:
            with open(path, "rb") as f:
                if hashlib.file_digest(f, "sha256").hexdigest() != self.manifest["sha256"][path.name]:
                    raise ValueError("not what the manifest says")
            file = ipc.open_file(mapped(path))
            if file.schema != SCHEMA or file.num_record_batches != 1:
                raise ValueError("not the columns of a data set")
            batch = file.get_batch(0)
            batch.validate(full=True)
            if any(column.null_count for column in batch.columns):
                raise ValueError("values are missing")
            self.task, self.lang, self.kind = (np.asarray(batch[c]) for c in ("task", "lang", "kind"))
            self.ids, self.offsets = np.asarray(batch["ids"].values), np.asarray(batch["ids"].offsets)
            self.cuis, self.cui_offsets = np.asarray(batch["cuis"].values), np.asarray(batch["cuis"].offsets)
            self.check()
        except (ValueError, pa.ArrowException) as e:
            raise UserError(f"{path}: damaged ({e}); build the data set again") from None
        except OSError as e:
            raise UserError(f"{path}: cannot be read: {e.strerror or e}") from None
        self.rows = np.flatnonzero(np.isin(self.task, [TASKS.index(t) for t in tasks]))
        self.seq_len = self.manifest["settings"]["seq_len"]
        self.special = self.manifest["special"]
        vocab = self.manifest["vocab_size"]
        self.relation = np.full(vocab, -1, np.int64)  # token id -> relation index
        self.relation[self.special["relations"]] = np.arange(len(RELATIONS))
        marks = {i for v in self.special.values() for i in (v if isinstance(v, list) else [v])}
        self.ordinary = np.array([i for i in range(vocab) if i not in marks])  # 10 % of section 3's masks

    def check(self):
        """Raises ValueError if numbers of the file are out of their range."""
        length, document = np.diff(self.offsets), self.task == MLM
        fits = document | (length >= 3) & (length <= self.manifest["settings"]["seq_len"])
        for what, x, most in (
            ("a task", self.task, len(TASKS)), ("a language", self.lang, len(self.manifest["languages"])),
            ("a kind of triple", self.kind, OTHER_RELATION + 1), ("a token", self.ids, self.manifest["vocab_size"]),
        ):  # fmt: skip
            if len(x) and not 0 <= int(x.min()) <= int(x.max()) < most:
                raise ValueError(f"{what} is out of range")
        if not fits.all():
            raise ValueError(f"example {np.argmin(fits)} has {length[np.argmin(fits)]} tokens")

    def __len__(self):
        return len(self.rows)

    def batch(self, epoch, rows, seed, mlm_probability):
        """The masked Batch of examples `rows`, each in its epoch (int arrays).

        A mask is a function of (seed, epoch, example, position) alone: whatever the batch, the
        micro-batch or the rank, an example is masked alike. MLM: mlm_probability of the tokens, of which
        80 % [MASK], 10 % a random token, 10 % kept; EP: all of the tail; LP: all relations -> [HREL].
        """
        task, special = self.task[rows].astype(np.int64), self.special
        begin, stored = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        key = mix(seed, epoch, rows)
        room = self.seq_len - 2
        document = task == MLM
        spare = np.maximum(stored - room, 0) * document  # another window each epoch
        begin = begin + (uniform(key, 0) * (spare + 1)).astype(np.int64) - document
        length = np.where(document, np.minimum(stored, room) + 2, stored)
        start = np.cumsum(length) - length
        row = np.repeat(np.arange(len(rows)), length)
        col = np.arange(len(row)) - start[row]
        ids = self.ids[np.clip(begin[row] + col, 0, len(self.ids) - 1)].astype(np.int64)
        last = col == length[row] - 1
        ids[document[row] & (col == 0)] = special["cls"]
        ids[document[row] & last] = special["sep"]

        relation = self.relation[ids]
        after = np.cumsum(relation >= 0)  # whether the relation token of this row has been passed
        after = (after - after[start][row] > 0) & (relation < 0) & ~last
        inner = (col > 0) & ~last
        token = mix(key[row], 1, col)
        target = (
            (document[row] & inner & (uniform(token, 0) < mlm_probability))
            | ((task[row] == EP) & after)
            | ((task[row] == LP) & (relation >= 0))
            | ((task[row] == TC) & (col == 0))
        )
        at = np.flatnonzero(target)
        kind = task[row[at]]
        label = np.select([kind == LP, kind == TC], [relation[at], self.kind[rows[row[at]]] == TRUE], ids[at])
        dice = uniform(token[at], 1)
        random = self.ordinary[(uniform(token[at], 2) * len(self.ordinary)).astype(np.int64)]
        masked = np.select([dice < 0.8, dice < 0.9], [special["mask"], random], ids[at])
        shown = [masked, special["mask"], special["hrel"]]
        ids[at] = np.select([kind == MLM, kind == EP, kind == LP], shown, ids[at])
        counts = np.bincount(kind, minlength=len(TASKS))
        return Batch(ids, start, length, row[at], col[at], kind, label, counts, special["pad"])


def misfit(value, form, name="it"):
    """What of a value from a JSON file is not of `form`, in words; "" if it fits.

    A form is a type (float takes int too; numbers are from 0 to 1e15), [form] a list, (form, ...) a list of that
    length, {key: form} an object with at least these keys, and {str: form} one with any.
    """
    if isinstance(form, type):
        right = type(value) is form or (form is float and type(value) is int)
        return "" if right and (form is str or 0 <= value < 1e15) else f"{name} is {str(value)[:20]}"
    if type(value) is not (dict if type(form) is dict else list):
        return f"{name} is {str(value)[:20]}"
    if type(form) is dict and str not in form:
        if missing := sorted(set(form) - set(value)):
            return f"no {', '.join(missing)} in {name}"
        parts = [(value[key], form[key], key) for key in form]
    elif type(form) is dict:
        parts = [(x, form[str], f"{name}: {key}") for key, x in value.items()]
    elif type(form) is tuple and len(value) != len(form):
        return f"{name} has {len(value)} values"
    else:
        parts = [(x, form[0] if type(form) is list else form[i], name) for i, x in enumerate(value)]
    return next((wrong for part in parts if (wrong := misfit(*part))), "")


def read_manifest(folder):
    """The manifest of a data set. Raises: UserError if there is none, or something in it is not what a build writes."""
    path = Path(folder, "manifest.json")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(manifest, dict):
            manifest.setdefault("nci_rows_left_out", {})  # older builds knew of none
        if wrong := misfit(manifest, MANIFEST):
            raise ValueError(wrong)
        special, vocab, seq_len = manifest["special"], manifest["vocab_size"], manifest["settings"]["seq_len"]
        if not 8 <= seq_len <= configs.LONGEST or vocab > 2**24:
            raise ValueError(f"seq_len is {seq_len}, vocab_size {vocab}")
        if max(*special["relations"], *(special[role] for role in MANIFEST["special"] if role != "relations")) >= vocab:
            raise ValueError("a special token is not in the vocabulary")
        if sorted(manifest["languages"]) != sorted(manifest["counts"]):
            raise ValueError("counts of other languages")
        for c in manifest["counts"].values():
            columns, *tables = (c["shares"][k] for k in ("columns", "groups", "relations", "largest_deviation"))
            rows = [*tables[0].values(), *tables[1].values()]
            if any(len(row) != len(columns) for row in rows) or set(tables[2]) != set(columns):
                raise ValueError("shares of other columns")
        return manifest
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} is not a data set (no manifest.json); build one with make data") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror or e}") from None
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: damaged or of another version ({e}); build the data set again") from None


def read_tokenizer(folder):
    """The bytes of a data set's tokenizer.json, checked against the manifest."""
    path, manifest = Path(folder, "tokenizer.json"), read_manifest(folder)
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != manifest["sha256"]["tokenizer.json"]:
        raise UserError(f"{path} is not the tokenizer this data set was built with; build the data set again")
    try:
        entries = tokenization.size(Tokenizer.from_buffer(content))
    except Exception as e:  # the tokenizers library raises plain Exception
        raise UserError(f"{path}: damaged ({e}); build the data set again") from None
    if entries != manifest["vocab_size"]:
        raise UserError(f"{path}: damaged ({entries:,} entries); build the data set again")
    return content


class Order:
    """The seeded order of examples: epoch after epoch, each a new permutation, cut into effective
    batches without regard to where an epoch ends, so that all have the same size."""

    def __init__(self, n, batch_size, seed):
        self.n, self.batch_size, self.seed, self.cache = n, batch_size, seed, {}

    def __call__(self, step):
        """(epochs, rows) of effective batch `step`, counted from 0: two int64 arrays (batch_size,)."""
        at = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = at // self.n
        self.cache = {e: self.cache[e] for e in self.cache if e >= epochs[0]}
        rows = np.empty(len(at), np.int64)
        for e in np.unique(epochs).tolist():
            if e not in self.cache:
                self.cache[e] = np.random.default_rng([self.seed, e]).permutation(self.n)
            rows[epochs == e] = self.cache[e][at[epochs == e] % self.n]
        return epochs, rows


def micro_batches(batch, budget, padding, rank=0, world=1):
    """This rank's part of an effective batch as padded rectangles of at most `budget` tokens.

    Examples are sorted by length, dealt to the ranks in turn, then cut where the next one would take a rectangle over
    the budget, or its padding over `padding` tokens (as much as another micro-batch costs in itself): rows of a
    rectangle have nearly the same length, and ranks nearly the same work.

    Yields dicts: ids (n, L) int64, length (n,), position (k,) of each target in ids.ravel(), task (k,),
    label (k,), example (k,) in the batch, targets sorted by task. Always at least one (empty ones keep ranks in step).
    """
    mine = np.argsort(batch.length, kind="stable")[rank::world]
    lengths = batch.length[mine].tolist()
    cuts, real = [0], 0  # real: tokens of the open rectangle that are not padding
    for i, length in enumerate(lengths):
        size, real = (i + 1 - cuts[-1]) * length, real + length
        if i > cuts[-1] and (size > budget or size - real > padding):
            cuts.append(i)
            real = length
    per_row = np.bincount(batch.row, minlength=len(batch.length))
    first = np.cumsum(per_row) - per_row
    for i, j in zip(cuts, [*cuts[1:], len(mine)]):
        rows = mine[i:j]
        width = int(lengths[j - 1]) if j > i else 1
        ids = np.full((len(rows), width), batch.pad, np.int64)
        ids[np.arange(width) < batch.length[rows][:, None]] = batch.ids[ragged(batch.start[rows], batch.length[rows])]
        targets = ragged(first[rows], per_row[rows])
        local = np.repeat(np.arange(len(rows)), per_row[rows])
        by_task = np.argsort(batch.task[targets], kind="stable")
        targets, local = targets[by_task], local[by_task]
        yield {
            "ids": ids, "length": batch.length[rows], "position": local * width + batch.col[targets],
            "example": batch.row[targets],
            "task": batch.task[targets], "label": batch.label[targets],
        }  # fmt: skip


if __name__ == "__main__":
    USAGE = """python data.py build [config.toml] --lang fr --umls DIR [--e3c DIR] [--key value ...]
       python data.py show DATASET"""

    def main(argv):
        if argv[:1] == ["show"]:
            show(configs.load("data", argv, USAGE, positionals=2)[1][1])
            return
        settings, (command,) = configs.load("data", argv, USAGE, positionals=1)
        if command != "build":
            raise UserError(f"unknown command '{command}'; usage: {USAGE}")
        build(settings)

    configs.run(main)
