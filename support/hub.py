"""Corpora as the hub and the `datasets` library store them: parquet, save_to_disk folders, and JSON Lines.

files = find_splits("ncbi_disease")                          {"train": [Path, ...], "dev": .., "test": ..}
documents = read_files(files["test"], None, False, "", Counter())

Rows are sentences (tokens and their tags), or documents of the knowledge-base schema (passages and entities).
"""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from configs import UserError
from support.bioc import MAX_CHARACTERS
from support.files import read_json, read_utf8, reject_lfs_pointer
from support.formats import LABEL, read_head
from support.labels import Document, align_entities, check_label, check_type, convert_tags, is_same_text
from support.texts import replace_surrogates

SPLIT_NAMES = {  # what files and folders of a split are called
    "train": ("train", "training", "trng"),
    "dev": ("dev", "devel", "develop", "development", "val", "valid", "validation", "eval", "testa"),
    "test": ("test", "tests", "testing", "testb"),
}
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
FORMS = "parquet, save_to_disk or JSON Lines, with tokens and tags or with passages and entities"
# train.jsonl, train-00000-of-00002.parquet, and the same with a hash at its end
FILE = re.compile(r"(.+?)(-\d{5}-of-(\d{5})(-[0-9a-f]+)?)?\.(parquet|arrow|jsonl|json)")
TOKENS, TAGS = ("tokens", "words"), re.compile("tags|labels|.+_tags|tag")
LOW_LINE = re.compile("^([BI])_")  # B_scope_neg, as the sets of negation have it
TOKEN_TAG = re.compile(r"O|[BI]-.+|\d+")  # a type of entities that is the tag of a token
METADATA = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")  # files beside the tables
MAX_BYTES = 2**29  # of a table in memory: fifty times JNLPBA
MAX_VALUES = 10**8  # of a file: in parquet a million of them may take a few bytes, and rows of JSON may share no key
ERRORS = (pa.ArrowException, OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError)


# ---------------------------------------------------------------- a folder -> the files of its splits


def find_splits(folder):
    """{split: its files} of a folder in a form of the hub, or of the one config below it; {} for another folder.

    Raises: UserError if there are several configs, if shards are missing, or if no file is named for a split.
    """
    if splits := splits_in(folder):
        return splits
    below = [path for path in sorted(Path(folder).glob("[!.]*")) if path.is_dir()]
    configs = {path: splits for path in below if (splits := splits_in(path))}
    if len(configs) > 1:
        names = ", ".join(map(str, [*configs][:10])) + " .." * (len(configs) > 10)
        raise UserError(f"{folder} holds {len(configs)} configs of a data set; choose one as --data: {names}")
    if not configs and (unknown := [path.relative_to(folder) for path in sorted(Path(folder).rglob("*.parquet"))]):
        names = ", ".join(map(str, unknown[:5])) + " .." * (len(unknown) > 5)
        raise UserError(f"{folder}: no file is named for a split (train, validation, test); rename them: {names}")
    return next(iter(configs.values()), {})


def splits_in(folder):
    """{split: its files} of the files and folders that lie in a folder and are named for a split."""
    found = {}
    for path in sorted(Path(folder).glob("[!.]*")):
        name, n_shards, files = path.name, 0, []
        if (path / "state.json").is_file():
            files = saved_files(path / "state.json")
        elif path.is_dir():
            files = sorted(path.glob("[!.]*.parquet"))
            if not files and any(path.glob("data-*.arrow")):
                raise UserError(f"{path} has Arrow files, but no state.json of save_to_disk; copy all of its files")
        elif is_hub_file(path):
            match, files = FILE.fullmatch(name), [path]
            name, n_shards = match[1], int(match[3] or 0)
        if files and (split := SPLIT_OF.get(name.lower())):
            found.setdefault(split, {}).setdefault((name, path.suffix, n_shards), []).extend(files)
    for split, places in found.items():
        if len(places) > 1:
            names = ", ".join(files[0].name for files in places.values())
            raise UserError(f"{folder} holds {len(places)} of {split} ({names}); leave one there")
        for (_, _, n_shards), files in places.items():
            if n_shards and len(files) != n_shards:
                raise UserError(f"{folder} holds {len(files)} of the {n_shards} files of {split}; copy all of them")
    return {split: next(iter(places.values())) for split, places in found.items()}


