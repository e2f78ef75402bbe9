"""Texts to tag, and their entities as JSON Lines, brat, CoNLL columns and a web page.

    for text in read_texts("notes.txt"): ...                  (id, text) of each document
    tally = write_tagged(tagged, settings, labels)              the files that finetune.py tag writes

Offsets are code points of the text as it is, as in brat. Documents are written in the order in which they were read.
"""

import html
import json
import os
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from configs import UserError
from support.files import (
    atomic_directory,
    check_output,
    check_output_file,
    progress,
    read_utf8,
    reject_device,
    write_all,
    write_atomic,
)  # fmt: skip
from support.labels import SCHEMES
from support.programs import standard_output
from support.reports import print_next
from support.texts import STANDARD_INPUT, decode_utf8, is_json_lines, parse_json_line, replace_surrogates, split_rows

# The test parts of all corpora with text are smaller. So each is tagged as one chunk, in the batches of its evaluation.
CHUNK_DOCUMENTS, CHUNK_CHARACTERS = 1024, 4_000_000
PAGE_CHARACTERS = 5_000_000  # text on a web page: browsers become slow with more
LINE_ENDS = re.compile("[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")  # what brat cannot have inside a fragment
# How the beginning of what was written before is recognised; see check_output.
RECORDS = (
    rb'\{"id": .*"entities": \[(\]\}\n|\{"start": )'
    rb"|-DOCSTART-\n\n(-DOCSTART-|[^\t\n]+\t\d+\t\d+\t[01]\.\d{4}\t|\Z)"
)
PAGE = rb"(?s)<!DOCTYPE html>.{,200}<title>Entities</title>"


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


# ---------------------------------------------------------------- texts


def read_texts(path):
    """Yields the Texts of a file with a document a line, of JSON Lines, of a folder of .txt, or of standard input.

    Nothing is stripped but line ends and a byte order mark. In a folder each file is a document, as brat counts it: its
    line ends and byte order mark stay. Raises: UserError with file and row.
    """
    try:
        if not path:
            yield from read_standard_input()
        elif Path(path).is_dir():
            yield from read_folder(Path(path))
        elif Path(path).exists():
            with open(path, "rb") as f:
                reject_device(f, path)
                yield from read_rows(f, path)
        else:
            raise UserError(f"{path}: neither a file nor a folder with .txt files")
    except OSError as e:
        raise UserError(f"{path or STANDARD_INPUT}: cannot be read: {e.strerror}") from None


def read_standard_input():
    """Yields a Text for each line of standard input."""
    if not sys.stdin:
        raise UserError("standard input is closed; name a file, or give a document a line: < notes.txt")
    if sys.stdin.isatty():
        print("reading standard input, a document a line; Ctrl-D ends it", file=sys.stderr)
    reject_device(sys.stdin.buffer, STANDARD_INPUT)
    yield from read_rows(sys.stdin.buffer, STANDARD_INPUT)


def read_folder(folder):
    """Yields a Text for each .txt file of a folder and those in it; its id is the path without .txt."""
    files = sorted(f for f in folder.rglob("[!.]*.txt") if f.is_file())
    if not files:
        raise UserError(f"{folder} holds no .txt file")
    for file in files:
        name = file.relative_to(folder).with_suffix("").as_posix()
        yield Text(replace_surrogates(name), read_utf8(file, bom="\ufeff"))


def read_rows(f, name):
    """Yields a Text for each line of a binary file, or of JSON Lines for each line that is not blank."""
    rows = ((row, decode_utf8(line, name, row)) for row, line in enumerate(split_rows(f), 1))
    start = []  # up to the first line that is not blank: it tells whether the file holds JSON Lines
    for row, text in rows:
        start.append((row, text))
        if text.strip():
            break
    is_json = is_json_lines(name, start[-1][1] if start else "")
    if not start or (is_json and not start[-1][1].strip()):
        raise UserError(f"{name} is empty; give a document a line: finetune.py tag MODEL < notes.txt")
    for row, text in chain(start, rows):
        if text.strip() or not is_json:
            yield parse_document(text, name, row) if is_json else Text(row, text)


def parse_document(line, name, row):
    """The Text of a line of JSON Lines: field "text", and "id" if it has one, else the row. Raises: UserError."""
    found = parse_json_line(line, name, row)
    key = found.get("id", row)
    if type(key) not in (str, int):
        raise UserError(f'{name}, row {row}: its "id" is neither text nor a whole number')
    return Text(replace_surrogates(key) if type(key) is str else key, replace_surrogates(found["text"]))


def in_chunks(texts):
    """Yields lists of up to CHUNK_DOCUMENTS Texts, which end earlier where they have CHUNK_CHARACTERS."""
    chunk, n_characters = [], 0
    for text in texts:
        chunk.append(text)
        n_characters += len(text.text)
        if len(chunk) == CHUNK_DOCUMENTS or n_characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, n_characters = [], 0
    if chunk:
        yield chunk


