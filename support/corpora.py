"""The evaluation corpora (section 4.2): one table, and reading by name; formats.py has one reader for each format.

splits, issues = read_corpus("meddocan", "MEDDOCAN")        -> {"train": [Document, ...], "dev": .., "test": ..}
splits, issues = read_corpus("ncbi-disease", "ncbi_disease")    the same, from the form in which the hub stores it
texts = read_texts("MEDDOCAN/test")                          what make data EXCLUDE=.. leaves out of pre-training
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from configs import UserError
from support import hub
from support.bioc import load_collection, text_parts
from support.files import read_utf8
from support.formats import XML_BIOC, read_brat, read_cas, read_split
from support.hub import SPLIT_NAMES
from support.labels import check_type, count_entities
from support.umls import LANGUAGES

SPLITS = tuple(SPLIT_NAMES)
TABLE_SUFFIXES = (".parquet", ".arrow", ".jsonl")
TEXT_SUFFIXES = (".txt", ".tsv", ".conll", ".bio", ".iob", ".iob2", ".pubtator", ".json", ".xml", *TABLE_SUFFIXES)


# ---------------------------------------------------------------- the table


class Corpus(NamedTuple):
    """Where the splits of a corpus are, and what the paper has of it."""

    title: str
    language: str
    licence: str
    holds: str  # what its folder must hold
    table5: str = ""  # training, dev, test sequences and classes of Table 5
    splits: dict | None = None  # {split: patterns of its file or folder, the first one that is there}
    read: Callable | None = None  # for a corpus whose files are not its splits: (folder, issues) -> {split: documents}
    types: dict | None = None  # {their type: ours}; others are left out, counted
    bio: bool = True  # whether the paper's labels have B- and I-
    pos: bool = False  # parts of speech: every token counts
    mark: str = ""  # for `read`: the file by which the owners' form is recognised


DEFT = {  # ours, by semantic group where there is one: the paper does not say what its groups are
    "anatomie": "ANAT", "pathologie": "DISO", "sosy": "DISO", "substance": "CHEM", "examen": "PROC",
    "traitement": "PROC", "dose": "dose", "mode": "mode", "moment": "moment", "valeur": "valeur",
}  # fmt: skip
BIORED = ("PubTator", "BioC.JSON", "BioC.XML")
NCBI = dict.fromkeys(("Disease", "SpecificDisease", "Modifier", "DiseaseClass", "CompositeMention"), "Disease")


def read_parts_of_speech(name, folder, issues):
    """The sentences of CAS or ESSAI, split at random as section 4.2 says."""
    return dict(zip(SPLITS, random_splits(read_cas(folder, name, issues), 0.7, 0.15)))


def read_cas_sg(folder, issues):
    """DEFT 2021's clinical cases: its training part, and its test part in halves, dev and test."""
    path = Path(folder, "distribution-corpus.txt")
    if not path.is_file():
        raise UserError(f"{path} not found; --data must be DEFT2021-cas-cliniques, with DEFT-cas-cliniques/ in it")
    part = {}
    for row, line in enumerate(read_utf8(path).split("\n"), 1):
        fields = line.strip().split("\t")
        if len(fields) == 4 and fields[3].split()[0] in ("train", "test"):
            part[Path(fields[0]).stem] = fields[3].split()[0]
        elif line.strip() and row > 1:
            raise UserError(f"{path}, row {row}: not 'file TAB .. TAB .. TAB train|test 2021': {line[:60]!r}")
    documents = read_brat(Path(folder, "DEFT-cas-cliniques"), DEFT, issues)
    names = {d.name for d in documents}
    issues["documents without a part in distribution-corpus.txt: left out"] += len(names - part.keys())
    issues["documents of distribution-corpus.txt that are missing"] += len(part.keys() - names)
    train, test = ([d for d in documents if part.get(d.name) == p] for p in ("train", "test"))
    return dict(zip(SPLITS, (train, *random_splits(test, 0.5))))