def saved_files(path):
    """The files of Arrow streams that the state.json of a saved split names."""
    state = read_json(path)
    try:
        names = [file["filename"] for file in state["_data_files"]]
        if any(Path(name).name != name for name in names):
            raise ValueError(f"a file elsewhere: {names}")
    except ERRORS as e:
        raise UserError(f"{path}: not the state.json of save_to_disk ({describe(e)})") from None
    return [path.with_name(name) for name in names]


def is_hub_file(path):
    """Whether a file has a name of the hub; a .json must also have the hub's keys, and not that of BioC."""
    if not path.is_file() or not FILE.fullmatch(path.name) or path.name in METADATA:
        return False
    if path.suffix != ".json":
        return True
    head = read_head(path) or ""
    return bool(re.search('"(tokens|words|entities|tag)"', head)) and '"documents"' not in head


# ---------------------------------------------------------------- a file -> its columns


def load_table(path):
    """({column: its values, a list or an Arrow array}, {column: its feature, as `datasets` describes it}) of a file.

    Raises: UserError for a file that cannot be read, or has more than MAX_BYTES in memory.
    """
    if path.suffix in (".jsonl", ".json"):
        rows = json_rows(path)
        names = dict.fromkeys(key for row in rows for key in row)
        check_size(path, len(rows) * len(names))
        return {name: [row.get(name) for row in rows] for name in names}, {}
    reject_lfs_pointer(path)
    batches, size = [], 0
    try:
        if path.suffix == ".parquet":
            source = pq.ParquetFile(path)
            schema, stream, parts = source.schema_arrow, source.iter_batches(1000), source.metadata
            groups = [parts.row_group(i) for i in range(parts.num_row_groups)]
            check_size(path, sum(x.column(k).num_values for x in groups for k in range(x.num_columns)))
        else:
            stream = pa.ipc.open_stream(pa.OSFile(str(path)))
            schema = stream.schema
        for batch in stream:
            batch.validate(full=True)
            size += batch.nbytes
            if size > MAX_BYTES:
                raise UserError(f"{path}: more than {MAX_BYTES >> 20} MB in memory; divide it into several files")
            batches.append(batch)
        table = pa.Table.from_batches(batches, schema)
        columns = {name: table.column(i) for i, name in enumerate(table.column_names)}
    except ERRORS as e:
        raise UserError(f"{path}: cannot be read ({describe(e)}); copy or download it again") from None
    return columns, features_of(path, schema.metadata or {})


def check_size(path, n_values):
    """Raises UserError if a file has more values than there may be."""
    if n_values > MAX_VALUES:
        raise UserError(f"{path}: more than {MAX_VALUES:,} values; divide it into several files")


def json_rows(path):
    """The rows of a JSON file as dicts: an object a line, a list of objects, or {document: {text, tag}}.

    The last form is that of the authors' own program. Its words and tags are lists, or strings with blanks between.
    Raises: UserError.
    """
    text = read_utf8(path)
    is_lines = path.suffix == ".jsonl" or re.match(r"\s*\{.*\}\s*\n\s*\{", text)
    lines, rows = text.split("\n") if is_lines else [text], []
    for row, line in enumerate(lines, 1):
        try:
            value = json.loads(line.strip() or "[]")
        except (ValueError, RecursionError) as e:
            raise UserError(f"{path}, row {row}: not JSON ({describe(e)})") from None
        parts = [*value.values()] if type(value) is dict else []
        if parts and all(type(x) is dict and {"text", "tag"} <= x.keys() for x in parts):
            value = [{"document_id": name} | {"tokens": x["text"], "tag": x["tag"]} for name, x in value.items()]
        rows += value if type(value) is list else [value]
    if bad := next((row for row, value in enumerate(rows, 1) if type(value) is not dict), 0):
        raise UserError(f"{path}, row {bad}: not an object of JSON: {str(rows[bad - 1])[:60]!r}")
    return rows


