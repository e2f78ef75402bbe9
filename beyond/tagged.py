"""Texts to tag, and tagged texts: JSON Lines, brat, CoNLL columns, and a document a line."""

import json
import re
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from configs import UserError
from support import texts
from support.files import read_utf8, reject_device

EXAMPLE = "python -m beyond.tag MODEL < notes.txt"
FRAGMENT = re.compile(r"\S(?:[^\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]*\S)?")  # brat has neither line ends nor TABs in one
# How the beginning of what was written before is recognised; see check_output.
RECORDS = (
    rb'\{"id": .*"entities": \[(\]\}\n|\{"start": )'
    rb"|-DOCSTART-\n\n(-DOCSTART-|[^\t\n]+\t\d+\t\d+\t[01]\.\d{4}\t|\Z)"
)


class Text(NamedTuple):
    """A document to tag."""

    id: str | int  # its file, the id of its JSON object, or else its row
    text: str


class Entity(NamedTuple):
    """A stretch of text of one type."""

    start: int  # character of the text
    end: int  # one past the last
    type: str
    score: float  # mean probability of the labels of its words


class TaggedText(NamedTuple):
    """A document with what was found in it."""

    id: str | int
    text: str
    spans: list  # (start, end) of each word
    labels: list  # of each word
    probabilities: list  # of these labels; with another scheme than IOB2, of the tagger's own names for them
    entities: list


# ---------------------------------------------------------------- texts to tag


def read_texts(path):
    """Yields the Texts of a file with a document a line, of JSON Lines, of a folder of .txt, or of standard input.

    Nothing is stripped but line ends and a byte order mark. In a folder each file is a document, as brat counts it: its
    line ends and byte order mark stay. Raises: UserError with file and row.
    """
    try:
        if not path:
            yield from read_rows(texts.standard_input("a document", EXAMPLE), texts.STANDARD_INPUT)
        elif Path(path).is_dir():
            yield from read_folder(Path(path))
        elif Path(path).exists():
            with open(path, "rb") as f:
                reject_device(f, path)
                yield from read_rows(f, path)
        else:
            raise UserError(f"{path}: neither a file nor a folder with .txt files")
    except OSError as e:
        raise UserError(f"{path or texts.STANDARD_INPUT}: cannot be read: {e.strerror}") from None


def read_folder(folder):
    """Yields a Text for each .txt file of a folder and those in it; its id is the path without .txt."""
    files = sorted(f for f in folder.rglob("[!.]*.txt") if f.is_file())
    if not files:
        raise UserError(f"{folder} holds no .txt file")
    for file in files:
        name = file.relative_to(folder).with_suffix("").as_posix()
        yield Text(texts.replace_surrogates(name), read_utf8(file, bom="\ufeff"))


def read_rows(f, name):
    """Yields a Text for each line of a binary file, or of JSON Lines for each line that is not blank."""
    rows = ((row, texts.decode_utf8(line, name, row)) for row, line in enumerate(texts.split_rows(f), 1))
    seen, first_text = [], ""  # up to the first line that is not blank: it tells whether the file holds JSON Lines
    while not first_text.strip() and (found := next(rows, None)):
        seen.append(found)
        first_text = found[1]
    is_json = texts.is_json_lines(name, first_text)
    if not seen or (is_json and not first_text.strip()):
        raise UserError(f"{name} is empty; give a document a line: {EXAMPLE}")
    for row, text in chain(seen, rows):
        if text.strip() or not is_json:
            yield parse_document(text, name, row) if is_json else Text(row, text)


def parse_document(line, name, row):
    """The Text of a line of JSON Lines: field "text", and "id" if it has one, else the row. Raises: UserError."""
    found = texts.parse_json_line(line, name, row)
    key = found.get("id", row)
    if type(key) not in (str, int):
        raise UserError(f'{name}, row {row}: its "id" is neither text nor a whole number')
    return Text(texts.replace_surrogates(key) if type(key) is str else key, texts.replace_surrogates(found["text"]))


# ---------------------------------------------------------------- tagged texts


def format_json(document):
    """A line of JSON Lines."""
    entities = [
        {"start": e.start, "end": e.end, "type": e.type, "text": document.text[e.start : e.end], "score": e.score}
        for e in document.entities
    ]
    return json.dumps({"id": document.id, "text": document.text, "entities": entities}, ensure_ascii=False) + "\n"


def format_conll(document):
    """Columns, a TAB between them: word, start, end, probability of its label, label, in IOB2.

    A blank line ends a document. Each begins with -DOCSTART-, so that one without a word is not lost.
    """
    words = zip(document.spans, document.labels, document.probabilities)
    rows = [f"{document.text[a:b]}\t{a}\t{b}\t{p:.4f}\t{label}\n" for (a, b), label, p in words]
    return "".join(["-DOCSTART-\n\n", *rows, "\n" * bool(rows)])


FORMATS = {"jsonl": format_json, "conll": format_conll}


def write_brat(folder, document):
    """Writes <id>.txt and <id>.ann; the score of an entity is a note to it.

    An entity over a line break or a TAB has a fragment on either side, as brat itself has it.
    Raises: UserError if the id is no name of a file, or that of an earlier document.
    """
    name = str(document.id)
    if "\0" in name or any(part.startswith(".") or not part for part in name.split("/")):
        raise UserError(f"the id {name[:60]!r} cannot be the name of a file, which brat needs")
    path = folder / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        raise UserError(f"two documents have the id {name[:60]!r}; brat needs a file for each")
    lines = []
    for i, entity in enumerate(document.entities, 1):
        kind = re.sub(r"\s", "_", entity.type)
        fragments = [m.span() for m in FRAGMENT.finditer(document.text, entity.start, entity.end)]
        places = ";".join(f"{a} {b}" for a, b in fragments)
        words = " ".join(document.text[a:b] for a, b in fragments)
        lines.append(f"T{i}\t{kind} {places}\t{words}\n#{i}\tAnnotatorNotes T{i}\tscore {entity.score}\n")
    path.write_bytes(document.text.encode())
    path.with_name(path.name.removesuffix(".txt") + ".ann").write_bytes("".join(lines).encode())
