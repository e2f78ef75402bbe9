"""Entity linking: mentions with ids, a dictionary of names, and the rank of the right concept by the nearest name.

    kgi.py link runs/kgi-en < mentions.txt                             the nearest concepts of each
    kgi.py link runs/kgi-en --corpus NCBI-Disease --ids ids.tsv        how often the nearest is the right one

The protocol of scoring, as figures of different papers differ most by it:

* A concept is as near to a mention as the nearest of its names. Concepts are ranked, not names. Concepts that are
  equally near share the mean of their ranks, so a name of two concepts alone is right at 5, but not at 1.
* `a|b` (or a comma or semicolon between ids) is one mention with alternatives: any of them is right. `a+b` is a
  composite of parts, and all must be found. It is not split into the words of its parts. Its rank is that of the part
  found last, but 1 if the first p concepts hold all p parts. An id that names several concepts is found with any.
  NCBI-Disease writes most of its composites with `|`, so that any of their parts is right. The variants of BioRED keep
  their bars (`c|SUB|G|94|A` is one id). A concept that a dictionary calls `a|b` is found by either id.
* A mention whose concept is not in the dictionary counts as not found. Accuracy is given over all mentions and over the
  reachable ones. A composite is reachable if all of its parts are. Mentions without any id are not counted.
* Unseen mentions are those whose words, in lower case, are not a mention of the training split. Without such a split
  there are no figures for them.
* Neither are mentions of the training split added to the dictionary, nor abbreviations expanded, unless asked for.
"""

import hashlib
import io
import itertools
import os
import re
import sys
from collections import Counter, defaultdict
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import numpy as np
import pyarrow as pa

from configs import UserError
from support import corpora, retrieval
from support.arrays import bootstrap
from support.datasets import choose_languages, read_dataset_tables
from support.files import (
    check_output_file,
    folder_lock,
    name_of,
    progress,
    read_utf8,
    reject_device,
    split_rows,
    standard_output,
    to_json,
    write_all,
    write_atomic,
)  # fmt: skip
from support.texts import STANDARD_INPUT, decode_utf8, is_json_lines, parse_json_line, replace_surrogates

NO_ID = ("", "-", "-1")
VARIANT = re.compile(r"(?:^|[,;])\s*[cgmnpr]?\|[A-Za-z]+\|")  # of BioRED: c|SUB|G|94|A or p|Allele|R|70 is one id
NAMED = r"\w+[ _-]|concept|entity|disease|chemical|term|mesh|omim|umls"
HEADER = re.compile(rf"#?\s*(({NAMED})?(id|cui|code|identifier)s?|concept|mesh|omim)", re.I)  # of a column of ids
# How the beginning of our JSON Lines is recognised (see check_output): after records without a mention, if any.
LINKS = rb'(\{.*"entities": \[\].*\n)*(\{.*"concepts": \[|\Z)'
N_NEAREST = 5  # concepts that are written for a mention
RESAMPLES = 1000  # bootstrap samples of documents for a confidence interval
MAX_SIMILARITIES = 1 << 27  # of mentions to names that are in memory at a time, for each method: 512 MB


class Mention(NamedTuple):
    """A mention of a concept in a corpus.

    text: its words, in NFC. name: what is looked up, its words or the long form of an abbreviation. parts: its ids, all
    of which must be found; each is a tuple of alternatives.
    """

    document: str
    text: str
    name: str
    parts: tuple


class Dictionary(NamedTuple):
    """The names of concepts.

    ids: of the concepts. names: distinct strings. term, concept: (pairs,) int64, which name names which concept, sorted
    by concept; every concept has a name.
    """

    ids: list
    names: list
    term: np.ndarray
    concept: np.ndarray


# ---------------------------------------------------------------- mentions