def random_splits(documents, *shares):
    """Splits of a corpus without official ones, by a fixed seed: of `shares`, and the rest."""
    order = np.random.default_rng(0).permutation(len(documents))
    cuts = (np.cumsum(shares) * len(documents) + 1e-9).astype(int)
    return [[documents[i] for i in sorted(part)] for part in np.split(order, cuts)]


def in_splits(*patterns):
    """{split: patterns}. In them {} is any name of the split, and | divides patterns of which only one may be there.

    A pattern may be a list of three where a corpus has names of its own.
    """
    splits = {}
    for i, (split, names) in enumerate(SPLIT_NAMES.items()):
        in_any_case = ["".join(f"[{c}{c.upper()}]" for c in name) for name in names]
        chosen = [p if isinstance(p, str) else p[i] for p in patterns]
        splits[split] = ["|".join(p.replace("{}", name) for name in in_any_case) for p in chosen if p]
    return splits


CORPORA = {
    "cas-pos": Corpus(
        "CAS-POS", "fr", "on request (Grabar, Dalloux, Claveau)", "CAS_neg.txt and CAS_spec.txt",
        "2,652 569 569 31", read=partial(read_parts_of_speech, "CAS"), pos=True, mark="CAS_neg.txt",
    ),
    "cas-sg": Corpus(
        "CAS-SG", "fr", "on request (DEFT 2021)", "distribution-corpus.txt and DEFT-cas-cliniques/*.{txt,ann}",
        "167 54 54 8", read=read_cas_sg, types=DEFT, bio=False, mark="distribution-corpus.txt",
    ),
    "quaero-medline": Corpus(
        "QUAERO-MEDLINE", "fr", "GFDL", "corpus/{train,dev,test}/MEDLINE/*.{txt,ann}",
        "788 790 787 7", in_splits("corpus/{}/MEDLINE", "{}/MEDLINE"), bio=False,
    ),
    "quaero-emea": Corpus(
        "QUAERO-EMEA", "fr", "GFDL", "corpus/{train,dev,test}/EMEA/*.{txt,ann}", "",
        in_splits("corpus/{}/EMEA", "{}/EMEA"), bio=False,
    ),
    "essai-pos": Corpus(
        "ESSAI-POS", "fr", "on request (Dalloux, Claveau, Grabar)", "ESSAI_neg.txt and ESSAI_spec.txt",
        "5,072 1,088 1,087 34", read=partial(read_parts_of_speech, "ESSAI"), pos=True, mark="ESSAI_neg.txt",
    ),
    "ncbi-disease": Corpus(
        "NCBI-Disease", "en", "public domain", "NCBI{train,develop,test}set_corpus.txt, or {train,devel,test}.tsv",
        "5,433 924 941 3", in_splits([f"NCBI{part}set_corpus.txt" for part in ("train", "develop", "test")], "{}.tsv"),
        types=NCBI,
    ),
    "biored": Corpus(
        "BioRED-NER", "en", "public domain", "{Train,Dev,Test}.PubTator, or the same .BioC.JSON or .BioC.XML",
        "387 98 97 7", in_splits(*([f"{p}.{end}" for p in ("Train", "Dev", "Test")] for end in BIORED)), bio=False,
    ),
    "jnlpba": Corpus(
        "JNLPBA04", "en", "GENIA project", "Genia4ERtask2.iob2 and Genia4EReval2.iob2 (or the same with 1)",
        "16,619 1,927 3,856 11", in_splits(*[(f"Genia4ERtask{i}.iob2", None, f"Genia4EReval{i}.iob2") for i in "21"]),
    ),
    "pharmaconer": Corpus(
        "PharmaCoNER", "es", "CC BY 4.0",
        "{train,dev,test}-set_1.1/{train,dev,test}/subtrack1/*.{txt,ann}, or {train,dev,test}[-set_1.1].conll",
        "500 250 250 5", in_splits("{}-set_1.1/{}/subtrack1", "{}/subtrack1", "{}-set_1.1.conll", "{}.conll"),
        bio=False,
    ),
    "meddocan": Corpus(
        "MEDDOCAN", "es", "CC BY 4.0", "{train,dev,test}/brat/*.{txt,ann}",
        "500 250 250 22", in_splits("{}/brat"), bio=False,
    ),
    "e3c": Corpus(
        "E3C", "en es fr it eu", "CC BY-NC", "train.txt and test.txt of clinical_entities/layer1/<Language>", "",
        in_splits(("train.txt", None, "test.txt")),
    ),
    "custom": Corpus(
        "your own", "", "", "train.* and test.* (a token and its tag a line), or train/ and test/ (brat)", "",
        in_splits("{}|{}/brat|{}.*|[!.]*.{}"),
    ),
}  # fmt: skip
TABLE_5_NOTE = (
    "Table 5 counts what the authors' scripts kept; the corpora themselves hold other numbers (beyond.check). "
    "QUAERO-MEDLINE, for example, has 833, 832 and 833 titles and 10 types. Classes are labels of the training split."
)


