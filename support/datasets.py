"""A data set on disk: its manifest, its tokenizer, the tables beside it, and which one a command means."""

import hashlib
import json
import sys
from array import array
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import ipc
from tokenizers import Tokenizer

import configs
from configs import UserError, command_line
from support import tokenizers, umls
from support.arrays import memory_map
from support.cache import folder_of_tables, load_tables
from support.files import atomic_directory, read_bytes, read_json, write_atomic, write_json
from support.forms import find_misfit

SCHEMA = pa.schema(
    [(name, pa.uint8()) for name in ("task", "lang", "kind")]
    + [(name, pa.large_list(pa.int32())) for name in ("cuis", "ids")]
)
FILES = {  # of a data set: how their beginning is recognised, as check_output has it
    "manifest.json": rb'\{\s*"name": ".*",\s*"languages": ', "train.arrow": rb"(?s)ARROW1.{,2000}cuis",
    "valid.arrow": None, "tokenizer.json": None, "pairs.arrow": None, "pairs.json": None,
}  # fmt: skip
VERSION = 2  # of the form of a data set; 1, without a number, had examples with [CLS] and [SEP]
RUN_FILE = "kgi.json"  # of a run folder
MANIFEST = {  # the form of a manifest.json, as find_misfit has it; str: None lets other keys in
    "name": str, "languages": [str], "version": int, "settings": {"seq_len": int, str: None},
    "special": dict.fromkeys(("pad", "cls", "sep", "mask", "unk", "hrel"), int) | {"relations": [int], str: None},
    "vocab_size": int, "malformed_rows_left_out": {str: int}, "nci_rows_left_out": {str: int},
    "counts": {str: {
        "train": {str: int}, "valid": {str: int}, "terms": int, "cuis": int, "relations": int, "megabytes": float,
        "distribution": {
            "columns": [str], "groups": {str: [float]}, "relations": {str: [float]},
            "largest_deviation": {str: (float, str)}, str: None,
        }, str: None,
    }},
    "sha256": {"train.arrow": str, "valid.arrow": str, "tokenizer.json": str, str: None}, str: None,
}  # fmt: skip


def read_manifest(folder, task_names=()):
    """The manifest.json of a data set. Raises: UserError if there is none, or it is not what a build writes.

    task_names: the tasks whose examples must be counted there.
    """
    path = Path(folder, "manifest.json")
    try:
        manifest = json.loads(read_bytes(path).decode())
        version = manifest.get("version", 1) if type(manifest) is dict else VERSION
        if type(version) is int and version != VERSION:
            said = f"{folder} is a data set of form {version}, and this is a program for {VERSION}"
            raise UserError(f"{said}; build it again")
        check_manifest(manifest, task_names)
        return manifest
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} is not a data set (no manifest.json); build one with make data") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror or e}") from None
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: damaged or of another version ({e}); build the data set again") from None


def check_manifest(manifest, task_names):
    """Raises ValueError if values of a manifest are of another form, or do not fit each other."""
    if misfit := find_misfit(manifest, MANIFEST):
        raise ValueError(misfit)
    special, vocab_size, seq_len = manifest["special"], manifest["vocab_size"], manifest["settings"]["seq_len"]
    if not 8 <= seq_len <= configs.MAX_SEQ_LEN or vocab_size > 2**24:
        raise ValueError(f"seq_len is {seq_len}, vocab_size {vocab_size}")
    ids = [i for x in special.values() for i in (x if isinstance(x, list) else [x])]
    if max(ids) >= vocab_size:
        raise ValueError("a special token is not in the vocabulary")
    if len(special["relations"]) < 7:
        raise ValueError(f"{len(special['relations'])} relations")
    if sorted(manifest["languages"]) != sorted(manifest["counts"]):
        raise ValueError("counts of other languages")
    for c in manifest["counts"].values():
        for split in ("train", "valid"):
            if missing := sorted(set(task_names) - set(c[split])):
                raise ValueError(f"no {', '.join(missing)} in {split}")
        columns = c["distribution"]["columns"]
        rows = [*c["distribution"]["groups"].values(), *c["distribution"]["relations"].values()]
        if any(len(row) != len(columns) for row in rows) or set(c["distribution"]["largest_deviation"]) != set(columns):
            raise ValueError("shares of other columns")


