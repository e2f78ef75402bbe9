"""Gold standards of entity linking: the mentions of a corpus with their ids, and the concepts that these name."""

import glob
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import numpy as np

from beyond.dictionaries import Dictionary, add_train_mentions, gold_concepts, index_of_ids, parse_ids, read_ids
from configs import UserError
from support import bioc, corpora, formats
from support.files import read_utf8
from support.markup import parse_xml
from support.retired import follow_ids

NOTE = re.compile(r"#\S*\tAnnotatorNotes (T\S+)\t(.*)")  # of brat: ids in the notes of an annotator
REFERENCE = re.compile(r"N\S*\tReference (T\S+) (\S+?:\S+)(\t.*)?")
ID_KEYS = ("cui", "umls", "mesh", "omim", "ncbi gene", "ncbi taxonomy", "chebi", "snomedct_us")  # of BioC
SPLIT_LISTS = ("train_test_split.txt", "documentation/train_test_split.txt")  # of E3C


class Mention(NamedTuple):
    """A mention of a concept in a corpus.

    text: its words, in NFC. name: the text that is looked up: its words, or the long form of an abbreviation. parts:
    its ids, all of which must be found. Each part is a tuple of alternatives.
    """

    document: str
    text: str
    name: str
    parts: tuple


# ---------------------------------------------------------------- one reader a form


def read_pubtator(path):
    """Yields the documents of a file: (id, text, entities, Counter of issues), as each reader of a form does.

    An entity is (spans, type, ids): its places in the text, and its ids as parse_ids takes them, "" if it has none.
    """
    texts, entities, n_repeats = formats.parse_pubtator(path)
    for pmid, text in texts.items():
        issues = Counter({"repeated documents: left out": n_repeats[pmid]})
        yield pmid, text, [(((a, b),), kind, ids) for a, b, kind, ids in entities[pmid]], issues


def read_bioc(path):
    """Yields the documents of a file of BioC. Ids are the infon `identifier`, or else all infons named for a source."""
    seen = set()
    for name, text, annotations in bioc.annotated_texts(path):
        entities, is_repeat = [], name in seen
        for a, spans in [] if is_repeat else annotations:
            known = {key.lower(): ids for key, ids in a["infons"].items()}
            ids = [known[key] for key in ID_KEYS if known.get(key)]
            entities.append((spans, known.get("type", ""), known.get("identifier") or "|".join(ids)))
        yield name, text, entities, Counter({"repeated documents: left out": is_repeat})
        seen.add(name)


def read_brat(path):
    """Yields the document of an .ann file. Ids are in notes, as QUAERO has them, or in brat's own N lines.

    Several notes or N lines of an entity are alternatives, and so are ids with a blank or a comma between them. Notes
    without ids are counted.
    """
    issues, entities, ids = Counter(), {}, defaultdict(list)
    text, lines = formats.read_ann(path)
    for row, line in enumerate(lines, 1):
        where, name = f"{path}, row {row}", line.split("\t")[0]
        if line.startswith("T"):
            if name in entities:
                raise UserError(f"{where}: {name} comes again; each entity needs an id of its own")
            entities[name] = formats.parse_brat_entity(where, line, text, issues)
        elif match := NOTE.fullmatch(line):
            note = re.sub(r"\s*([,;+|])\s*|\s+", lambda m: m[1] or "|", match[2].strip())
            is_ids = all(re.search(r"\d", part) for part in re.split("[,;+|]", note))
            issues["notes without an id: not read"] += not is_ids
            if is_ids:
                ids[match[1]].append((where, note))
        elif line.startswith("N"):
            if not (match := REFERENCE.fullmatch(line)):
                raise UserError(f"{where}: not 'N<n> TAB Reference T<n> source:id TAB name': {line[:60]!r}")
            ids[match[1]].append((where, f"{match[2]}|{match[2].partition(':')[2]}"))
    if unknown := ids.keys() - entities.keys():
        (where, _), *_ = ids[name := min(unknown)]
        raise UserError(f"{where}: an id of {name}, which is no entity of this file")
    found = [(spans, kind, "|".join(x for _, x in ids[name])) for name, (kind, spans) in entities.items()]
    yield path.stem, text, found, issues