def features_of(path, metadata):
    """{column: its feature}, from a schema's metadata or the dataset_info.json of save_to_disk; {} without both."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except ERRORS:  # no metadata, or not those of `datasets`
        features = path.suffix == ".arrow" and read_json(path.with_name("dataset_info.json")).get("features")
    return features if type(features) is dict else {}


def names_of(feature):
    """The names of the numbers in a column of lists of ClassLabels; [] if its feature has none."""
    try:
        inner = feature[0] if type(feature) is list else feature["feature"]
        return inner["names"] if all(type(name) is str for name in inner["names"]) else []
    except ERRORS:
        return []


def describe(error):
    """An error of a library in one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def choose_columns(path, columns, labels):
    """(column of tokens, column of tags), or None if the rows are documents.

    labels: the column of tags, "" for the only one. Raises: UserError if there is none, or more than one of tags.
    """
    tokens, names = next((name for name in TOKENS if name in columns), ""), ", ".join(map(str, columns))
    tags = [labels] if labels else [name for name in columns if TAGS.fullmatch(name)]
    if labels and (labels not in columns or not tokens):
        raise UserError(f"labels = '{labels}': {path} has no tokens with such a column; its columns are {names}")
    if tokens and len(tags) == 1:
        return tokens, tags[0]
    if tokens and tags:
        raise UserError(f"{path} has tags in {', '.join(tags)}; choose one with --labels COLUMN")
    if {"passages", "entities"} <= columns.keys():
        return None
    raise UserError(f"{path} has neither tokens and tags nor passages and entities; its columns are {names}")


def column_rows(path, columns, *names):
    """Yields (where, value of each column) of the rows of a file; None where a column is not there."""
    try:
        n = len(next(iter(columns.values())))
        values = [columns.get(name, [None] * n) for name in names]
        values = [x if type(x) is list else x.to_pylist() for x in values]
    except ERRORS as e:
        raise UserError(f"{path}: cannot be read ({describe(e)})") from None
    for row, cells in enumerate(zip(*values), 1):
        yield f"{path}, row {row}", *cells


# ---------------------------------------------------------------- files -> documents


def read_files(paths, types, pos, labels, issues):
    """The Documents of the files of a split.

    Args: types: as in align_entities. pos: whether labels are parts of speech. labels: as in read_corpus.
    Raises: UserError that names file and row.
    """
    documents = []
    for path in paths:
        columns, features = load_table(path)
        if chosen := choose_columns(path, columns, labels):
            documents += read_sentences(path, columns, *chosen, names_of(features.get(chosen[1])), types, pos, issues)
        elif pos:
            raise UserError(f"{path} has entities of texts, and no parts of speech; take a config with tokens and tags")
        else:
            documents += read_documents(path, columns, types, issues)
    return documents


def read_sentences(path, columns, tokens, tags, names, types, pos, issues):
    """The Documents of rows with a list of tokens and a list of tags. names: the names of tags that are numbers."""
    documents, scheme = [], ""
    for where, words, labels, group in column_rows(path, columns, tokens, tags, "document_id"):
        if tags == "tag":
            words, labels = (x.split() if type(x) is str else x for x in (words, labels))
        if type(words) is not list or not all(type(word) is str for word in words):
            raise UserError(f"{where}: {tokens} is not a list of strings: {str(words)[:60]}")
        if bad := next((word for word in words if re.search("[\t\n\r]", word.strip())), ""):
            raise UserError(f"{where}: the token {bad[:60]!r} holds a TAB or a line break")
        labels = tags_as_text(labels, names, f"{where}, {tags}")
        if len(labels) != len(words):
            raise UserError(f"{where}: {len(words)} {tokens} and {len(labels)} {tags}")
        if tags == "tag" and not pos:  # types of tokens: as IOB1 has it, equal neighbours are one entity
            labels = [x if LABEL.fullmatch(x) else "O" if x == "none" else f"I-{x}" for x in labels]
        if not pos:
            labels = [LOW_LINE.sub(r"\1-", label) for label in labels]
            for label in labels:
                scheme = check_label(label, scheme, where)
        kept = [i for i, word in enumerate(words) if word.strip()]
        issues["tokens of blanks alone: left out"] += len(words) - len(kept)
        words, labels = [replace_surrogates(words[i].strip()) for i in kept], [labels[i] for i in kept]
        labels = parts_of_speech(labels, where) if pos else convert_tags(labels, types, issues)
        name = f"{path.stem}:{len(documents) + 1}"
        documents.append(Document(name, words, labels, group="" if group is None else str(group)))
    return documents


