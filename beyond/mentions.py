"""Mentions that are linked: those of texts, one a line, or the entities of a tagger, read and written."""

from unicodedata import normalize

from configs import UserError
from support.files import to_json
from support.programs import write_output
from support.texts import STANDARD_INPUT, is_json_lines, parse_json_line, read_lines, replace_surrogates

# How the beginning of our JSON Lines is recognised (see check_output): after records without a mention, if any.
LINKS = rb'(\{.*"entities": \[\].*\n)*(\{.*"concepts": \[|\Z)'
EXAMPLE = "python -m beyond.link runs/kgi-en < mentions.txt"


def read_records(path):
    """The lines of a file or of standard input: objects of JSON Lines, and {"text": mention} of any other text.

    Blank lines of JSON Lines are left out; those of other text are mentions without a word, as each line has its link.
    Raises: UserError naming file and row.
    """
    name, lines = path or STANDARD_INPUT, read_lines(path, "a mention", EXAMPLE)
    if is_json_lines(name, next(filter(str.strip, lines), "")):
        records = [parse_record(line, name, row) for row, line in enumerate(lines, 1) if line.strip()]
    else:
        records = [{"text": line.strip()} for line in lines]
    if not records:
        raise UserError(f"{name} is empty; give a mention a line: {EXAMPLE}")
    return records


def parse_record(line, name, row):
    """The object in a line of JSON Lines, with a text, as its entities have if there are any. Raises: UserError."""
    record = parse_json_line(line, name, row)
    entities = record.get("entities", [])
    if type(entities) is not list or any(type(e) is not dict or type(e.get("text")) is not str for e in entities):
        raise UserError(f'{name}, row {row}: "entities" is not a list of objects with a field "text"')
    return record


def mentions_of_records(records):
    """The objects that get concepts, and what is looked up: [(object, its text in NFC with single blanks)].

    These are the "entities" of a record, as beyond.tag writes them, or the record itself if it has none.
    """
    mentions = [mention for record in records for mention in record.get("entities", [record])]
    return [(m, normalize("NFC", " ".join(replace_surrogates(m["text"]).split()))) for m in mentions]


def write_records(records, path):
    """Writes JSON Lines to a file, whole or not at all, or to standard output."""
    lines = [replace_surrogates(to_json(record, ensure_ascii=False)) + "\n" for record in records]
    write_output(path, "".join(lines).encode())
