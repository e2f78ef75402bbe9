"""Gold standards of entity linking: the mentions of a corpus with their ids, and the concepts that these name."""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import numpy as np

from beyond.dictionaries import Dictionary, add_train_mentions, gold_concepts, index_of_ids, parse_ids, read_ids
from configs import UserError
from support import corpora, formats
from support.files import read_utf8
from support.retired import follow_ids


class Mention(NamedTuple):
    """A mention of a concept in a corpus.

    text: its words, in NFC. name: what is looked up, its words or the long form of an abbreviation. parts: its ids, all
    of which must be found; each is a tuple of alternatives.
    """

    document: str
    text: str
    name: str
    parts: tuple


# ---------------------------------------------------------------- mentions of a corpus


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
    heads = [formats.read_head(path) for path in files]  # None of a damaged file: reading it will say so
    files = [path for path, head in zip(files, heads) if head is None or formats.PUBTATOR_TEXT.match(head)]
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


def mentions_of_file(path, expand_abbreviations):
    """Yields (document, its mentions that have an id, Counter of its issues) of a PubTator file."""
    texts, entities, n_repeats = formats.parse_pubtator(path)
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

    queries: distinct names of the mentions. query: (mentions,) int64, which of them each mention has. gold: of each
    mention, as gold_concepts gives it. unseen: (mentions,) bool, None without a training split. issues: what is not
    scored, a Counter. not_synonymous: (mentions,) bool, those reached by a broader, narrower or related concept of a
    retired CUI alone. retired: a Counter of the outcomes of their CUIs (see support/retired.py), {} without --umls.
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


def read_task(s, dictionary):
    """The LinkingTask of settings `s` (link.Link). Raises: UserError."""
    if s.train_mentions and s.split == "train":
        raise UserError("train_mentions with --split train: each mention would be in the dictionary")
    ids = read_ids(s.ids) if s.ids else {}
    splits, issues = read_mentions(s.corpus, s.expand_abbreviations)
    mentions = splits[s.split]
    if not mentions:
        raise UserError(f"{s.corpus}: no mention with an id in its {s.split} split")
    if s.train_mentions and not splits["train"]:
        raise UserError(f"train_mentions: {s.corpus} has no mention with an id in a train split")
    synonyms, retired = ids, Counter()
    if s.umls:
        used = {i for m in mentions + s.train_mentions * splits["train"] for part in m.parts for i in part}
        ids, synonyms, retired = follow_ids(s.umls, ids, used)
    if s.train_mentions:
        dictionary = add_train_mentions(dictionary, splits["train"], synonyms)
    index = index_of_ids(dictionary)
    by_synonyms, gold = ([gold_concepts(m, to, index) for m in mentions] for to in (synonyms, ids))
    gold = [exact or other for exact, other in zip(by_synonyms, gold)]
    not_synonymous = np.array([bool(found) and not exact for exact, found in zip(by_synonyms, gold)])
    if not any(gold):
        example = "+".join("|".join(part) for part in mentions[0].parts)
        remedy = f"{s.ids} names none of them" if s.ids else "give --ids, a file of id TAB concept lines"
        raise UserError(
            f"{s.corpus}: no id of its {s.split} split, such as {example}, is in the dictionary, whose ids are such as "
            f"{dictionary.ids[0]}; {remedy}"
        )
    queries = {name: i for i, name in enumerate(dict.fromkeys(mention.name for mention in mentions))}
    query = np.array([queries[mention.name] for mention in mentions])
    seen = {mention.text.lower() for mention in splits["train"]}
    unseen = np.array([mention.text.lower() not in seen for mention in mentions]) if seen else None
    return LinkingTask(mentions, dictionary, [*queries], query, gold, unseen, issues[s.split], not_synonymous, retired)