def read_examples(path, manifest, document_task, limits):
    """The columns of a split, mapped into memory: task, lang, kind, ids and their offsets, cuis and theirs.

    Args: document_task: of the examples that may be longer than seq_len. limits: how many tasks and kinds there are.
    Raises: UserError if the file is not what the manifest says, or its numbers are out of range.
    """
    try:
        with open(path, "rb") as f:
            if hashlib.file_digest(f, "sha256").hexdigest() != manifest["sha256"][path.name]:
                raise ValueError("not what the manifest says")
        file = ipc.open_file(memory_map(path))
        if file.schema != SCHEMA or file.num_record_batches != 1:
            raise ValueError("not the columns of a data set")
        batch = file.get_batch(0)
        batch.validate(full=True)
        if any(column.null_count for column in batch.columns):
            raise ValueError("values are missing")
        task, lang, kind = (np.asarray(batch[c]) for c in ("task", "lang", "kind"))
        ids, offsets = np.asarray(batch["ids"].values), np.asarray(batch["ids"].offsets)
        cuis, cui_offsets = np.asarray(batch["cuis"].values), np.asarray(batch["cuis"].offsets)
        ranges = [("a task", task, limits[0]), ("a kind of triple", kind, limits[1])]
        ranges += [("a language", lang, len(manifest["languages"])), ("a token", ids, manifest["vocab_size"])]
        for what, x, most in ranges:
            if len(x) and not 0 <= int(x.min()) <= int(x.max()) < most:
                raise ValueError(f"{what} is out of range")
        length = np.diff(offsets)
        fits = (task == document_task) | ((length >= 1) & (length <= manifest["settings"]["seq_len"] - 2))
        if not fits.all():
            raise ValueError(f"example {np.argmin(fits)} has {length[np.argmin(fits)]} tokens")
        return task, lang, kind, ids, offsets, cuis, cui_offsets
    except (ValueError, pa.ArrowException) as e:
        raise UserError(f"{path}: damaged ({e}); build the data set again") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror or e}") from None


def read_tokenizer(folder):
    """The bytes of a data set's tokenizer.json, checked against the manifest. Raises: UserError."""
    path, manifest = Path(folder, "tokenizer.json"), read_manifest(folder)
    content = read_bytes(path) if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != manifest["sha256"]["tokenizer.json"]:
        raise UserError(f"{path} is not the tokenizer this data set was built with; build the data set again")
    try:
        n_entries = tokenizers.vocab_size(Tokenizer.from_buffer(content))
        if n_entries != manifest["vocab_size"]:
            raise ValueError(f"{n_entries:,} entries")
    except Exception as e:  # the tokenizers library raises plain Exception
        raise UserError(f"{path}: damaged ({e}); build the data set again") from None
    return content


def read_dataset_tables(folder, lang):
    """The umls.Tables of a language: all concepts and terms of the release that a data set was built from.

    They are kept beside the data set. Raises: UserError if they are missing, or of another release.
    """
    folder, manifest = Path(folder), read_manifest(folder)
    relations = manifest["settings"].get("relations", "paper")
    cached = load_tables(place := folder_of_tables(folder.parent / "tables", lang, str(relations)), lang)
    wanted = manifest["counts"][lang].get("terms"), relation_names(folder)
    if not cached or (len(cached[0].terms), [*cached[0].relations]) != wanted:
        cause = "missing, damaged, or replaced by a build with other terms or relations"
        raise UserError(f"{place}: {cause}; build {folder} again")
    return cached[0]


def choose_languages(folder, lang):
    """The languages of a data set, or those that were asked for. Raises: UserError if the data set has not all."""
    languages = read_manifest(folder)["languages"]
    if not lang:
        return languages
    codes = umls.parse_languages(lang)
    if missing := [code for code in codes if code not in languages]:
        raise UserError(f"{folder} has no names in language {missing[0]}; it has {' '.join(languages)}")
    return codes