# ---------------------------------------------------------------- a corpus, by name


def read_corpus(name, folder, labels=""):
    """({split: Documents}, {split: Counter of issues}) of a corpus; dev may be absent. Raises: UserError.

    The folder holds the corpus as its owners distribute it, or else in a form of the hub. labels: the column of tags in
    the latter; "" for the only one.
    """
    if name not in CORPORA:
        raise UserError(f"unknown corpus '{name}'; it is one of {', '.join(CORPORA)} (finetune.py list)")
    corpus = CORPORA[name]
    needs = f"{corpus.holds}; or a form of the hub: {hub.FORMS}"
    if not folder:
        raise UserError(f"no folder of the corpus given; give --data, which must hold {needs}")
    if not Path(folder).is_dir():
        raise UserError(f"--data '{folder}': there is no such folder; it must hold the corpus: {needs}")
    folder, issues = corpus_folder(name, folder), defaultdict(Counter)
    places = {split: find_split(folder, split, patterns) for split, patterns in (corpus.splits or {}).items()}
    is_owners = Path(folder, corpus.mark).is_file() if corpus.mark else any(places.values())
    files = {} if is_owners else hub.find_splits(folder)
    if labels and not files:
        raise UserError(f"labels = '{labels}': {folder} has no columns with names, as it is in no form of the hub")
    if files:
        places = {split: files.get(split) for split in SPLITS}
    splits = corpus.read(folder, issues["train"]) if corpus.read and not files else {}
    for split, place in places.items():
        if place and files:
            splits[split] = hub.read_files(place, corpus.types, corpus.pos, labels, issues[split])
        elif place:
            splits[split] = read_split(place, corpus.types, issues[split])
            for d in splits[split]:
                for kind in dict(d.gold or ()):
                    check_type(kind, f"{place}, document {d.name}")
        elif split != "dev":
            there = ", ".join(split for split in places if places[split]) or "none"
            raise UserError(f"{folder} holds no {split} split (it has: {there}); corpus {name} needs {needs}")
        elif not files:  # its names may be others than those that are known
            unread = [p for p in Path(folder).glob("[!.]*") if re.search("dev|valid", p.name.lower())]
            issues["train"]["files that look like a dev split: not read"] += len(unread)
    if files:
        hub.group_documents(splits)
    for split, documents in splits.items():
        splits[split] = [d for d in documents if d.tokens]
        issues[split]["documents without a word: left out"] += len(documents) - len(splits[split])
        if not splits[split]:
            raise UserError(f"{folder}: the {split} split is empty; corpus {name} needs {needs}")
    theirs = [x[1] for x in map(re.compile("entities of type (.*): left out").fullmatch, issues["train"]) if x]
    if theirs and not count_entities(splits["train"]):
        fault = f"no entity of {corpus.title} in its training split, whose types are {', '.join(theirs[:5])}"
        raise UserError(f"{folder}: {fault}; is it this corpus? --corpus custom takes all types")
    return splits, issues


