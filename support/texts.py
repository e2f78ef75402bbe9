"""Documents to train on, and which texts overlap with others (contamination)."""

import json
import re
import sys
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np

from configs import UserError
from support.arrays import concat_ranges, splitmix64
from support.files import progress, read_bytes, read_utf8, reject_device
from support.rrf import report_bad_row
from support.umls import LANGUAGES

STANDARD_INPUT = "standard input"  # its name in messages
JSON_START = re.compile(r'\s*(\{\s*(["}]|$)|\[\s*(\{|\[\s*\[|$))')  # of an object, or of an array of objects
NGRAM_SIZE = 8  # words
MIN_NGRAMS = 5  # distinct n-grams of a text: with fewer, an overlap cannot be distinguished from chance


def read_e3c(folder, lang, layers):
    """Texts of data_collection/<Language>/layer<n>/*.json of the E3C corpus.

    Files without a text, or that are not JSON, are left out and counted. Files named for another language than their
    folder's (in French half of them, twins of the others) are counted and read like the rest.
    Returns: (texts, Counter of issues). Raises: UserError if a folder is not there or empty.
    """
    name = LANGUAGES.get(lang, ("", ""))[1]
    if not name:
        raise UserError(f"E3C has no documents in language {lang}; give E3C=none to build without documents")
    texts, issues = [], Counter()
    collection = Path(folder, "data_collection")
    if collection.is_dir() and not (collection / name).is_dir():
        raise UserError(f"no {name} in {collection}; give E3C=none (--e3c none) to build without documents")
    for place in (collection / name / f"layer{layer}" for layer in layers):
        if not place.is_dir():
            raise UserError(f"{place} not found; E3C must point to the folder that holds data_collection/")
        if not (files := sorted(place.glob("*.json"))):
            raise UserError(f"{place} holds no .json file; E3C must point to the corpus")
        for path in progress(f"E3C {name} {place.name}", files):
            try:
                text = clean_text(json.loads(read_bytes(path).decode("utf-8-sig"))["text"])
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                text = ""
            issues["files without text"] += not text
            issues["files named for another language"] += bool(text) and not path.name.upper().startswith(lang.upper())
            texts += [text] if text else []
    return texts, issues


def read_text(path, skipped=None):
    """Documents of --text, in UTF-8.

    JSON Lines have one in the field "text" of each line, a folder one in each .txt file, any other file one a line.

    Args: skipped: as in rrf.report_bad_row. Returns: (texts, Counter of issues). Raises: UserError with file and row.
    """
    texts, issues, path = [], Counter(), Path(path)
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*.txt") if f.is_file())
    if not files:
        raise UserError(f"{path}: neither a file nor a folder with .txt files; --text names documents to train on")
    with progress(f"text {path.name}", sum(f.stat().st_size for f in files), "B") as bar:
        for file in files:
            with open(file, "rb") as f:
                first_line = next(filter(bytes.strip, split_rows(f)), b"").decode("utf-8", "replace")
                is_json = path.is_file() and is_json_lines(file, first_line)
                f.seek(0)
                for row, content in enumerate([f.read()] if path.is_dir() else split_rows(f), 1):
                    bar.update(len(content) + 1)
                    try:
                        text = decode_utf8(content, file, row).removeprefix("\ufeff" * (row == 1)).strip()
                        text = clean_text(parse_json_line(text, file, row)["text"]) if text and is_json else text
                    except UserError as e:
                        report_bad_row(skipped, file.name, str(e))
                        continue
                    issues["empty texts"] += not text
                    texts += [text] if text else []
    return texts, issues


def split_rows(f):
    """Yields the lines of a binary file, without a byte order mark and their ends: LF, CR LF, or CR if it has no LF."""
    for i, line in enumerate(f):
        line = line if i else line.removeprefix(b"\xef\xbb\xbf")
        if i or line.endswith(b"\n"):
            yield line.removesuffix(b"\n").removesuffix(b"\r")
        else:  # the first line is the whole file
            yield from line.removesuffix(b"\r").split(b"\r")


def standard_input(what, example):
    """Standard input as a binary file; for messages, `what` is in a line ("a mention"), and an example of a command."""
    if not sys.stdin:
        raise UserError(f"standard input is closed; give {what} a line: {example}")
    if sys.stdin.isatty():
        print(f"reading standard input, {what} a line; Ctrl-D ends it", file=sys.stderr)
    reject_device(sys.stdin.buffer, STANDARD_INPUT)
    return sys.stdin.buffer


def read_lines(path, what, example):
    """The lines of a file (or .gz), or of standard input if `path` is "". Raises: UserError naming file and row."""
    if path:
        text = read_utf8(path)
        return text.removesuffix("\n").split("\n") if text else []
    rows = enumerate(split_rows(standard_input(what, example)), 1)
    return [decode_utf8(line, STANDARD_INPUT, row) for row, line in rows]