def read_mentions(folder, expand_abbreviations=False):
    """The mentions of a folder of PubTator files, which may be .gz: ({split: [Mention]}, {split: Counter of issues}).

    The split is in the name of a file, or lists of document ids lie beside one file for all, as MedMentions has them
    (..pmids_trng.txt). A split that is not there has no mentions.

    Raises: UserError if there is no such file, or naming file and row.
    """
    if not Path(folder).is_dir():
        raise UserError(f"--corpus {folder}: no such folder; name one with PubTator files")
    files = [path for path in sorted(Path(folder).glob("[!.]*")) if path.is_file()]
    lists = one_of_each_split(path for path in files if "pmids" in path.name.lower())
    split_of_document = {pmid: split for split, path in lists.items() for pmid in read_utf8(path).split()}
    files = [path for path in files if is_pubtator(path)]
    if unclear := [path for path in files if not (split_of_document or split_of(path))]:
        raise UserError(f"{unclear[0]}: its name must say its split: train, dev or test")
    one_of_each_split(files)
    mentions, issues = ({split: kind() for split in corpora.SPLITS} for kind in (list, Counter))
    for path in files:
        for document, found, of_document in mentions_of_file(path, expand_abbreviations):
            if split := split_of(path) or split_of_document.get(document):
                mentions[split] += found
                issues[split].update(of_document)
    if not any(mentions.values()):
        raise UserError(f"{folder}: no mention with an id in it; it must hold PubTator files (id|t|title ...)")
    return mentions, issues


def one_of_each_split(paths):
    """{split: its file} of those whose names say one. Raises: UserError if two are of the same split."""
    found = {}
    for path in paths:
        split = split_of(path)
        if split and (first := found.setdefault(split, path)) != path:
            names = f"{first.name} and {path.name}"
            raise UserError(f"{path.parent}: two files of the {split} split: {names}; leave one there")
    return found


def split_of(path):
    """The split that a file's name says, "" if none: by a word of it (SPLIT_NAMES), else by a part, as NCBItestset."""
    name = path.name.lower()
    words = {*re.split("[^a-z]+", name)}
    by_word = [split for split, names in corpora.SPLIT_NAMES.items() if words & {*names}]
    if len(by_word) == 1:
        return by_word[0]
    parts = {"train": "train|trng", "dev": "dev|valid", "test": "test"}
    return next((split for split, part in parts.items() if re.search(part, name)), "")


def is_pubtator(path):
    """Whether the first line of a file is a title of PubTator, or the file is damaged, which reading it will say."""
    head = corpora.read_head(path)
    return head is None or bool(corpora.PUBTATOR_TEXT.match(head))


def mentions_of_file(path, expand_abbreviations):
    """Yields (document, its mentions that have an id, Counter of its issues) of a PubTator file."""
    texts, entities, n_repeats = corpora.parse_pubtator(path)
    for pmid, text in texts.items():
        distinct = dict.fromkeys(entities[pmid])
        issues = Counter({"repeated documents: left out": n_repeats[pmid]})
        issues["rows given twice: counted once"] = len(entities[pmid]) - len(distinct)
        long_forms = find_abbreviations(normalize("NFC", text)) if expand_abbreviations else {}
        mentions = []
        for start, end, _, ids in distinct:
            words = normalize("NFC", " ".join(text[start:end].split()))
            if parts := parse_ids(ids):
                mentions.append(Mention(pmid, words, long_forms.get(words, words), parts))
            else:
                issues["mentions without an id"] += 1
        yield pmid, mentions, issues


def parse_ids(text):
    """The ids of a mention -> its parts, each a tuple of alternatives: "a|b+c" gives (("a", "b"), ("c",))."""
    parts = [text] if VARIANT.search(text) else text.split("+")
    parts = [tuple(x for x in alternatives(part) if x not in NO_ID) for part in parts]
    return tuple(dict.fromkeys(part for part in parts if part))  # a part that is repeated is one


def alternatives(text):
    """Ids of which any is right, a bar, comma or semicolon between them -> a list. A variant keeps its bars."""
    return [normalise_id(x) for x in re.split("[,;]" if VARIANT.search(text) else "[|,;]", text)]


def normalise_id(text):
    """An id without blanks and without the prefix that only some corpora write: MESH:D008661 is D008661."""
    return re.sub(r"^(MESH|UMLS):", "", text.strip(), flags=re.I)