def tags_as_text(tags, names, where):
    """The tags of a sentence as strings. names: the names of tags that are numbers. Raises: UserError."""
    kinds = {type(tag) for tag in tags} if type(tags) is list else {None}
    if kinds <= {str}:
        return tags
    if kinds != {int}:
        raise UserError(f"{where}: not a list of strings or of whole numbers: {str(tags)[:60]}")
    if not names:
        raise UserError(f"{where}: numbers without names (of a ClassLabel in the metadata); write tags as strings")
    if bad := [tag for tag in tags if not 0 <= tag < len(names)]:
        raise UserError(f"{where}: no label has number {bad[0]}; the metadata names 0 to {len(names) - 1}")
    return [names[tag] for tag in tags]


def parts_of_speech(labels, where):
    """Labels without the B- that sets of the hub have before each. Raises: UserError for one that cannot be written."""
    labels = [label.removeprefix("B-") for label in labels]
    for label in labels:
        check_type(label, where)
        if not label:
            raise UserError(f"{where}: an empty part of speech")
        if label.startswith("I-"):
            raise UserError(f"{where}: '{label}' is the tag of an entity, and this corpus has parts of speech")
    return labels


def read_documents(path, columns, types, issues):
    """The Documents of rows of the knowledge-base schema: text in passages, and entities with offsets."""
    documents = []
    for where, name, key, passages, entities in column_rows(path, columns, "document_id", "id", "passages", "entities"):
        text, spans = passage_text(passages, where), []
        try:
            found = [(e["type"], tuple((a, b) for a, b in e["offsets"]), " ".join(e["text"])) for e in entities]
        except ERRORS:
            raise UserError(f"{where}: entities are not a list of type, text and offsets") from None
        for kind, fragments, words in found:
            if type(kind) is not str or TOKEN_TAG.fullmatch(kind):
                raise UserError(f"{where}: the type {kind!r} is the tag of a token; take a config with tokens and tags")
            check_type(kind, where)
            at = " ".join(f"{a}-{b}" for a, b in fragments)[:60]
            if not all(type(a) is type(b) is int and 0 <= a <= b <= len(text) for a, b in fragments):
                raise UserError(f"{where}: {kind} at {at} is not within the text of {len(text):,} characters")
            if not is_same_text(in_text := " ".join(text[a:b] for a, b in fragments), words):
                raise UserError(f"{where}: {kind} at '{at}' is {in_text[:40]!r} in the text, not {words[:40]!r}")
            spans.append((kind, fragments))
        documents.append(align_entities(str(name or key), text, spans, types, issues))
    return documents


def passage_text(passages, where):
    """The text of a document: each passage at its offset, and line ends in gaps. Raises: UserError without text."""
    try:
        parts = sorted((a, b, words) for p in passages for words, (a, b) in zip(p["text"], p["offsets"], strict=True))
        text = ""
        for start, _, words in parts:
            if not len(text) <= start <= MAX_CHARACTERS:
                raise UserError(f"{where}: no passage can begin at {start}, after {len(text)} characters")
            text = text.ljust(start, "\n") + replace_surrogates(words)
    except ERRORS:
        raise UserError(f"{where}: passages are not a list of texts and offsets") from None
    if not text.strip():
        raise UserError(f"{where}: no passage, so its entities have no text; take a config with tokens and tags")
    return text


def group_documents(splits):
    """Clears the group of sentences (document_id) if all have one, or each its own: then it tells no documents."""
    groups = [d.group for documents in splits.values() for d in documents]
    if not 1 < len({*groups}) < len(groups):
        for d in (d for documents in splits.values() for d in documents):
            d.group = ""


def read_table_texts(path):
    """The texts of a file: of its documents, or else of each row and of all rows together."""
    columns, _ = load_table(path)
    if "passages" in columns:
        return [passage_text(passages, where) for where, passages in column_rows(path, columns, "passages")]
    if not (name := next((name for name in (*TOKENS, "text") if name in columns), "")):
        raise UserError(f"exclude: {path} has no tokens, passages or text; its columns are {', '.join(columns)}")
    try:
        texts = [" ".join(x) if type(x) is list else x for _, x in column_rows(path, columns, name)]
        return [" ".join(texts), *texts]
    except TypeError:
        raise UserError(f"{path}: {name} holds no text") from None
