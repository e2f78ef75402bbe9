"""Linked mentions as JSON Lines, a table (TSV), brat, and CoNLL columns.

JSON Lines and tables have all concepts of a mention, brat and columns the nearest one alone.
"""

import csv
import io
import re
from functools import partial
from typing import NamedTuple

from beyond.mentions import align_mentions
from beyond.tagged import write_brat
from support.codes import id_of_code
from support.files import atomic_directory, name_of, to_json
from support.programs import write_output
from support.texts import replace_surrogates

COLUMNS = "document start end mention type rank id name matched group similarity tied codes".split()
# Recognises the beginning of earlier outputs (files.check_output). Records without a mention may come first.
LINKS = (
    rb'(\{.*"entities": \[\].*\n)*(\{.*"concepts": \[|\Z)|' + "\t".join(COLUMNS).encode() + rb"\n"
    rb"|-DOCSTART-\n\n(-DOCSTART-|[^\t\n]+\t\d+\t\d+\t(_|\d\.\d{4})\t[^\t\n]+\t(O\n|[BI]-)|\Z)"
)


class LinkedEntity(NamedTuple):
    """A stretch of text with its concepts."""

    start: int
    end: int
    type: str
    score: float | None  # of the tagger
    concepts: list  # as link.link_mentions writes them
    tied: int


class LinkedText(NamedTuple):
    """A document with linked entities."""

    id: str | int
    text: str
    entities: list


def linked_texts(records):
    """Yields a LinkedText for each record; its id is its number if it has none."""
    for number, record in enumerate(records, 1):
        entities = [
            LinkedEntity(e["start"], e["end"], e["type"], e.get("score"), e["concepts"], e["tied"])
            for e in record["entities"]
        ]
        yield LinkedText(record.get("id", number), record["text"], entities)


def one_line(value):
    """A value as text for a column: with single blanks, "" for None."""
    return " ".join(replace_surrogates("" if value is None else str(value)).split())


def format_jsonl(records):
    """A line of JSON for each record."""
    return "".join(replace_surrogates(to_json(record, ensure_ascii=False)) + "\n" for record in records)


def format_tsv(records):
    """A table with COLUMNS: a row for each concept of a mention, and one for a mention without any.

    A field with a quotation mark is in quotation marks, as spreadsheets and csv readers have it.
    """
    out = io.StringIO()
    table = csv.writer(out, "excel-tab", lineterminator="\n")
    table.writerow(COLUMNS)
    for number, record in enumerate(records, 1):
        for m in record.get("entities", [record]):
            place = [record.get("id", number), m.get("start"), m.get("end"), m["text"], m.get("type")]
            for rank, concept in enumerate(m["concepts"], 1):
                of_sources = concept.get("codes", {}).items()
                codes = " ".join(id_of_code(source, code) for source, found in of_sources for code in found)
                link = [concept[key] for key in ("id", "name", "matched", "group", "similarity")]
                table.writerow(map(one_line, [*place, rank, *link, m["tied"], codes]))
            if not m["concepts"]:
                table.writerow(map(one_line, [*place, *[None] * (len(COLUMNS) - len(place))]))
    return out.getvalue()


def format_conll(records):
    """Columns, a TAB between them: word, start, end, the tagger's score, id of the nearest concept, label in IOB2.

    Words and documents are those of beyond.tag. Score and id are _ outside of entities, and if an entity has none.
    """
    lines = []
    for document in linked_texts(records):
        lines.append("-DOCSTART-\n\n")
        aligned = align_mentions(document.text, [(e.start, e.end) for e in document.entities])
        for word, (a, b), label in zip(aligned.tokens, aligned.spans, aligned.labels):
            score = concept = "_"
            if label != "O":
                entity = document.entities[int(label[2:])]
                label = label[:2] + entity.type
                score = "_" if entity.score is None else f"{entity.score:.4f}"
                concept = re.sub(r"\s", "_", entity.concepts[0]["id"]) if entity.concepts else "_"
            lines.append(f"{word}\t{a}\t{b}\t{score}\t{concept}\t{label}\n")
        lines.append("\n" * bool(aligned.tokens))
    return "".join(lines)


def format_reference(vocabulary, i, entity):
    """The lines of brat for entity number i: a reference to the nearest concept, and a note of the scores."""
    said, lines = [] if entity.score is None else [f"score {entity.score}"], ""
    if entity.concepts:
        nearest = entity.concepts[0]
        lines = f"N{i}\tReference T{i} {reference(nearest['id'], vocabulary)}\t{one_line(nearest['name'])}\n"
        said.append(f"similarity {nearest['similarity']}")
        said += [f"{entity.tied} more equally near"] * bool(entity.tied)
    return lines + f"#{i}\tAnnotatorNotes T{i}\t{', '.join(said)}\n" * bool(said)


def reference(concept, vocabulary):
    """An id as brat has it: UMLS:C0024586. A prefix is kept (OMIM:215600), and other ids get that of `vocabulary`."""
    concept = re.sub(r"\s", "_", concept)
    if re.fullmatch(r"C\d{7}", concept):
        return f"UMLS:{concept}"
    return concept if re.match(r"[A-Za-z]\w*:.", concept) else f"{vocabulary}:{concept}"


FORMATS = {"jsonl": format_jsonl, "tsv": format_tsv, "conll": format_conll}


def write_links(s, records):
    """Writes linked records in the format and to the place of link.Link, whole or not at all, or to standard output."""
    if s.format != "brat":
        write_output(s.out, FORMATS[s.format](records).encode())
        return
    vocabulary = re.sub(r"\W", "_", name_of(s.dictionary).split(".")[0])  # of a data set all ids are CUIs
    with atomic_directory(s.out, {}) as folder:
        for document in linked_texts(records):
            write_brat(folder, document, partial(format_reference, vocabulary))