# ---------------------------------------------------------------- what is written


@dataclass
class Tally:
    """What was tagged so far, and the blocks of the web page."""

    n_documents: int = 0
    entities: Counter = field(default_factory=Counter)  # by type
    page: list = field(default_factory=list)
    page_characters: int = 0


def check_outputs(s):
    """Raises UserError for places that cannot be written to, or that hold what would be lost."""
    if s.format == "brat" and not s.out:
        raise UserError("brat has two files for each document; give a new folder for them with --out")
    inputs = s.input or 0, s.model
    if s.format == "brat":
        check_output(s.out, {}, *inputs)
    if not s.out and not sys.stdout:
        raise UserError("standard output is closed; give --out")
    for path, form in ((s.out if s.format != "brat" else "", RECORDS), (s.html, PAGE)):
        if path:
            check_output_file(path, form, *inputs)
    if s.out and s.html and Path(s.out).resolve() == Path(s.html).resolve():
        raise UserError(f"--out and --html are both {s.out}; choose two names")


def write_tagged(tagged, s, labels):
    """Writes TaggedTexts as they come, in the format and to the place of the settings, and the page if asked for.

    Args: s: a configs.Tag. labels: of the tagger, whose types have a colour each. Returns: a Tally.
    """
    tally, types = Tally(), types_of(labels)
    counted = count(tagged, tally, types if s.html else None)
    if s.format == "brat":
        with atomic_directory(s.out, {}) as folder:
            for document in counted:
                write_brat(folder, document)
    elif s.out:
        write_atomic(s.out, lambda f: f.writelines(FORMATS[s.format](document).encode() for document in counted))
    else:
        out = None if s.html and sys.stdout.isatty() else standard_output()  # who asks for a page wants no lines there
        for document in counted:
            if out:
                write_all(out, FORMATS[s.format](document).encode())
    if s.html:
        page = format_page(tally, types, s.model)
        write_atomic(s.html, lambda f: f.write(page.encode()))
    return tally


def count(tagged, tally, types):
    """Yields TaggedTexts, adding each to the Tally; with a progress bar. types: of the page, None for no page."""
    with progress("tagged", None, "doc") as bar:
        for document in tagged:
            tally.n_documents += 1
            tally.entities.update(entity.type for entity in document.entities)
            if types is not None and tally.page_characters < PAGE_CHARACTERS:
                tally.page_characters += len(document.text)
                tally.page.append(format_block(document, types))
            yield document
            bar.update()


def find_tagger(folder):
    """The folder of a tagger: the one that was given, or model/ in it, as a results folder has it."""
    inner = Path(folder, "model")
    return str(inner) if not Path(folder, "config.json").exists() and inner.is_dir() else folder


def print_tally(tally, began, s):
    """The last lines of a run, on standard error. began: time.monotonic() when it began. s: a configs.Tag."""
    rate = tally.n_documents / max(time.monotonic() - began, 1e-9)
    print(
        f"{tally.n_documents:,} documents, {tally.entities.total():,} entities, {rate:,.1f} documents/s",
        file=sys.stderr,
    )
    for path in filter(None, (s.out, s.html)):
        print(f"wrote {path}", file=sys.stderr)
    if s.out and s.format == "jsonl":
        print_next(("python kgi.py link CHECKPOINT {} --out links.jsonl", s.out), file=sys.stderr)


def print_scheme(scheme, beginnings):
    """Says on standard error how the labels of a tagger of others were read.

    Args: scheme: BIOES, BILOU or "". beginnings: {prefix: how many entities begin with it}. With IOB1 most begin with
    I-, and with IOB2 those that a model begins so by mistake.
    """
    total, known = beginnings.total(), ("B-", "S-", "U-")
    others = {prefix: n for prefix, n in sorted(beginnings.items()) if prefix not in known}
    either = "IOB1" if 2 * beginnings["I-"] > total else "IOB2" if total else "IOB1 or IOB2"
    how = "".join(f"; {n:,} of {total:,} entities begin with {prefix}" for prefix, n in others.items())
    print(f"the labels were read as {scheme or either}{how}", file=sys.stderr)


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
        kind, fragments = re.sub(r"\s", "_", entity.type), fragments_of(document.text, entity)
        places = ";".join(f"{a} {b}" for a, b in fragments)
        words = " ".join(document.text[a:b] for a, b in fragments)
        lines.append(f"T{i}\t{kind} {places}\t{words}\n#{i}\tAnnotatorNotes T{i}\tscore {entity.score}\n")
    path.write_bytes(document.text.encode())
    path.with_name(path.name.removesuffix(".txt") + ".ann").write_bytes("".join(lines).encode())


def fragments_of(text, entity):
    """The spans (start, end) of an entity's lines."""
    cuts = [m.span() for m in LINE_ENDS.finditer(text, entity.start, entity.end)]
    starts, ends = [entity.start, *(b for _, b in cuts)], [*(a for a, _ in cuts), entity.end]
    fragments = []
    for a, b in zip(starts, ends):
        line = text[a:b]
        a += len(line) - len(line.lstrip())
        if line.strip():
            fragments.append((a, a + len(line.strip())))
    return fragments