def find_abbreviations(text):
    """{short form: long form} of definitions such as "Wilson disease (WD)" (Schwartz & Hearst, PSB 2003).

    A short form has 2 to 10 characters, one or two words and a letter. Its long form is in the words before it.
    """
    found = {}
    for match in re.finditer(r"\(([^()]+)\)", text):
        short = re.split("[,;]", match[1])[0].strip()
        is_short = 2 <= len(short) <= 10 and len(short.split()) <= 2 and short[0].isalnum()
        if is_short and any(c.isalpha() for c in short):
            sentence = re.split(r"[.;:!?]\s|\n", text[: match.start()])[-1].split()
            words = " ".join(sentence[-min(len(short) + 5, 2 * len(short)) :])
            if long_form := match_long_form(short, words):
                found.setdefault(short, long_form)
    return found


def match_long_form(short, words):
    """The shortest end of `words` that has the letters of a short form in order, "" if there is none.

    The first letter must begin a word; the letters are looked for from the last to the first.
    """
    at = len(words)
    for i in range(len(short) - 1, -1, -1):
        if short[i].isalnum():
            at -= 1
            while at >= 0 and not (
                words[at].lower() == short[i].lower() and (i > 0 or at == 0 or not words[at - 1].isalnum())
            ):
                at -= 1
            if at < 0:
                return ""
    long_form = words[words.rfind(" ", 0, at + 1) + 1 :]
    return long_form if len(long_form) > len(short) and short not in long_form.split() else ""


# ---------------------------------------------------------------- names and ids


def make_dictionary(ids, names):
    """The Dictionary of two lists: names[i] is a name of the concept ids[i]. Ids and names may come again.

    Names are in NFC, as mentions are: vocabularies of models are, and so both compare as they look.
    """
    names = [normalize("NFC", name) for name in names]
    concepts, terms = (pa.array(x, pa.large_string()).dictionary_encode() for x in (ids, names))
    pairs = np.asarray(concepts.indices).astype(np.int64) * len(terms.dictionary) + np.asarray(terms.indices)
    concept, term = np.divmod(np.unique(pairs), len(terms.dictionary))
    return Dictionary(concepts.dictionary.to_pylist(), terms.dictionary.to_pylist(), term, concept)


def read_dictionary(path):
    """The Dictionary of a file (or .gz) of lines id TAB name. Raises: UserError naming file and row."""
    return make_dictionary(*read_pairs(path, "id TAB name"))


def dictionary_of_dataset(folder, lang):
    """The Dictionary of a data set: all terms of all concepts of its languages, or of some. The ids are CUIs."""
    ids, names = [], []
    for code in choose_languages(folder, lang):
        tables = read_dataset_tables(folder, code)
        cuis = [f"C{number:07d}" for number in tables.cui.tolist()]
        ids += np.repeat(np.array(cuis, object), np.diff(tables.first_term)).tolist()
        names += [" ".join(name.split()) for name in tables.terms.to_pylist()]  # as beyond.export writes them
    return make_dictionary(ids, names)


def read_ids(path):
    """{id: [concepts]} of a file (or .gz) of lines id TAB concept. Raises: UserError naming file and row."""
    concepts = defaultdict(list)
    for ids, concept in zip(*read_pairs(path, "id TAB concept")):
        for i in alternatives(ids):
            concepts[i] += alternatives(concept)
    return dict(concepts)


def read_pairs(path, form):
    """The two columns of a file: ([ids], [texts]).

    A first line is a header if its first field is id, cui, code or identifier, alone or after a word such as concept.
    form: what a line must be, for the error message.
    """
    ids, texts = [], []
    for row, line in enumerate(read_utf8(path).split("\n"), 1):
        fields = [field.strip() for field in line.split("\t")]
        if not line.strip() or (row == 1 and HEADER.fullmatch(fields[0])):
            continue
        if len(fields) != 2 or not all(fields):
            raise UserError(f"{path}, row {row}: not '{form}': {line[:60]!r}")
        ids.append(normalise_id(fields[0]))
        texts.append(fields[1])
    if not ids:
        raise UserError(f"{path}: no line '{form}' in it")
    return ids, texts


