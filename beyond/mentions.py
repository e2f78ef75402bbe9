"""Mentions that are linked: those of texts, one a line, or the entities of a tagger."""

import math
from collections import Counter
from unicodedata import normalize

from beyond.tagged import check_names
from configs import UserError
from support.formats import PUBTATOR_TEXT
from support.labels import align_entities, check_type, is_same_text
from support.texts import STANDARD_INPUT, is_json_lines, parse_json_line, read_lines, replace_surrogates

EXAMPLE = "python -m beyond.link runs/kgi-en < mentions.txt"
WITH_PLACES = ("brat", "conll")  # formats of links that need the places of entities in a text


def read_records(path, form="jsonl"):
    """The lines of a file or of standard input: objects of JSON Lines, and {"text": mention} of any other text.

    Blank lines of JSON Lines are left out; those of other text are mentions without a word, as each line has its link.

    Args: form: in which they are written later. Raises: UserError naming file and row, also for what it cannot hold.
    """
    name, lines = path or STANDARD_INPUT, read_lines(path, "a mention", EXAMPLE)
    first = next(filter(str.strip, lines), "")
    if PUBTATOR_TEXT.match(first):
        raise UserError(f"{name}: this is PubTator; give the JSON Lines of beyond.tag, or score a folder with --corpus")
    if is_json_lines(name, first):
        records = [parse_record(line, name, row) for row, line in enumerate(lines, 1) if line.strip()]
        rows = [row for row, line in enumerate(lines, 1) if line.strip()]
    else:
        records, rows = [{"text": line.strip()} for line in lines], range(1, len(lines) + 1)
    if not records:
        raise UserError(f"{name} is empty; give a mention a line: {EXAMPLE}")
    if form in WITH_PLACES:
        for row, record in zip(rows, records):
            check_record(record, form, f"{name}, row {row}")
    if form == "brat":
        check_names(record.get("id", number) for number, record in enumerate(records, 1))
    return records


def parse_record(line, name, row):
    """The object in a line of JSON Lines, with a text, as its entities have if there are any. Raises: UserError."""
    record = parse_json_line(line, name, row)
    if type(record.get("label")) is list:
        raise UserError(f"{name}, row {row}: this is Doccano's form; give the JSON Lines of beyond.tag")
    entities = record.get("entities", [])
    if type(entities) is not list or any(type(e) is not dict or type(e.get("text")) is not str for e in entities):
        raise UserError(f'{name}, row {row}: "entities" is not a list of objects with a field "text"')
    return record


def check_record(record, form, where):
    """Raises UserError, which begins with `where`, if brat or columns cannot hold a record.

    Halves of surrogate pairs, which their files cannot hold either, are replaced; no offset moves.
    """
    if "entities" not in record:
        raise UserError(f"{where}: no entities with their places in a text, which {form} needs; give --format tsv")
    if type(record.get("id", 0)) not in (str, int):
        raise UserError(f'{where}: its "id" is neither text nor a whole number')
    record |= {key: replace_surrogates(record[key]) for key in ("id", "text") if type(record.get(key)) is str}
    for i, entity in enumerate(record["entities"]):
        check_entity(entity, record["text"], f"{where}, entity {i + 1}")
    if form == "conll":
        spans = [(e["start"], e["end"]) for e in record["entities"]]
        labels = {*align_mentions(record["text"], spans).labels}
        if lost := [i for i in range(len(spans)) if f"B-{i}" not in labels]:
            words = record["entities"][lost[0]]["text"]
            what = f"entity {lost[0] + 1}, {words[:40]!r}, has no word of its own, which columns need"
            raise UserError(f"{where}: {what}; give --format brat or tsv")


def check_entity(entity, text, where):
    """Raises UserError, which begins with `where`, if an entity has no type, or is not at its place in the text."""
    entity |= {key: replace_surrogates(entity[key]) for key in ("text", "type") if type(entity.get(key)) is str}
    a, b = entity.get("start"), entity.get("end")
    if type(a) is not int or type(b) is not int or not 0 <= a < b <= len(text):
        raise UserError(f'{where}: no "start" and "end" within its text of {len(text):,} characters')
    if not is_same_text(text[a:b], entity["text"]):
        raise UserError(f"{where}: {a} {b} is {text[a:b][:40]!r} in the text, not {entity['text'][:40]!r}")
    if type(entity.get("type")) is not str or not entity["type"].strip():
        raise UserError(f'{where}: no "type"')
    check_type(entity["type"], where)
    score = entity.get("score")
    if score is not None and (type(score) not in (int, float) or not math.isfinite(score)):
        raise UserError(f'{where}: its "score" is no number')


def align_mentions(text, spans):
    """The Document of a text as beyond.tag has its words; the type in a label is the index of one of the spans."""
    return align_entities("", text, [(str(i), (span,)) for i, span in enumerate(spans)], None, Counter())


def mentions_of_records(records):
    """The objects that get concepts, and what is looked up: [(object, its text in NFC with single blanks)].

    These are the "entities" of a record, as beyond.tag writes them, or the record itself if it has none.
    """
    mentions = [mention for record in records for mention in record.get("entities", [record])]
    return [(m, normalize("NFC", " ".join(replace_surrogates(m["text"]).split()))) for m in mentions]