def decode_utf8(content, file, row):
    """Bytes as text. Raises: UserError naming the byte that is not UTF-8; `row` is where the bytes begin."""
    try:
        return content.decode()
    except UnicodeDecodeError as e:
        row += content[: e.start].count(b"\n")
        raise UserError(f"{file}, row {row}: byte 0x{content[e.start]:02x} is not UTF-8") from None


def is_json_lines(file, first_line=""):
    """Whether a file is to be read as JSON Lines: by its name, or by its first line. Pipes have no name that tells.

    A line that begins as JSON does is enough: if it is broken, or an array, an error says so. {fever} is plain text.
    """
    suffix = Path(str(file).lower().removesuffix(".gz")).suffix
    return suffix in (".jsonl", ".ndjson") or bool(JSON_START.match(first_line))


def parse_json_line(line, file, row):
    """The object in a line of JSON Lines. Raises: UserError if it is none, or has no text in its field "text"."""
    try:
        found = json.loads(line)
        if type(found) is dict and type(found.get("text")) is str:
            return found
    except (ValueError, RecursionError):
        pass
    raise UserError(f'{file}, row {row}: not a JSON object with a field "text"')


def clean_text(text):
    """A string of a JSON file without blanks at its ends; JSON can hold half a surrogate pair, which is no text."""
    return text.encode("utf-8", "ignore").decode().strip()


def replace_surrogates(text):
    """Text without halves of surrogate pairs, which JSON and file names can hold, and UTF-8 cannot; no offset moves."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


# ---------------------------------------------------------------- words


@cache
def word_patterns():
    """Two regular expressions: of words, and of words and any other visible character alone.

    A word is letters and digits with their marks (vowel signs, accents of decomposed text), joiners, and other format
    characters (a soft hyphen) between its letters. An underscore and U+FEFF are part of none. Python's re has no class
    of marks, so this one is made of ranges, which takes about 30 ms.
    """
    characters = [*map(chr, [0xAD, *range(0x300, 0x20000), *range(0xE0000, 0xE1000)])]  # other planes have none
    marks = ranges(c for c in characters if unicodedata.category(c)[0] == "M")
    formats = ranges(c for c in characters if unicodedata.category(c) == "Cf" and c != "\ufeff")
    plain = "(?![\xad\u0300-\U0010ffff])"  # spares most words the long classes
    word = f"[^\\W_]++(?:{plain}|(?:[^\\W_]|[{marks}\u200c\u200d]|[{formats}]+(?=[^\\W_]))*)"
    return re.compile(word), re.compile(f"{word}|[^\\s\ufeff](?:{plain}|[{marks}]*)")


def ranges(characters):
    """The inside of a class of a regular expression; the characters are in their order."""
    found = []
    for c in map(ord, characters):
        if found and found[-1][1] == c - 1:
            found[-1][1] = c
        else:
            found.append([c, c])
    return "".join(f"{chr(a)}-{chr(b)}" for a, b in found)


# ---------------------------------------------------------------- overlap


def ngram_hashes(text):
    """Hashes of the distinct NGRAM_SIZE-grams of words of a text, uint64. Neither case nor Unicode form tells words."""
    text = unicodedata.normalize("NFC", text.casefold())
    words = np.array([hash(w) for w in word_patterns()[0].findall(text)], np.int64).view(np.uint64)
    n = len(words) - NGRAM_SIZE + 1
    return np.unique(splitmix64(*(words[i : i + n] for i in range(NGRAM_SIZE)))) if n > 0 else words[:0]


def find_overlaps(texts, others):
    """Yields, for each of `texts`, the indices of those of `others` that it overlaps with.

    Two texts overlap if at least half of the n-grams of the shorter one are in the other. A text of fewer than
    MIN_NGRAMS n-grams (12 words) is too short to tell.
    """
    hashes = [ngram_hashes(other) for other in others]
    size = np.array([len(h) for h in hashes], np.int64)
    owner, hashes = np.repeat(np.arange(len(hashes)), size), np.concatenate([*hashes, np.zeros(0, np.uint64)])
    order = np.argsort(hashes, kind="stable")
    owner, hashes = owner[order], hashes[order]
    for text in texts:
        mine = ngram_hashes(text)
        first, end = (np.searchsorted(hashes, mine, side) for side in ("left", "right"))
        shared = np.bincount(owner[concat_ranges(first, end - first)], minlength=len(size))
        shorter = np.minimum(size, len(mine))
        yield np.flatnonzero((shorter >= MIN_NGRAMS) & (2 * shared >= shorter))