def index_of_ids(dictionary):
    """{id: the concepts of a dictionary that it names, as indices}; "a|b" in a dictionary is a concept of two ids."""
    index = defaultdict(list)
    for concept, ids in enumerate(dictionary.ids):
        for i in alternatives(ids):
            index[i].append(concept)
    return dict(index)


def gold_concepts(mention, ids, index):
    """The concepts of a mention as indices: an array for each of its parts. None if a part has none in the dictionary.

    Args: ids: {id: [concepts]}, or {} if the corpus has the ids of the dictionary. index: as index_of_ids gives it.
    """
    parts = []
    for part in mention.parts:
        concepts = [c for i in part for c in ids.get(i, [i])]
        parts.append(np.array(sorted({k for c in concepts for k in index.get(c, [])}), np.int64))
    return parts if all(map(len, parts)) else None


def add_train_mentions(dictionary, mentions, ids):
    """A Dictionary with the mentions of the training split as further names of its concepts; composites are left out.

    No concept is added, so that the same mentions are reachable with and without them.
    """
    index = index_of_ids(dictionary)
    all_ids = [dictionary.ids[c] for c in dictionary.concept.tolist()]
    names = [dictionary.names[t] for t in dictionary.term.tolist()]
    for mention in mentions:
        if len(mention.parts) == 1 and (gold := gold_concepts(mention, ids, index)):
            all_ids += [dictionary.ids[c] for c in gold[0]]
            names += [mention.name] * len(gold[0])
    return make_dictionary(all_ids, names)


# ---------------------------------------------------------------- mentions without a corpus


def check_settings(s):
    """Raises UserError for settings of kgi.py link that exclude one another, or an output that cannot be written."""
    if s.dictionary and (s.data or s.lang):
        raise UserError("--dictionary and a data set (--data, --lang): give one of them")
    if s.corpus and s.mentions:
        raise UserError(f"{s.mentions} and --corpus {s.corpus}: give one of them")
    of_corpus = [f for f in fields(s) if f.metadata.get("group") == "corpus"]
    if given := [f.name for f in of_corpus if not s.corpus and getattr(s, f.name) != f.default]:
        raise UserError(f"--{given[0]} is for the mentions of a --corpus, and there is none")
    if not s.corpus and s.out:
        check_output_file(s.out, LINKS, s.mentions or 0, *[s.dictionary] * bool(s.dictionary))
    elif not s.corpus and not sys.stdout:
        raise UserError("standard output is closed; give --out")


def read_records(path):
    """The lines of a file or of standard input: objects of JSON Lines, and {"text": mention} of any other text.

    Blank lines of JSON Lines are left out; those of other text are mentions without a word, as each line has its link.
    Raises: UserError naming file and row.
    """
    if not path and not sys.stdin:
        raise UserError("standard input is closed; give a mention a line: kgi.py link runs/kgi-en < mentions.txt")
    if not path and sys.stdin.isatty():
        print("reading standard input, a mention a line; Ctrl-D ends it", file=sys.stderr)
    name = path or STANDARD_INPUT
    if path:
        text = read_utf8(path)
        lines = text.removesuffix("\n").split("\n") if text else []
    else:
        reject_device(sys.stdin.buffer, name)
        lines = [decode_utf8(line, name, row) for row, line in enumerate(split_rows(sys.stdin.buffer), 1)]
    if is_json_lines(name, next(filter(str.strip, lines), "")):
        records = [parse_record(line, name, row) for row, line in enumerate(lines, 1) if line.strip()]
    else:
        records = [{"text": line.strip()} for line in lines]
    if not records:
        raise UserError(f"{name} is empty; give a mention a line: kgi.py link runs/kgi-en < mentions.txt")
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