def find_split(folder, split, patterns):
    """The file or folder of a split, in `folder` or one below; None if there is none. Raises: UserError for several."""
    for pattern in patterns:
        for below in ("", "*/"):
            places = {p for place in pattern.split("|") for p in Path(folder).glob(below + place)}
            found = sorted(p for p in places if any(p.glob("*.ann")) or (p.is_file() and not hub.is_hub_file(p)))
            if len(found) > 1:
                names = ", ".join(str(p.relative_to(folder)) for p in found[:3]) + " .." * (len(found) > 3)
                raise UserError(f"{folder} holds {len(found)} of {split} ({names}); leave one, or name a folder of one")
            if found:
                return found[0]
    return None


def corpus_folder(name, folder):
    """The folder of a corpus; of a clone of E3C the language in it. Raises: UserError naming those to choose from."""
    if name != "e3c" or not folder or Path(folder, "train.txt").is_file():
        return folder
    found = sorted(p.parent for p in Path(folder).rglob("train.txt") if p.with_name("test.txt").is_file())
    found = [p for p in found if len(p.parts) == min(len(p.parts) for p in found)]
    if len(found) > 1:
        names = ", ".join(map(str, found[:10])) + " .." * (len(found) > 10)
        raise UserError(f"{folder} holds {len(found)} folders of E3C; choose the one of a language as --data: {names}")
    return found[0] if found else folder


def language_of(name, folder):
    """The language of a corpus; of one in several the first folder from the right that is named for one of them."""
    known = CORPORA[name].language.split()
    if len(known) == 1:
        return known[0]
    names = {LANGUAGES[lang][1].lower(): lang for lang in known} | {lang: lang for lang in known}
    words = re.split(r"[\W_]", str(Path(corpus_folder(name, folder)).resolve()).lower())
    return next((names[word] for word in reversed(words) if word in names), "")


# ---------------------------------------------------------------- the texts alone


def read_texts(place):
    """The texts of a corpus, a file or folder, that pre-training must not see. Raises: UserError if it holds none.

    Of columns these are each sentence, and all as one. Annotations are not parsed. So tags of other schemes, and files
    that lie beside a corpus, do not stop a build.
    """
    place, texts = Path(place), []
    suffixes = {*TEXT_SUFFIXES, *(f".{name}" for names in SPLIT_NAMES.values() for name in names)}  # eng.testa
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    for file in files:
        if file.is_file() and file.name[0] != "." and file.suffix.lower() in suffixes:
            texts += texts_of_file(file)
    if not texts:
        raise UserError(f"exclude: {place} is not, and does not hold, a file ending in {', '.join(TEXT_SUFFIXES)}")
    return texts


def texts_of_file(file):
    """The texts of a form of the hub, BioC, PubTator, a brat .txt, columns or a plain text."""
    if file.suffix.lower() in TABLE_SUFFIXES or hub.is_hub_file(file):
        return hub.read_table_texts(file)
    text = re.sub(r"^(###MEDLINE:|-DOCSTART-).*", "", read_utf8(file), flags=re.M)
    if XML_BIOC.match(text) or (file.suffix.lower() == ".json" and file.name not in hub.METADATA):
        try:
            return [" ".join(part["text"] for part in text_parts(d)) for d in load_collection(file)]
        except UserError as e:
            raise UserError(f"exclude: {e}; name another folder") from None
    if file.suffix.lower() in (".json", ".xml"):  # metadata of the hub, or MEDDOCAN's XML beside brat
        return []
    if abstracts := re.findall(r"^([^\s|]+)\|t\|(.*)\n\1\|a\|(.*)", text, re.M):
        return [" ".join(title_and_abstract) for _, *title_and_abstract in abstracts]
    lines = [line for line in text.splitlines() if line.strip()][:5]
    is_columns = "\t" in "".join(lines[:1]) or all(re.search(r" (O|[BIELSU]-\S+)$", line) for line in lines)
    if file.with_suffix(".ann").is_file() or not is_columns:
        return [text]
    # The word is the first column, or the third where sentence and token are numbered (CAS, ESSAI).
    sentences = re.split(r"\n\s*\n", text)
    sentences = [" ".join(re.findall(r"^(?:\d+\t\d+\t)?([^\t\n ]+)", x, re.M)) for x in sentences]
    return [" ".join(sentences), *sentences]