def read_xmi(path):
    """Yields the document of a file of E3C: UIMA's XMI, with offsets in UTF-16 units. Malformed CUIs are counted."""
    root = parse_xml(path, "UIMA's XMI")
    texts = [e.get("sofaString") for e in root.iter("{http:///uima/cas.ecore}Sofa")]
    if len(texts) != 1 or texts[0] is None:
        raise UserError(f"{path}: it has {len(texts)} texts (cas:Sofa with a sofaString) instead of one")
    text, issues, entities = texts[0], Counter(), []
    units = accumulate((1 + (c > "\uffff") for c in text), initial=0)
    offset = {str(unit): i for i, unit in enumerate(units)}
    for e in root.iter("{http:///webanno/custom.ecore}CLINENTITY"):
        a, b, cui = offset.get(e.get("begin")), offset.get(e.get("end")), e.get("entityID", "")
        if a is None or b is None or a >= b:
            raise UserError(f"{path}: an entity from {e.get('begin')} to {e.get('end')}, which is no place in its text")
        if re.fullmatch(r"C\d{7}|", cui):
            entities.append((((a, b),), "CLINENTITY", cui))
        else:
            issues["mentions that are CUILESS" if cui == "CUILESS" else "mentions with a malformed CUI"] += 1
    yield path.stem, text, entities, issues


class Form(NamedTuple):
    """A form of gold standards.

    matches: a function of a path and its first 64 KB. is_document: whether a file has one document.
    """

    title: str
    matches: Callable
    read: Callable
    is_document: bool = False


FORMS = (  # the first one with a file in the folder is read: BioRED has the same documents in three forms
    Form("PubTator", lambda path, head: formats.PUBTATOR_TEXT.match(head), read_pubtator),
    Form("BioC in JSON", lambda path, head: head[:1] == "{" and '"documents"' in head, read_bioc),
    Form("BioC in XML", lambda path, head: formats.XML_BIOC.match(head), read_bioc),
    Form("brat with ids", lambda path, head: path.suffix == ".ann", read_brat, True),
    Form("E3C's XMI", lambda path, head: head[:1] == "<" and "<xmi:XMI" in head, read_xmi, True),
)


# ---------------------------------------------------------------- mentions of a corpus


def read_mentions(corpus, expand_abbreviations=False):
    """The mentions of a folder of one of FORMS: ({split: [Mention]}, {split: Counter of issues}).

    The split is in the name of a file or of a folder, or in lists of documents, as MedMentions (..pmids_trng.txt) and
    E3C have them. Files of one document without a stated split are in the test split, and counted. An absent split has
    no mentions.

    Args: corpus: a folder, or a pattern of folders: QUAERO's "corpus/*/MEDLINE".
    Raises: UserError if there is no such file, or naming file and row.
    """
    form, files = find_files(str(corpus))
    lists = read_split_lists(form, files)
    if unclear := [path for path, split in files.items() if not (lists or split or form.is_document)]:
        raise UserError(f"{unclear[0]}: its name must say its split: train, dev or test")
    one_of_each_split(
        (path.parent, split or "test") if form.is_document else (path, split) for path, split in files.items()
    )
    mentions, issues = ({split: kind() for split in corpora.SPLITS} for kind in (list, Counter))
    for path, split_of_file in files.items():
        for document, text, entities, of_document in form.read(path):
            split = split_of_file or lists.get(document, "test" if form.is_document else "")
            of_document["documents of no stated split: taken as test"] += not (split_of_file or lists)
            if split:
                mentions[split] += mentions_of_document(document, text, entities, of_document, expand_abbreviations)
                issues[split].update(of_document)
    if not any(mentions.values()):
        raise UserError(f"{corpus}: no mention with an id in it, read as {form.title}")
    return mentions, issues