def nearest_concepts(dictionary, n_queries, similarities):
    """The N_NEAREST concepts of each query, by the nearest of their names; equally near ones in the order of the ids.

    Args: similarities: a function of a slice of the queries: (k, names) float32.
    Returns: [[{"id", "name", "similarity"}, ...], ...], the nearest concept first.
    """
    n, first_pair = min(N_NEAREST, len(dictionary.ids)), np.flatnonzero(np.diff(dictionary.concept, prepend=-1))
    end, out, n_at_once = [*first_pair[1:], len(dictionary.term)], [], max(1, MAX_SIMILARITIES // len(dictionary.names))
    with progress("mentions", n_queries) as bar:
        for start in range(0, n_queries, n_at_once):
            for of_names in similarities(slice(start, start + n_at_once)):
                of_pairs = of_names[dictionary.term]
                of_concepts = np.maximum.reduceat(of_pairs, first_pair)
                near = np.flatnonzero(of_concepts >= np.partition(of_concepts, -n)[-n])
                near = near[np.argsort(-of_concepts[near], kind="stable")][:n]
                pairs = [first_pair[c] + of_pairs[first_pair[c] : end[c]].argmax() for c in near]
                out.append([link_of_pair(dictionary, pair, of_pairs[pair]) for pair in pairs])
                bar.update()
    return out


def link_of_pair(dictionary, pair, similarity):
    """What is written of a concept and its nearest name. pair: index into dictionary.term."""
    concept, term = dictionary.concept[pair], dictionary.term[pair]
    return {
        "id": dictionary.ids[concept], "name": dictionary.names[term], "similarity": round(float(similarity), 4),
    }  # fmt: skip


def write_records(records, path):
    """Writes JSON Lines to a file, whole or not at all, or to standard output."""
    lines = [replace_surrogates(to_json(record, ensure_ascii=False)) + "\n" for record in records]
    content = "".join(lines).encode()
    if path:
        write_atomic(path, lambda f: f.write(content))
    else:
        write_all(standard_output(), content)


# ---------------------------------------------------------------- what is scored


class LinkingTask(NamedTuple):
    """The mentions of a split and the dictionary that they are looked up in.

    queries: distinct names of the mentions. query: (mentions,) int64, which of them each mention has. gold: of each
    mention, as gold_concepts gives it. unseen: (mentions,) bool, None without a training split. issues: what is not
    scored, a Counter.
    """

    mentions: list
    dictionary: Dictionary
    queries: list
    query: np.ndarray
    gold: list
    unseen: np.ndarray
    issues: Counter


def read_task(s, dictionary):
    """The LinkingTask of settings `s` (configs.Link). Raises: UserError."""
    if s.train_mentions and s.split == "train":
        raise UserError("train_mentions with --split train: each mention would be in the dictionary")
    ids = read_ids(s.ids) if s.ids else {}
    splits, issues = read_mentions(s.corpus, s.expand_abbreviations)
    mentions = splits[s.split]
    if not mentions:
        raise UserError(f"{s.corpus}: no mention with an id in its {s.split} split")
    if s.train_mentions and not splits["train"]:
        raise UserError(f"train_mentions: {s.corpus} has no mention with an id in a train split")
    if s.train_mentions:
        dictionary = add_train_mentions(dictionary, splits["train"], ids)
    index = index_of_ids(dictionary)
    gold = [gold_concepts(mention, ids, index) for mention in mentions]
    if not any(gold):
        example = "+".join("|".join(part) for part in mentions[0].parts)
        raise UserError(
            f"{s.corpus}: no id of its {s.split} split, such as {example}, is in the dictionary, whose ids are such as "
            f"{dictionary.ids[0]}; "
            + (f"{s.ids} names none of them" if s.ids else "give --ids, a file of id TAB concept lines")
        )
    queries = list(dict.fromkeys(mention.name for mention in mentions))
    number = {name: i for i, name in enumerate(queries)}
    query = np.array([number[mention.name] for mention in mentions])
    seen = {mention.text.lower() for mention in splits["train"]}
    unseen = np.array([mention.text.lower() not in seen for mention in mentions]) if seen else None
    return LinkingTask(mentions, dictionary, queries, query, gold, unseen, issues[s.split])


# ---------------------------------------------------------------- similarities of mentions to names


def exact_matches(names, queries):
    """A function of a slice of the queries: (k, names) float32, 1 where both are equal but for case and blanks."""
    words = [" ".join(text.lower().split()) for text in (*names, *queries)]
    codes = np.asarray(pa.array(words, pa.large_string()).dictionary_encode().indices)
    of_names, of_queries = codes[: len(names)], codes[len(names) :]
    return lambda block: (of_queries[block, None] == of_names).astype(np.float32)


def trigram_similarities(names, queries):
    """A function of a slice of the queries: (k, names) float32, the cosine of retrieval.trigram_vectors."""
    of_names, of_queries = (retrieval.sparse_trigram_vectors(x) for x in (names, queries))
    return lambda block: np.ascontiguousarray((of_names @ of_queries[block].toarray().T).T)


def name_vectors(path, shape, blocks):
    """The vectors of all names: an array of float32, one row a name; each block is asked for once.

    Args:
        path: the file that keeps them, or None. It is read if it is there and whole, and written if not. It is mapped
            into memory, so that it may be larger than that. shape: of the array. blocks: yields its rows, some at a
            time.
    """
    if path is None:
        out, at = np.empty(shape, np.float32), 0
        for block in blocks:
            out[at : at + len(block)] = block
            at += len(block)
        return out
    is_there = path.is_file()
    if not (is_there and is_whole(path)):
        if is_there:
            print(f"{path}: damaged, or of an older version; the names are embedded again", file=sys.stderr)
        with folder_lock(path.parent, "another process embeds names for it; try again when it has ended"):
            write_atomic(path, lambda f: write_vectors(f, shape, blocks))
    return np.load(path, mmap_mode="r")


def write_vectors(f, shape, blocks):
    """Writes an array of float32 as NumPy's .npy, block by block, and behind it the SHA-256 of all that is before."""
    header, digest = io.BytesIO(), hashlib.sha256()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    for part in itertools.chain([header.getvalue()], (np.ascontiguousarray(block, "<f4").data for block in blocks)):
        digest.update(part)
        f.write(part)
    f.write(digest.digest())


def is_whole(path):
    """Whether a file of write_vectors ends with its own SHA-256; what it should hold is in its name."""
    with open(path, "rb") as f:
        left, digest = os.fstat(f.fileno()).st_size - hashlib.sha256().digest_size, hashlib.sha256()
        while left > 0 and (part := f.read(min(left, 1 << 24))):
            digest.update(part)
            left -= len(part)
        return left == 0 and f.read() == digest.digest()


def vectors_file(folder, checkpoint, parts):
    """Where the vectors of a checkpoint are kept. Its name has a hash of all that they depend on: others are no match.

    parts: bytes-like objects and strings.
    """
    digest = hashlib.sha256()
    for part in parts:
        part = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(part).to_bytes(8, "little") + part)
    return Path(folder, f"{checkpoint}-{digest.hexdigest()[:16]}.npy")