def names_of_dataset(folder, lang):
    """(CUIs, names): all terms of all concepts of a data set's languages, or of some; a concept's preferred one first.

    Names have single blanks. Raises: UserError, as choose_languages and read_dataset_tables.
    """
    cuis, names = [], []
    for code in choose_languages(folder, lang):
        tables = read_dataset_tables(folder, code)
        cuis += [f"C{cui:07d}" for cui in np.repeat(tables.cui, np.diff(tables.first_term)).tolist()]
        names += [" ".join(name.split()) for name in tables.terms.to_pylist()]
    return cuis, names


def groups_of_dataset(folder, lang):
    """{CUI: abbreviation of its semantic group} of the concepts of names_of_dataset. Raises: UserError as there."""
    group_of = {}
    for code in choose_languages(folder, lang):
        tables = read_dataset_tables(folder, code)
        groups = np.array(tables.groups)[tables.group].tolist()
        group_of |= {f"C{cui:07d}": group for cui, group in zip(tables.cui.tolist(), groups)}
    return group_of


class ExampleWriter:
    """Collects the examples of one split and writes them as one Arrow record batch, a row each.

    Columns: task (index into data.TASKS), lang (index into the languages), kind (of a triple), cuis (list: the
    concepts, which prove the split), ids (list: token ids without [CLS] and [SEP]).
    """

    def __init__(self):
        self.columns = {name: array("q") for name in ("task", "lang", "kind", "cuis", "n_cuis", "ids", "n_ids")}

    def add(self, task, lang, sequences):
        """Adds examples of one task. sequences: yields (kind, CUIs, token ids) of each."""
        columns, kinds, n_cuis, n_ids = self.columns, [], [], []
        for kind, cuis, ids in sequences:
            columns["cuis"].extend(cuis)
            columns["ids"].extend(ids)
            kinds.append(kind)
            n_cuis.append(len(cuis))
            n_ids.append(len(ids))
        rows = {
            "task": [task] * len(kinds),
            "lang": [lang] * len(kinds),
            "kind": kinds,
            "n_cuis": n_cuis,
            "n_ids": n_ids,
        }
        for name, values in rows.items():
            columns[name].extend(values)

    def arrays(self):
        return {name: np.frombuffer(values, np.int64) for name, values in self.columns.items()}

    def counts(self, lang, names):
        """{task name: examples of the language}. names: of all tasks."""
        columns = self.arrays()
        counts = np.bincount(columns["task"][columns["lang"] == lang], minlength=len(names))
        return dict(zip(names, counts.tolist()))

    def n_bytes(self, lang):
        """What the examples of a language take on disk."""
        columns = self.arrays()
        is_lang = columns["lang"] == lang
        n_numbers = (columns["n_cuis"] + columns["n_ids"])[is_lang].sum()
        return int(19 * is_lang.sum() + 4 * n_numbers)

    def write(self, f):
        columns = self.arrays()
        arrays = [pa.array(columns[name].astype(np.uint8)) for name in ("task", "lang", "kind")]
        for name in ("cuis", "ids"):
            offsets = np.concatenate([[0], np.cumsum(columns[f"n_{name}"])])
            arrays.append(pa.LargeListArray.from_arrays(offsets, pa.array(columns[name].astype(np.int32))))
        batch = pa.record_batch(arrays, schema=SCHEMA)
        with ipc.new_file(f, batch.schema) as out:
            out.write_batch(batch)


def write_dataset(out, writers, tokenizer, manifest):
    """Writes train.arrow, valid.arrow, tokenizer.json and manifest.json; all of them appear at once."""
    with atomic_directory(out, FILES) as new:
        for split, writer in writers.items():
            write_atomic(new / f"{split}.arrow", writer.write)
        write_atomic(new / "tokenizer.json", lambda f: f.write(tokenizer.to_str(pretty=True).encode()))
        manifest["sha256"] = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(new.iterdir())}
        write_json(new / "manifest.json", manifest)