def find_files(corpus):
    """(Form, {file: its split, "" if unstated}) of a folder or of a pattern of folders. Raises: UserError.

    The files are in the folder itself, or else in layer1/ of E3C, or else anywhere below.
    """
    paths = sorted(glob.glob(corpus)) if "*" in corpus else [corpus]
    root = Path(os.path.dirname(corpus.partition("*")[0]) if "*" in corpus else corpus)
    forms = ", ".join(form.title for form in FORMS)
    if not (folders := [path for path in map(Path, paths) if path.is_dir()]):
        raise UserError(f"--corpus {corpus}: no such folder; name one with a gold standard ({forms})")
    for pattern in ("*", "layer1/*", "**/*"):
        names = [(path, path.relative_to(root).parts) for folder in folders for path in sorted(folder.glob(pattern))]
        found = defaultdict(list)
        for path in [path for path, parts in names if path.is_file() and not any(part[0] == "." for part in parts)]:
            head = formats.read_head(path)  # None of a damaged file: reading it will say so
            if form := FORMS[0] if head is None else next((x for x in FORMS if x.matches(path, head)), None):
                found[FORMS.index(form)].append(path)
        if found:
            form = FORMS[min(found)]
            return form, {path: split_of_path(path.relative_to(root), form) for path in found[min(found)]}
    raise UserError(f"{corpus}: no gold standard in it ({forms})")


def read_split_lists(form, files):
    """{document: split} of lists beside a corpus: of PubMed ids, or of E3C's training documents in a folder above."""
    folder = next(iter(files)).parent.absolute()
    if not form.is_document:
        paths = [path for path in sorted(folder.glob("[!.]*")) if "pmids" in path.name.lower() and path.is_file()]
        lists = one_of_each_split((path, split_of(path)) for path in paths)
        return {pmid: split for split, path in lists.items() for pmid in read_utf8(path).split()}
    for path in (Path(place, name) for place in (folder, *folder.parents[:3]) for name in SPLIT_LISTS):
        if path.is_file():
            train = {*re.findall(r"'(\w+)'", read_utf8(path))}
            if not any(file.stem in train for file in files):
                raise UserError(f"{path}: it names no document of {folder}, such as {next(iter(files)).stem!r}")
            return dict.fromkeys(train, "train")
    return {}


def one_of_each_split(places):
    """{split: its file or folder} of pairs (place, split). Raises: UserError if two are of the same split."""
    found = {}
    for place, split in places:
        if split and (first := found.setdefault(split, place)) != place:
            if place.is_dir():
                remedy = "name one (a pattern such as 'corpus/*/MEDLINE' names one of each split)"
                raise UserError(f"two folders of the {split} split: {first} and {place}; {remedy}")
            names = f"{first.name} and {place.name}"
            raise UserError(f"{place.parent}: two files of the {split} split: {names}; leave one there")
    found.pop("", None)
    return found


def split_of_path(path, form):
    """The split that a path states, "" if none: by the file's name unless it is a document, else by the next folder."""
    parts = path.parts[:-1] if form.is_document else path.parts
    return next((split for part in reversed(parts) if (split := split_of(Path(part)))), "")


def split_of(path):
    """The split that a name states, "" if none: by a word of it (SPLIT_NAMES), or else by a part, as in NCBItestset."""
    name = path.name.lower()
    words = {*re.split("[^a-z]+", name)}
    by_word = [split for split, names in corpora.SPLIT_NAMES.items() if words & {*names}]
    if len(by_word) == 1:
        return by_word[0]
    parts = {"train": "train|trng", "dev": "dev|valid", "test": "test"}
    return next((split for split, part in parts.items() if re.search(part, name)), "")


def mentions_of_document(document, text, entities, issues, expand_abbreviations):
    """The mentions of a document that have an id. entities: as a reader of FORMS gives them. issues: a Counter."""
    distinct = dict.fromkeys(entities)
    issues["rows given twice: counted once"] += len(entities) - len(distinct)
    long_forms = find_abbreviations(normalize("NFC", text)) if expand_abbreviations else {}
    mentions = []
    for spans, _, ids in distinct:
        words = normalize("NFC", " ".join(" ".join(text[a:b] for a, b in spans).split()))
        if parts := parse_ids(ids):
            mentions.append(Mention(document, words, long_forms.get(words, words), parts))
        else:
            issues["mentions without an id"] += 1
    return mentions


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
    """The shortest end of `words` that has the letters of a short form in order, the first at the beginning of a word.

    Returns: it, with the whole word that it begins in; "" if there is none.
    """
    first, *others = [re.escape(c) for c in short if c.isalnum()]
    letters = rf"(?<![^\W_]){first}" + "".join(f"(?>.*?{c})" for c in others)
    if not (match := re.match(f"(.*){letters}", words, re.I | re.S)):
        return ""
    long_form = words[words.rfind(" ", 0, match.end(1) + 1) + 1 :]
    return long_form if len(long_form) > len(short) and short not in long_form.split() else ""