# ---------------------------------------------------------------- ranks


def rank_mentions(task, similarities):
    """The rank of each mention's concept, exactly: {method: (mentions,) float64}, infinite if it cannot be reached.

    The search is exhaustive and blocked: a block of mentions is compared with all names, and no more is in memory.

    Args: similarities: a function of a slice of task.queries that yields (method, (k, names) float32 array).
    """
    term, first_pair = task.dictionary.term, np.flatnonzero(np.diff(task.dictionary.concept, prepend=-1))
    of_query = defaultdict(list)
    for mention, query in enumerate(task.query.tolist()):
        if task.gold[mention]:
            of_query[query].append(mention)
    ranks = defaultdict(lambda: np.full(len(task.mentions), np.inf))
    n_at_once = max(1, MAX_SIMILARITIES // len(task.dictionary.names))
    with progress("mentions", len(task.queries)) as bar:
        for start in range(0, len(task.queries), n_at_once):
            block = slice(start, min(start + n_at_once, len(task.queries)))
            for method, of_names in similarities(block):
                for query, row in enumerate(of_names, start):
                    of_concepts = np.maximum.reduceat(row[term], first_pair) if query in of_query else None
                    for mention in of_query[query]:
                        ranks[method][mention] = rank_of_mention(of_concepts, task.gold[mention])
            bar.update(block.stop - start)
    return dict(ranks)


def rank_of_mention(similarity, parts):
    """The rank of a mention: of its last part, but 1 if the first concepts, as many as it has parts, hold all of them.

    Args: similarity: (concepts,) of the mention. parts: as gold_concepts gives them.
    """
    last = max(rank_of_part(similarity, concepts) for concepts in parts)
    least = min(similarity[concepts].max() for concepts in parts)
    return 1.0 if 1 < len(parts) >= np.count_nonzero(similarity >= least) else last


def rank_of_part(similarity, concepts):
    """The rank of the first of some concepts by similarity.

    Of n concepts that are equally near, m of them right, the first right one is at (n + 1) / (m + 1) in the mean over
    all orders.
    """
    right = similarity[concepts]
    best = right.max()
    n_nearer, n_equal = np.count_nonzero(similarity > best), np.count_nonzero(similarity == best)
    return n_nearer + (n_equal + 1) / (np.count_nonzero(right == best) + 1)


def subsets(task):
    """{name: (mentions,) bool}: the mentions over which accuracy is given."""
    reachable = np.array([gold is not None for gold in task.gold])
    of_all = {"all": np.ones(len(reachable), bool), "reachable": reachable}
    if task.unseen is None:
        return of_all
    return of_all | {"unseen": task.unseen, "unseen_reachable": task.unseen & reachable}


def results_file(s):
    """Where kgi.py link keeps its scores. The name has the protocol's settings that are not the default."""
    parts = [name_of(s.corpus)] + [s.split] * (s.split != "test")
    parts += [key for key in ("expand_abbreviations", "train_mentions") if getattr(s, key)]
    return Path(s.out or "results", name_of(s.checkpoint), f"linking-{'-'.join(parts)}.json")


def results_signature(s, task):
    """What the scores depend on besides the checkpoint. task: a LinkingTask."""
    d, gold = task.dictionary, [parts and [x.tolist() for x in parts] for parts in task.gold]
    texts = "\n".join([*d.ids, "", *d.names, "", repr((task.queries, gold))])
    content = texts.encode("utf-8", "surrogatepass") + d.term.tobytes() + d.concept.tobytes()
    kept = {key: value for key, value in asdict(s).items() if key not in ("mentions", "keep_vectors", "device", "out")}
    for key in ("corpus", "ids", "dictionary", "data"):  # "NCBI/" is "NCBI"
        kept[key] = kept[key] and str(Path(kept[key]).resolve())
    return kept | {"dictionary sha256": hashlib.sha256(content).hexdigest()}


def linking_scores(ranks, documents):
    """Accuracy at 1 and 5 and mean reciprocal rank in per cent, and their 95 % bootstrap confidence intervals.

    The intervals are percentiles over 1,000 samples of the documents, drawn with replacement and seeded.

    Args: ranks: (mentions,), infinite where nothing was found. documents: that of each mention.
    Returns: {"at_1", "at_5", "mrr", "interval": {the same: [low, high]}}; {} of no mentions.
    """
    if not len(ranks):
        return {}
    values = np.column_stack([ranks <= 1, ranks <= 5, 1 / ranks, np.ones(len(ranks))])
    samples = bootstrap(documents, values, RESAMPLES)
    bounds = 100 * np.percentile(samples[:, :3] / samples[:, 3:], [2.5, 97.5], axis=0)
    names = ("at_1", "at_5", "mrr")
    scores = dict(zip(names, (100 * values[:, :3].mean(axis=0)).tolist()))
    return scores | {"interval": dict(zip(names, bounds.T.tolist()))}


def linking_record(task, ranks):
    """What kgi.py link keeps: sizes, and {subset: {"mentions", methods: {method: linking_scores}}}.

    Args: ranks: of rank_mentions.
    """
    documents = np.array([mention.document for mention in task.mentions])
    scores = {}
    for name, which in subsets(task).items():
        methods = {method: linking_scores(x[which], documents[which].tolist()) for method, x in ranks.items()}
        scores[name] = {"mentions": int(which.sum()), "methods": methods}
    return {
        "documents": len({*documents.tolist()}), "composite": sum(len(m.parts) > 1 for m in task.mentions),
        "concepts": len(task.dictionary.ids), "names": len(task.dictionary.names), "issues": dict(+task.issues),
        "scores": scores,
    }  # fmt: skip
