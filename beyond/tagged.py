"""Texts to tag, and tagged texts in the formats of other tools: JSON Lines, columns, brat, Doccano and more."""

import json
import re
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from configs import UserError
from support import texts
from support.files import check_output, read_utf8, reject_device
from support.labels import BREAKS_COLUMNS
from support.programs import check_destination

EXAMPLE = "python -m beyond.tag MODEL < notes.txt"
LINE_END = re.compile(r"\n|\r(?!\n)")  # the last character of one
FRAGMENT = re.compile(r"\S(?:[^\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]*\S)?")  # brat has neither line ends nor TABs in one
# Recognises the beginning of earlier outputs (files.check_output). Files of Doccano and PubTator are never replaced,
# because files that people have annotated look the same.
RECORDS = (
    rb'\{"id": .*"entities": \[(\]\}\n|\{"start": )'
    rb"|-DOCSTART-\n\n(-DOCSTART-|[^\t\n]+\t\d+\t\d+\t[01]\.\d{4}\t|\Z)"
    rb'|\[\n(\{"data": \{"id": .*"predictions": \[|\n\]\n)'
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


def format_doccano(document):
    """A line of JSON Lines as Doccano imports sequence labelling, with "label" as its column of labels.

    Offsets are code points, so grapheme clusters must not count as one character there.
    """
    label = [[e.start, e.end, e.type] for e in document.entities]
    return json.dumps({"id": document.id, "text": document.text, "label": label}, ensure_ascii=False) + "\n"


def format_labelstudio(document):
    """A task of Label Studio with predictions, for its template of named entities (from_name label, to_name text).

    Offsets are code points: its editor converts the UTF-16 units of JavaScript (charsToCodePoints), and counts CR LF as
    two characters. The score of the task is the mean of its entities.
    """
    result = []
    for i, e in enumerate(document.entities):
        value = {"start": e.start, "end": e.end, "text": document.text[e.start : e.end], "labels": [e.type]}
        places = {"id": str(i), "from_name": "label", "to_name": "text", "type": "labels"}
        result.append(places | {"value": value, "score": e.score})
    prediction = {"model_version": "beyond.tag", "result": result}
    if result:
        prediction["score"] = round(sum(e.score for e in document.entities) / len(result), 4)
    task = {"data": {"id": document.id, "text": document.text}, "predictions": [prediction]}
    return json.dumps(task, ensure_ascii=False)


def format_pubtator(document):
    """A block of PubTator: the first line is the title, the rest the abstract, and an entity has no id.

    Offsets are code points of title and abstract, with a line end between. Other line ends and TABs become blanks, so
    that no offset moves. Blanks, bars and per cent signs in the id are %20, %7C and %25. An empty id is %.
    """
    name = re.sub(r"[\s|%]", lambda m: quote(m[0]), str(document.id)) or "%"
    text = BREAKS_COLUMNS.sub(" ", document.text)
    line_end = LINE_END.search(document.text)
    end = line_end.start() if line_end else len(text)
    rows = [f"{name}\t{e.start}\t{e.end}\t{text[e.start : e.end]}\t{e.type}\n" for e in document.entities]
    return "".join([f"{name}|t|{text[:end]}\n{name}|a|{text[end + 1 :]}\n", *rows, "\n"])


FORMATS = {
    "jsonl": format_json, "conll": format_conll, "doccano": format_doccano, "labelstudio": format_labelstudio,
    "pubtator": format_pubtator,
}  # fmt: skip
FRAMES = {"labelstudio": ("[\n", ",\n", "\n]\n")}  # before the first, between, and after the last document


def format_documents(documents, form):
    """Yields the text of a file of TaggedTexts in one of FORMATS, part by part."""
    opening, between, closing = FRAMES.get(form, ("", "", ""))
    yield opening
    for i, document in enumerate(documents):
        yield between * (i > 0) + FORMATS[form](document)
    yield closing


def check_format_destination(form, out, ours, *inputs):
    """Raises UserError for a place that a format cannot be written to; arguments of check_destination after `form`."""
    if form != "brat":
        check_destination(out, ours, *inputs)
    elif not out:
        raise UserError("brat has two files for each document; give a new folder for them with --out")
    else:
        check_output(out, {}, *inputs)


def format_score(i, entity):
    """The note of brat to entity number i: its score."""
    return f"#{i}\tAnnotatorNotes T{i}\tscore {entity.score}\n"


def check_names(ids):
    """Raises UserError if ids of documents cannot be names of files, each another one."""
    seen = set()
    for name in map(str, ids):
        if "\0" in name or any(part.startswith(".") or not part for part in name.split("/")):
            raise UserError(f"the id {name[:60]!r} cannot be the name of a file, which brat needs")
        if name in seen:
            raise UserError(f"two documents have the id {name[:60]!r}; brat needs a file for each")
        seen.add(name)


def write_brat(folder, document, notes=format_score):
    """Writes <id>.txt and <id>.ann, where the lines `notes(i, entity)` follow that of entity i.

    An entity over a line break or a TAB has a fragment on either side, as brat itself has it.
    Raises: UserError if the id is no name of a file, or that of an earlier document.
    """
    check_names([document.id])
    path = folder / f"{document.id}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        raise UserError(f"two documents have the id {str(document.id)[:60]!r}; brat needs a file for each")
    lines = []
    for i, entity in enumerate(document.entities, 1):
        kind = re.sub(r"\s", "_", entity.type)
        fragments = [m.span() for m in FRAGMENT.finditer(document.text, entity.start, entity.end)]
        places = ";".join(f"{a} {b}" for a, b in fragments)
        words = " ".join(document.text[a:b] for a, b in fragments)
        lines.append(f"T{i}\t{kind} {places}\t{words}\n{notes(i, entity)}")
    path.write_bytes(document.text.encode())
    path.with_name(path.name.removesuffix(".txt") + ".ann").write_bytes("".join(lines).encode())