# ---------------------------------------------------------------- the web page

STYLE = """
body { max-width: 50rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.9 system-ui, sans-serif; color: #222; }
h1 { font-size: 1.3rem; margin: 0; overflow-wrap: anywhere; }
.legend { position: sticky; top: 0; max-height: 40vh; overflow: auto; padding: .6rem 0; background: #fff;
  border-bottom: 1px solid #ddd; display: flex; flex-wrap: wrap; gap: .3rem .6rem; align-items: center; }
.legend label { padding: 0 .4rem; border-radius: .3rem; font-size: .9rem; overflow-wrap: anywhere; }
.legend input { margin: 0 .3rem 0 0; vertical-align: middle; }
.note, h2 { font-size: .8rem; color: #666; }
.note, .score { width: 100%; }
h2 { margin: 1.2rem 0 0; font-weight: normal; }
p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
mark { padding: .15rem .3rem; border-radius: .3rem; color: inherit; box-decoration-break: clone;
  -webkit-box-decoration-break: clone; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
mark small { margin-left: .35rem; font-size: .7rem; font-weight: 600; color: #444; user-select: none; }
mark.off { padding: 0; background: none; }
.off small, [hidden] { display: none; }
"""

SLIDER = """<label class="score" hidden><input type="range" min="0" max="1" step="0.01" value="0">
score <output></output></label>"""

# Without it the page shows all entities, and no controls.
SCRIPT = """
const marks = document.querySelectorAll("mark"), boxes = document.querySelectorAll("[type=checkbox]");
const slider = document.querySelector("[type=range]"), shown = document.querySelector("output");
function update() {
  const on = new Set([...boxes].filter(box => box.checked).map(box => box.value));
  let n = 0;
  for (const mark of marks) {
    const off = !on.has(mark.classList[0]) || mark.dataset.score < +slider.value;
    mark.classList.toggle("off", off);
    n += !off;
  }
  shown.value = `${(+slider.value).toFixed(2)} or more: ${n.toLocaleString("en")} shown`;
}
for (const control of document.querySelectorAll("[hidden]")) control.hidden = false;
document.querySelector(".legend").addEventListener("input", update);
update();
"""


def types_of(labels):
    """{type: its number} of a tagger's labels, B- and the like left out."""
    kinds = dict.fromkeys(label[2:] if label[:2] in SCHEMES else label for label in labels if label != "O")
    return {kind: i for i, kind in enumerate(kinds)}


def format_block(document, types):
    """A document as HTML, each entity in a <mark> with its type behind it and its score as a tooltip."""
    parts, end = [], 0
    for entity in document.entities:
        words, kind = html.escape(document.text[entity.start : entity.end]), html.escape(entity.type)
        parts.append(html.escape(document.text[end : entity.start]))
        attributes = f'class="t{types[entity.type]}" data-score="{entity.score}" title="{kind}, score {entity.score}"'
        parts.append(f"<mark {attributes}>{words}<small>{kind}</small></mark>")
        end = entity.end
    parts.append(html.escape(document.text[end:]))
    return f"<h2>{html.escape(str(document.id))}</h2>\n<p>{''.join(parts)}</p>\n"


def format_page(tally, types, model):
    """One page that needs no other file: a legend with counts, whose entries hide a type, then the documents.

    Args: types: as types_of gives them. model: the folder of the tagger.
    """
    # Hues a golden angle apart: neighbours differ, however many types there are.
    colours = "".join(f".t{i} {{ background: hsl({round(50 + 137.5 * i) % 360} 80% 86%); }}\n" for i in types.values())
    legend = "".join(
        f'<label class="t{i}"><input type="checkbox" value="t{i}" checked hidden>'
        f"{html.escape(kind)} {tally.entities[kind]:,}</label>\n"
        for kind, i in types.items()
        if tally.entities[kind]
    )
    shown = f"the first {len(tally.page):,} of " if len(tally.page) < tally.n_documents else ""
    note = (
        f"{shown}{tally.n_documents:,} documents, {tally.entities.total():,} entities, tagged by {tagger_name(model)}"
    )
    return (
        '<!DOCTYPE html>\n<html>\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n'
        f"<title>Entities</title>\n<style>{STYLE}{colours}</style>\n</head>\n<body>\n<h1>Entities</h1>\n"
        f'<div class="legend">\n<span class="note">{html.escape(note)}</span>\n{SLIDER}\n{legend}</div>\n'
        f"{''.join(tally.page)}<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def tagger_name(tagger):
    """The name of a tagger's folder to show; of RESULTS/model it is that of RESULTS and of the folder around it."""
    path = Path(os.path.abspath(tagger))
    return replace_surrogates("/".join(path.parts[-3:-1]) if path.name == "model" else path.name)