def find_data(folder, checkpoint=""):
    """The data set: `folder`, or the only one under datasets/ (that was built with the checkpoint's tokenizer)."""
    if folder:
        return Path(folder)
    found, faults = [], ""
    if checkpoint:
        tokenizers.load(checkpoint)  # says what is wrong with it
    for path in sorted(Path("datasets").glob("[!.]*")):
        try:
            if (path / "manifest.json").exists() and (not checkpoint or has_tokenizer_of(path, checkpoint)):
                found.append(path)
        except (UserError, OSError) as e:  # a data set that cannot be read; another one may do
            faults += f"; {e}"
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"several data sets found; choose one with --data: {', '.join(map(str, found))}")
    advice = "no data set under datasets/; build one with 'make data LANG=fr', or give --data (of 'make demo': demo/fr)"
    if checkpoint:
        advice = (
            f"no data set under datasets/ has the tokenizer of {checkpoint}; {how_to_build(checkpoint)} "
            "(beyond.evaluate can do with another one, given as --data)"
        )
    raise UserError(advice + faults)


def data_of_run(run):
    """The data set that a run folder was trained on; "" if it does not say, or that one has another tokenizer now.

    Says on standard error if it is no longer there, or was built again since.
    """
    if not (said := read_run(run)):
        return ""
    folder, was, what = said["data"], said["sha256"], f"{said['data']}, the data set of {run},"
    try:
        now = read_manifest(folder)["sha256"]
    except UserError as e:  # moved, not readable, or not what a build writes
        print(f"{what} is not used: {e}", file=sys.stderr)
        return ""
    if now["tokenizer.json"] != was.get("tokenizer.json"):
        print(f"{what} was built again with another tokenizer", file=sys.stderr)
        return ""
    if now != was:
        print(f"{what} was built again: what is held out now may have been in its training", file=sys.stderr)
    return folder


def read_run(folder):
    """What a run folder remembers: {"data": its data set, "sha256": {file: hash}, "finetune": settings}.

    It is {} for another folder, or a run of an older version. Raises: UserError if the file is not what a run writes.
    """
    path = Path(folder, RUN_FILE)
    said = read_json(path) if path.is_file() else {}
    if said:
        if misfit := find_misfit(said, {"data": str, "sha256": {str: str}, "finetune": {str: None}, str: None}):
            raise UserError(f"{path}: not what a run writes ({misfit}); without it the defaults hold")
        command_line.check_types(path, "finetune", said["finetune"])
        command_line.check_values(said["finetune"], configs.Finetune)
    return said


def take_settings_of_run(s):
    """Makes settings of fine-tuning that were not given those of [finetune] in the config of the run, and says so."""
    taken = {key: x for key, x in read_run(s.checkpoint).get("finetune", {}).items() if key not in s.given}
    for key, value in taken.items():
        setattr(s, key, value)
    if taken:
        print(f"{', '.join(f'{k} = {x}' for k, x in taken.items())}: from [finetune] of the config of {s.checkpoint}")


def write_run(folder, data, manifest, finetune):
    """Writes what read_run reads. finetune: {setting: value} of [finetune], of which those of the training are kept."""
    training = {f.name for f in fields(configs.Finetune) if f.metadata.get("group") == "training"}
    kept = {key: value for key, value in finetune.items() if key in training}
    write_json(Path(folder, RUN_FILE), {"data": str(data), "sha256": manifest["sha256"], "finetune": kept})


def tokenizer_of(folder):
    """The tokenizer of a data set, as a text that can be compared."""
    return Tokenizer.from_str(read_tokenizer(folder).decode()).to_str()


def has_tokenizer_of(folder, checkpoint):
    """Whether a data set was built with the tokenizer of a checkpoint, to which it adds its relations and [HREL]."""
    return tokenizer_of(folder) == tokenizers.load(checkpoint, tokens_of_relations(folder)).to_str()


def tokens_of_relations(folder):
    """The tokens of a data set's relations, that of synonymy last, and [HREL]."""
    tokenizer, special = Tokenizer.from_str(read_tokenizer(folder).decode()), read_manifest(folder)["special"]
    tokens = [tokenizer.id_to_token(i) for i in (*special["relations"], special["hrel"])]
    if None in tokens:
        raise UserError(f"{folder}: damaged (a relation without a token); build the data set again")
    return tokens


def relation_names(folder):
    """The names of a data set's relations as a list, synonymy last: PAR, or RB:has_part."""
    return [token[1:-1] for token in tokens_of_relations(folder)[:-1]]


def how_to_build(checkpoint):
    return f"build one with: make data LANG=.. TOKENIZER='{checkpoint}' (of finer relations: ARGS='--relations rela')"