class LinkingTask(NamedTuple):
    """The mentions of a split and the dictionary that they are looked up in.

    queries: distinct names of the mentions. query: (mentions,) int64, the index of each mention's query. gold: of each
    mention, as gold_concepts gives it. unseen: (mentions,) bool, None without a training split. issues: a Counter of
    all that is not scored. not_synonymous: (mentions,) bool, those reached only by a concept that is broader, narrower
    or related to a retired CUI. retired: a Counter of the outcomes of CUIs (support/retired.py), {} without --umls.
    """

    mentions: list
    dictionary: Dictionary
    queries: list
    query: np.ndarray
    gold: list
    unseen: np.ndarray
    issues: Counter
    not_synonymous: np.ndarray = np.array(False)
    retired: Counter = Counter()


def read_tasks(s, dictionaries):
    """The LinkingTask of each Dictionary for settings `s` (link.Link). Raises: UserError."""
    if s.train_mentions and s.split in ("train", "all"):
        raise UserError(f"train_mentions with --split {s.split}: its mentions would be in the dictionary")
    ids = read_ids(s.ids) if s.ids else {}
    splits, issues = read_mentions(s.corpus, s.expand_abbreviations)
    chosen = corpora.SPLITS if s.split == "all" else [s.split]
    mentions = [mention for split in chosen for mention in splits[split]]
    if not mentions:
        raise UserError(f"{s.corpus}: no mention with an id in its {s.split} split")
    if s.train_mentions and not splits["train"]:
        raise UserError(f"train_mentions: {s.corpus} has no mention with an id in a train split")
    synonyms, retired = ids, Counter()
    if s.umls:
        used = {i for m in mentions + s.train_mentions * splits["train"] for part in m.parts for i in part}
        ids, synonyms, retired = follow_ids(s.umls, ids, used)
    queries = {name: i for i, name in enumerate(dict.fromkeys(mention.name for mention in mentions))}
    query = np.array([queries[mention.name] for mention in mentions])
    seen = {mention.text.lower() for mention in splits["train"]} if s.split != "all" else ()
    unseen = np.array([mention.text.lower() not in seen for mention in mentions]) if seen else None
    counts = sum((issues[split] for split in chosen), Counter())
    tasks = []
    for dictionary in dictionaries:
        if s.train_mentions:
            dictionary = add_train_mentions(dictionary, splits["train"], synonyms)
        gold, not_synonymous = find_gold(s, mentions, dictionary, ids, synonyms)
        tasks.append(
            LinkingTask(mentions, dictionary, [*queries], query, gold, unseen, counts, not_synonymous, retired)
        )
    return tasks


def find_gold(s, mentions, dictionary, ids, synonyms):
    """(gold, not_synonymous) of a LinkingTask. ids, synonyms: as follow_ids gives them. Raises: UserError for none."""
    index = index_of_ids(dictionary)
    by_synonyms, by_all = ([gold_concepts(m, to, index) for m in mentions] for to in (synonyms, ids))
    gold = [exact or other for exact, other in zip(by_synonyms, by_all)]
    if not any(gold):
        example = "+".join("|".join(part) for part in mentions[0].parts)
        remedy = f"{s.ids} names none of them" if s.ids else "give --ids, a file of id TAB concept lines"
        raise UserError(
            f"{s.corpus}: no id of its {s.split} split, such as {example}, is in the dictionary, whose ids are such as "
            f"{dictionary.ids[0]}; {remedy}"
        )
    return gold, np.array([bool(found) and not exact for exact, found in zip(by_synonyms, gold)])
