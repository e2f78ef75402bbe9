"""One-shot token classification on a checkpoint, of kgi.py or of any family that model.py reads (paper, section 4.2).

    python finetune.py --list                                                        the corpora, and where they are
    python finetune.py --check meddocan --data MEDDOCAN [--dataset datasets/es]      what is in one, what is lost
    python finetune.py runs/kgi-fr --corpus e3c --data E3C-Corpus/preprocessed_data/clinical_entities/layer1/French
    python finetune.py runs/kgi-en --corpus ncbi-disease --data NCBI-disease --runs 4
    python finetune.py SapBERT-from-PubMedBERT-fulltext --data my-corpus             train and test in CoNLL or brat
    python finetune.py runs/kgi-fr --data my-corpus --untrained
    python finetune.py --tables [--paper]                                            results/ as the paper's tables

One pass over the training part, batch 4, learning rate 2e-5, weight decay 0.01; each of --runs seeds
starts from the same checkpoint. Two scores: the paper's (precision, recall and F1 averaged over the labels
of each sequence, O included, then over sequences) and the field's (strict entity-level P/R/F1, on character spans
against all that the corpus marks, where it has text). Written to results/<checkpoint>/<corpus>/: scores.json and
the predictions, a token a line.
"""

import copy
import fcntl
import hashlib
import json
import os
import re
import statistics
import time
import unicodedata
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from seqeval.scheme import IOB2, Entities
from tokenizers import Tokenizer
from tqdm import tqdm

import configs
import data
import model as models
from configs import UserError, read_utf8, tokenization, write_atomic

# ---------------------------------------------------------------- corpora (section 4.2): the formats

PARTS = ("train", "dev", "test")
TOKEN = re.compile(r"[^\W_]+|[^\s\ufeff]")  # letters and digits together, any other visible character alone
PUBTATOR = re.compile(r"(\d+)\|([ta])\|(.*)")
FRAGMENTS = re.compile(r"(\S+) (\d+ \d+(?:;\d+ \d+)*)")
RESAMPLES = 1000  # draws of test documents for an interval
NEAR = 3  # characters that an entity's offsets may be beside its words


@dataclass
class Document:
    """One sequence of a corpus: a document, a title or a sentence.

    labels: of each token, IOB2 or a part of speech. Of a corpus with text: its tokens' character spans, and gold: all
    entities as (type, ((start, end), ...)), also those that labels cannot say (nested, in pieces, within a word).
    breaks: the tokens that begin a line. group: the document that a sentence is of, if that is known.
    """

    name: str
    tokens: list
    labels: list
    spans: list | None = None
    gold: list | None = None
    text: str | None = None
    breaks: tuple = ()
    group: str = ""


def renamed(kind, types, odd):
    """An entity's type as the task has it; None, counted, if it has not. types: {theirs: ours}, or None for all."""
    if types is None or kind in types:
        return types[kind] if types else kind
    odd[f"entities of type {kind}: left out"] += 1


def annotate(name, text, entities, types, odd):
    """Text and its entities, (type, fragments) each -> a Document. What labels cannot say is counted in `odd`.

    Blanks at the ends of an entity are no part of it, and an entity that is marked twice counts once.
    Of entities that overlap the longest is labelled (then the first in the text, then in the file), from its first
    character to its last. A token belongs to an entity if they share a character; two in one token: to the earlier.
    """
    once = {}
    for kind, where in entities:
        if not (kind := renamed(kind, types, odd)):
            continue
        fragments = tuple(trimmed(text[a:b], a) for a, b in where if text[a:b].strip())
        odd["entities with blanks at an end: trimmed"] += fragments != where
        key = kind, tuple(sorted(fragments))
        odd["entities marked twice: counted once"] += key in once
        once.setdefault(key, (kind, fragments))
    entities = list(once.values())
    odd["entities of several fragments: one stretch, where labelled"] += sum(len(f) > 1 for _, f in entities)
    spans = [m.span() for m in TOKEN.finditer(text) if unicodedata.category(m[0][0])[0] != "C"]
    begin, end = [a for a, _ in spans], [b for _, b in spans]
    hulls = [(min(a for a, _ in f), max(b for _, b in f)) for _, f in entities]
    taken, kept, labels = np.zeros(len(text), bool), [], ["O"] * len(spans)
    for i in sorted(range(len(hulls)), key=lambda i: (hulls[i][0] - hulls[i][1], hulls[i][0], i)):
        a, b = hulls[i]
        if taken[a:b].any():
            odd["entities within or across a longer one: not labelled"] += 1
        else:
            taken[a:b] = True
            kept.append(i)
    for i in sorted(kept, key=lambda i: hulls[i]):
        kind, (a, b) = entities[i][0], hulls[i]
        inside = range(bisect_right(end, a), bisect_left(begin, b))
        free = [k for k in inside if labels[k] == "O"]
        if not free:
            odd["entities within the word of another: not labelled"] += 1
            continue
        whole = begin[free[0]], end[free[-1]]
        odd["entities that begin or end inside a word: labelled with all of it"] += whole != (a, b)
        for k in free:
            labels[k] = ("B-" if k == free[0] else "I-") + kind
    breaks = tuple(k for k in range(1, len(spans)) if "\n" in text[end[k - 1] : begin[k]])
    return Document(name, [text[a:b] for a, b in spans], labels, spans, entities, text, breaks)


def read_brat(folder, types, odd):
    """A folder of X.txt and X.ann (brat standoff): a list of Documents.

    Only text-bound lines (T) count. Offsets are code points of the file as it is, a byte order mark included.
    Raises: UserError for a line that is not brat's, or offsets whose text is not in the file at or near them.
    """
    documents, files = [], sorted(Path(folder).glob("[!.]*.ann"))
    odd["texts without an .ann file: not read"] += len(
        {*Path(folder).glob("[!.]*.txt")} - {f.with_suffix(".txt") for f in files}
    )
    for path in files:
        if not path.with_suffix(".txt").is_file():
            raise UserError(f"{path.with_suffix('.txt')} not found, the text of {path.name}")
        text, entities = read_utf8(path.with_suffix(".txt"), mark="\ufeff"), []
        for row, line in enumerate(read_utf8(path).split("\n"), 1):
            fields = line.rstrip("\r").split("\t")
            if line[:1] != "T":
                continue
            match = FRAGMENTS.fullmatch(fields[1]) if len(fields) == 3 else None
            if not match:
                raise UserError(f"{path}, row {row}: not 'T<n> TAB type start end TAB text': {line[:60]!r}")
            fragments = [tuple(map(int, f.split())) for f in match[2].split(";")]
            for k in sorted(range(-NEAR, NEAR + 1), key=abs):  # 0 first: the offsets as they are
                moved = tuple((a + k, b + k) for a, b in fragments)
                words = " ".join(text[a:b] for a, b in moved).split()
                # A slice ends at the end of the text without a word, so the offsets are compared with it.
                if words == fields[2].split() != [] and all(0 <= a <= b <= len(text) for a, b in moved):
                    break
            else:
                words = " ".join(text[a:b] for a, b in fragments)
                past = f" (the text has {len(text):,} characters)" * (max(map(max, fragments)) > len(text))
                said = f"{match[2]} is {words[:40]!r} in the text{past}, not {fields[2][:40]!r}"
                raise UserError(f"{path}, row {row}: {said}; are both files of one version?")
            odd["entities beside their offsets: moved"] += k != 0
            entities.append((match[1], moved))
        documents.append(annotate(path.stem, text, entities, types, odd))
    return documents


def read_pubtator(path, types, odd):
    """PubTator blocks (id|t|title, id|a|abstract, then entities, a TAB between fields) -> a list of Documents."""
    texts, entities = {}, defaultdict(list)
    seen, again = set(), False
    for row, line in enumerate(read_utf8(path).split("\n"), 1):
        line = line.rstrip("\r")
        if match := PUBTATOR.fullmatch(line):
            pmid, what, text = match.groups()
            if what == "t":
                again = pmid in seen
                seen.add(pmid)
                odd["documents that come again: left out"] += again
            if not again:
                texts[pmid] = text if what == "t" else f"{texts.get(pmid, '')}\n{text}"
            continue
        fields = line.split("\t")
        if not line.strip() or again or (len(fields) == 5 and not fields[1].isdigit()):  # a relation (BioRED)
            continue
        if len(fields) not in (5, 6) or not (fields[1].isdigit() and fields[2].isdigit()) or fields[0] not in texts:
            raise UserError(f"{path}, row {row}: neither text, entity nor relation of PubTator: {line[:60]!r}")
        pmid, a, b, words, kind = fields[:5]
        a, b = int(a), int(b)
        found = texts[pmid][a:b]
        if not found.strip() or found.strip() != words.strip() or b > len(texts[pmid]):
            raise UserError(f"{path}, row {row}: {a} {b} is {found[:40]!r} in the text, not {words[:40]!r}")
        entities[pmid].append((kind, ((a, b),)))
    return [annotate(pmid, text, entities[pmid], types, odd) for pmid, text in texts.items()]


def trimmed(text, start):
    """(start, end) of a stretch of text without the blanks at its ends."""
    a = start + len(text) - len(text.lstrip())
    return a, a + len(text.strip())


def read_bioc(path, types, odd):
    """BioC as JSON -> a list of Documents. Offsets are of the document: a passage begins at its own."""
    documents = []
    try:
        for document in json.loads(read_utf8(path))["documents"]:
            text, entities = "", []
            for passage in document["passages"]:
                text = text.ljust(passage["offset"], "\n") + passage["text"]
                for a in passage["annotations"]:
                    where = [(x["offset"], x["offset"] + x["length"]) for x in a["locations"]]
                    entities.append((a["infons"]["type"], tuple(where), a["text"]))
            for _, where, words in entities:
                found = " ".join(text[a:b] for a, b in where)
                within = all(0 <= a <= b <= len(text) for a, b in where)
                if not found.strip() or found.strip() != words.strip() or not within:
                    raise UserError(f"{path}, document {document['id']}: {where} is {found[:40]!r}, not {words[:40]!r}")
            documents.append(annotate(str(document["id"]), text, [e[:2] for e in entities], types, odd))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path}: not a collection of BioC in JSON ({type(e).__name__}: {e})") from None
    return documents


def read_conll(path, types, odd):
    """A file of columns, TAB or one space between them, the token first, its tag last -> a list of Documents.

    Each is a sentence, ended by a blank line; -DOCSTART- and ###MEDLINE:<id> begin documents (numbered: ids repeat).
    Tags become IOB2: O, B-X, I-X. Raises: UserError naming the row of another number of columns or an unknown tag.
    """
    sentences, columns, tokens, labels, group, before = [], None, [], [], 0, "O"
    for row, line in enumerate([*read_utf8(path).split("\n"), ""], 1):
        line = line.rstrip("\r")
        if not line.strip() or line.startswith(("###MEDLINE:", "-DOCSTART-")):
            if tokens:
                sentences.append(Document(f"{path.stem}:{row}", tokens, labels, group=f"{group}" if group else ""))
                tokens, labels = [], []
            group, before = group + bool(line.strip()), "O"
            continue
        fields = line.split("\t") if "\t" in line else line.split(" ")
        columns = columns or max(2, len(fields))
        if len(fields) != columns or not fields[0]:
            what = f"{len(fields)} columns instead of {columns} (the token first, its tag last)"
            raise UserError(f"{path}, row {row}: {what}: {line[:60]!r}")
        tag, kind = fields[-1], fields[-1][2:]
        if tag != "O" and (tag[:2] not in ("B-", "I-") or not kind):
            raise UserError(f"{path}, row {row}: unknown label '{tag}'; expected O, B-<type> or I-<type>")
        if tag[:2] == "I-" and before not in (f"B-{kind}", tag):
            odd["I- tags that begin an entity: read as B-"] += 1
            tag = f"B-{kind}"
        if tag != before.replace("B-", "I-", 1):  # not the same entity still
            ours = tag != "O" and renamed(kind, types, odd)
        tokens.append(fields[0])
        labels.append(tag[:2] + ours if tag != "O" and ours else "O")
        before = tag
    if not sentences:
        raise UserError(f"{path}: no sentence in it")
    return sentences


# CAS and ESSAI: TreeTagger's tags for French, and what the files have beside them by mistake.
TAGS = set(
    "ABR ADJ ADV DET:ART DET:POS FAG INT KON NAM NN NOM NUM PREF PRO PRO:DEM PRO:IND PRO:PER PRO:POS PRO:REL PRP "
    "PRP:det PUN PUN:cit SENT SYM VER: VER:con VER:cond VER:futu VER:impf VER:infi VER:pper VER:ppre VER:pres VER:simp "
    "VER:subi VER:subp".split()
)


def read_tagged(path, odd):
    """A file of CAS or ESSAI (columns: sentence, token, word, lemma, tag, cues) -> {sentence number: (words, tags)}.

    A number that was cut at its thousands ("100 000") has moved the columns after it: the tag is the first column
    from the fifth on that is one, the word all before the lemma. @card@, the lemma of numbers, is not a tag.
    """
    sentences, last = {}, None
    for row, line in enumerate(read_utf8(path).split("\n"), 1):
        fields = line.rstrip("\r").split("\t")
        if not line.strip():
            last = None
            continue
        if len(fields) < 5 or not (fields[0].isdigit() and fields[1].isdigit()):
            odd["lines of fewer than five columns: left out"] += 1
            continue
        at = next((k for k in range(4, len(fields)) if fields[k] in TAGS), None)
        if at is None and "@card@" not in fields[4:]:
            raise UserError(f"{path}, row {row}: no part of speech in column 5 or later: {line[:60]!r}")
        end = at - 1 if at else 3 + fields[3 : fields.index("@card@", 4)].count("000")
        odd["words put together again from several columns"] += end > 3
        number = int(fields[0])
        odd["sentence numbers that come again later: one sentence"] += number != last and number in sentences
        words, tags = sentences.setdefault(number, ([], []))
        words.append(" ".join(fields[2 : max(end, 3)]))
        tags.append(fields[at] if at else "NUM")
        last = number
    return sentences


def read_cas(folder, name, odd):
    """CAS or ESSAI: <name>_neg.txt and <name>_spec.txt -> Documents, sentences; those of both files once."""
    paths = [Path(folder, f"{name}_{what}.txt") for what in ("neg", "spec")]
    if missing := [path for path in paths if not path.is_file()]:
        raise UserError(f"{missing[0]} not found; {folder} must hold {name}_neg.txt and {name}_spec.txt")
    sentences, second = (read_tagged(path, odd) for path in paths)
    known = {tuple(words) for words, _ in sentences.values()}
    documents = [Document(str(number), words, tags) for number, (words, tags) in sorted(sentences.items())]
    for number, (words, tags) in sorted(second.items()):
        if number not in sentences:
            documents.append(Document(str(number), words, tags))
        elif words != sentences[number][0]:  # not the same sentence after all
            new = tuple(words) not in known
            odd["numbers with other words in the second file: kept if new"] += 1
            documents += [Document(f"{number}'", words, tags)] * new
    return documents


def shuffled(documents, *shares):
    """Parts of a corpus without an official split, by a fixed seed: of `shares`, and the rest."""
    order = np.random.default_rng(0).permutation(len(documents))
    cuts = (np.cumsum(shares) * len(documents) + 1e-9).astype(int)
    return [[documents[i] for i in sorted(part)] for part in np.split(order, cuts)]


# ---------------------------------------------------------------- corpora: the nine tasks, and others


class Corpus(NamedTuple):
    """Where the parts of a corpus are, and what the paper has of it."""

    title: str
    language: str
    licence: str
    holds: str  # what its folder must hold
    table5: str = ""  # training, dev, test sequences and classes of Table 5
    parts: dict | None = None  # {part: patterns of its file or folder, the first one that is there}
    read: Callable | None = None  # for a corpus whose files are not its parts: (folder, odd) -> {part: documents}
    types: dict | None = None  # {their type: ours}; others are left out, counted
    bio: bool = True  # whether the paper's labels have B- and I-
    pos: bool = False  # parts of speech: every token counts


DEFT = {  # ours, by semantic group where there is one: the paper does not say what its groups are
    "anatomie": "ANAT", "pathologie": "DISO", "sosy": "DISO", "substance": "CHEM", "examen": "PROC",
    "traitement": "PROC", "dose": "dose", "mode": "mode", "moment": "moment", "valeur": "valeur",
}  # fmt: skip
NCBI = dict.fromkeys(("Disease", "SpecificDisease", "Modifier", "DiseaseClass", "CompositeMention"), "Disease")


def read_cas_pos(folder, odd):
    return dict(zip(PARTS, shuffled(read_cas(folder, "CAS", odd), 0.7, 0.15)))


def read_essai_pos(folder, odd):
    return dict(zip(PARTS, shuffled(read_cas(folder, "ESSAI", odd), 0.7, 0.15)))


def read_cas_sg(folder, odd):
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
    documents = read_brat(Path(folder, "DEFT-cas-cliniques"), DEFT, odd)
    odd["documents without a part in distribution-corpus.txt: left out"] += sum(d.name not in part for d in documents)
    odd["documents of distribution-corpus.txt that are not there"] += len(part.keys() - {d.name for d in documents})
    train, test = ([d for d in documents if part.get(d.name) == p] for p in ("train", "test"))
    return dict(zip(PARTS, (train, *shuffled(test, 0.5))))


def in_parts(*patterns):
    """{part: patterns} with {} for the part's name; a pattern may be (train, dev, test) where the names differ."""
    return {
        part: [p.format(part) if isinstance(p, str) else p[i] for p in patterns if isinstance(p, str) or p[i]]
        for i, part in enumerate(PARTS)
    }


CORPORA = {
    "cas-pos": Corpus(
        "CAS-POS", "fr", "on request (Grabar, Dalloux, Claveau)", "CAS_neg.txt and CAS_spec.txt",
        "2,652 569 569 31", read=read_cas_pos, pos=True,
    ),
    "cas-sg": Corpus(
        "CAS-SG", "fr", "on request (DEFT 2021)", "distribution-corpus.txt and DEFT-cas-cliniques/*.{txt,ann}",
        "167 54 54 8", read=read_cas_sg, bio=False,
    ),
    "quaero-medline": Corpus(
        "QUAERO-MEDLINE", "fr", "GFDL", "corpus/{train,dev,test}/MEDLINE/*.{txt,ann}",
        "788 790 787 7", in_parts("corpus/{}/MEDLINE", "{}/MEDLINE"), bio=False,
    ),
    "quaero-emea": Corpus(
        "QUAERO-EMEA", "fr", "GFDL", "corpus/{train,dev,test}/EMEA/*.{txt,ann}", "",
        in_parts("corpus/{}/EMEA", "{}/EMEA"), bio=False,
    ),
    "essai-pos": Corpus(
        "ESSAI-POS", "fr", "on request (Dalloux, Claveau, Grabar)", "ESSAI_neg.txt and ESSAI_spec.txt",
        "5,072 1,088 1,087 34", read=read_essai_pos, pos=True,
    ),
    "ncbi-disease": Corpus(
        "NCBI-Disease", "en", "public domain", "NCBI{train,develop,test}set_corpus.txt, or {train,devel,test}.tsv",
        "5,433 924 941 3", types=NCBI, parts=in_parts(
            ("NCBItrainset_corpus.txt", "NCBIdevelopset_corpus.txt", "NCBItestset_corpus.txt"),
            ("train.tsv", "devel.tsv", "test.tsv"), (None, "dev.tsv", None),
        ),
    ),
    "biored": Corpus(
        "BioRED-NER", "en", "public domain", "{Train,Dev,Test}.PubTator, or the same .BioC.JSON", "387 98 97 7",
        in_parts(*[tuple(f"{p}.{f}" for p in ("Train", "Dev", "Test")) for f in ("PubTator", "BioC.JSON")]), bio=False,
    ),
    "jnlpba": Corpus(
        "JNLPBA04", "en", "GENIA project", "Genia4ERtask2.iob2 and Genia4EReval2.iob2 (or the same with 1)",
        "16,619 1,927 3,856 11", in_parts(*[(f"Genia4ERtask{i}.iob2", None, f"Genia4EReval{i}.iob2") for i in "21"]),
    ),
    "pharmaconer": Corpus(
        "PharmaCoNER", "es", "CC BY 4.0", "{train,dev,test}-set_1.1/{train,dev,test}/subtrack1/*.{txt,ann}",
        "500 250 250 5", in_parts("{0}-set_1.1/{0}/subtrack1", "{}/subtrack1"), bio=False,
    ),
    "meddocan": Corpus(
        "MEDDOCAN", "es", "CC BY 4.0", "{train,dev,test}/brat/*.{txt,ann}",
        "500 250 250 22", in_parts("{}/brat"), bio=False,
    ),
    "e3c": Corpus(
        "E3C", "en es fr it eu", "CC BY-NC", "train.txt and test.txt of clinical_entities/layer1/<Language>", "",
        in_parts(("train.txt", None, "test.txt")),
    ),
    "custom": Corpus(
        "your own", "", "", "train.* and test.* (a token and its tag a line), or train/ and test/ (brat)", "",
        in_parts("{}", "{}/brat", "{}.*"),
    ),
}  # fmt: skip


def find(folder, patterns):
    """The file or folder of a part: the first pattern that is there, in `folder` or one below; None if none is."""
    for pattern in patterns:
        for place in (pattern, f"*/{pattern}"):
            found = sorted(p for p in Path(folder).glob(place) if p.is_file() or any(p.glob("*.ann")))
            if len(found) > 1:
                names = ", ".join(str(p.relative_to(folder)) for p in found[:3])
                raise UserError(f"{folder} holds {len(found)} of {place} ({names} ..); name a folder of one")
            if found:
                return found[0]
    return None


def read_part(path, types, odd):
    """The Documents of a file or folder, in the format that it has: brat, BioC, PubTator or columns."""
    if path.is_dir():
        return read_brat(path, types, odd)
    if path.suffix.lower() == ".json":
        return read_bioc(path, types, odd)
    with open(path, "rb") as f:
        first = next((line for line in f if line.strip()), b"").decode("utf-8", "replace")
    return (read_pubtator if PUBTATOR.match(first) else read_conll)(path, types, odd)


def place(name, folder):
    """The folder of a corpus itself; of E3C, which is cloned as a whole, the one language that is in `folder`.

    Raises: UserError with the folders to choose from if there are several.
    """
    if name != "e3c" or not folder or Path(folder, "train.txt").is_file():
        return folder
    found = sorted(p.parent for p in Path(folder).rglob("train.txt") if p.with_name("test.txt").is_file())
    found = [p for p in found if len(p.parts) == min(len(p.parts) for p in found)]
    if len(found) > 1:
        names = ", ".join(map(str, found[:10])) + " .." * (len(found) > 10)
        raise UserError(f"{folder} holds {len(found)} folders of E3C; choose the one of a language as --data: {names}")
    return found[0] if found else folder


def read_corpus(name, folder):
    """({part: Documents}, {part: Counter of what was lost or mended}) of a corpus; dev may be absent.

    Raises: UserError if the corpus is unknown, a part is missing or broken, or the folder is not there.
    """
    if name not in CORPORA:
        raise UserError(f"unknown corpus '{name}'; it is one of {', '.join(CORPORA)} (finetune.py --list)")
    if not folder or not Path(folder).is_dir():
        raise UserError(f"--data '{folder}': there is no such folder; it must hold the corpus: {CORPORA[name].holds}")
    corpus, folder, parts, odd = CORPORA[name], place(name, folder), {}, {}
    if corpus.read:
        odd["train"] = Counter()
        parts = corpus.read(folder, odd["train"])
    else:
        for part, patterns in corpus.parts.items():
            if path := find(folder, patterns):
                odd[part] = Counter()
                parts[part] = read_part(path, corpus.types, odd[part])
            elif part != "dev":
                raise UserError(f"{folder} holds no {part} part; --corpus {name} needs {corpus.holds}")
    for part, documents in parts.items():
        parts[part] = [d for d in documents if d.tokens]
        odd.setdefault(part, Counter())["documents without a word: left out"] += len(documents) - len(parts[part])
        if not parts[part]:
            raise UserError(f"{folder}: the {part} part is empty; --corpus {name} needs {corpus.holds}")
    return parts, odd


# ---------------------------------------------------------------- windows


def windows(documents, tokenizer, special, max_len):
    """Documents -> windows of at most max_len tokens that together hold every word.

    A window ends at the last line break that fits in; a line that does not fit is covered by windows that overlap by
    half. Each word gets its prediction from the window in which it is farthest from an edge, so that no gold label is
    lost. A word that touches the one before it is tokenised without a space.

    Returns: list of (document, first word, ids with [CLS] and [SEP], position of each word's first token).
    """
    room = max_len - 2
    words = []
    for d in documents:
        before = [None, *(b for _, b in d.spans[:-1])] if d.spans else [None] * len(d.tokens)
        begin = [a for a, _ in d.spans] if d.spans else [0] * len(d.tokens)
        words += [w if a == b else " " + w for w, a, b in zip(d.tokens, begin, before)]
    ids, lengths = tokenization.encode(tokenizer, words, "words")
    start = np.cumsum(lengths) - lengths
    pieces = [ids[s : s + min(n, room)].tolist() or [special["unk"]] for s, n in zip(start, lengths)]
    out = []
    bounds = np.cumsum([0] + [len(d.tokens) for d in documents])
    for i, document in enumerate(documents):
        words = pieces[bounds[i] : bounds[i + 1]]
        breaks = np.array(document.breaks, int)
        begin, first = np.cumsum([0] + [len(w) for w in words]), 0
        while True:
            last = int(np.searchsorted(begin, begin[first] + room, side="right")) - 1  # one past the last word
            following = min(max(first + 1, int(np.searchsorted(begin, (begin[first] + begin[last]) // 2))), last)
            if last < len(words) and len(fitting := breaks[(breaks > first) & (breaks <= last)]):
                following = last = int(fitting[-1])
            body = [special["cls"], *(t for w in words[first:last] for t in w), special["sep"]]
            out.append((i, first, body, (begin[first:last] - begin[first] + 1).tolist()))
            if last == len(words):
                break
            first = following
    return out


def torn(documents, cut):
    """How many labelled entities are in no window whole."""
    of = defaultdict(list)
    for i, first, _, positions in cut:
        of[i].append((first, first + len(positions)))
    return sum(
        not any(a <= e.start and e.end <= b for a, b in of[i])
        for i, d in enumerate(documents)
        for e in decode(d.labels)
    )


# ---------------------------------------------------------------- scores


def decode(labels):
    """Strict IOB2: an entity begins at B-X and goes on with I-X; seqeval's Entity(start, end, tag) each."""
    return Entities([labels], IOB2).entities[0]


def units(document, labels, pos):
    """What is right or wrong as a whole: entities as {(type, ((first, end),))}, in characters where there is text, else
    in tokens; of parts of speech each token."""
    if pos:
        return {(label, ((i, i + 1),)) for i, label in enumerate(labels)}
    spans = document.spans or [(i, i + 1) for i in range(len(labels))]
    return {(e.tag, ((spans[e.start][0], spans[e.end - 1][1]),)) for e in decode(labels)}


def marked(document, pos):
    """units of all that the corpus marks, labelled or not."""
    return set(document.gold) if document.gold is not None else units(document, document.labels, pos)


def sequence_scores(gold, pred):
    """The paper's metric for one sequence: macro (P, R, F1) over the labels in gold or prediction (section 4.2.1).

    O counts as a label, B-X and I-X as two; 0 where a denominator is 0 (scikit-learn's zero_division=0).
    """
    scores = []
    for label in sorted({*gold, *pred}):  # in one order, so that sums round alike in every process
        hit = sum(g == p == label for g, p in zip(gold, pred))
        scores.append(prf(hit, pred.count(label), gold.count(label)))
    return np.mean(scores, axis=0)


def prf(hit, n_pred, n_gold):
    """Precision, recall and F1 from counts (numbers or arrays); 0 where a denominator is 0."""
    p, r = hit / np.maximum(n_pred, 1), hit / np.maximum(n_gold, 1)
    return p, r, 2 * hit / np.maximum(np.add(n_pred, n_gold), 1)


def score(documents, preds, corpus, constant="O"):
    """All scores of one tagger, in per cent.

    Args:
        documents: the test part. preds: a label for each of its tokens. corpus: its row of CORPORA.
        constant: the label of the tagger that always says the same (for entities O).

    Returns: {"paper": [P, R, F1], "entity": micro [P, R, F1] (of parts of speech: token accuracy thrice),
        "macro": [P, R, F1] over the types in gold or predictions, "labels": {type: [P, R, F1, number in gold]},
        "floor" and "floor_entity": paper and entity F1 (of parts of speech: token accuracy) of the constant tagger,
        "interval": {"paper" and "entity": 95 % interval of the F1 from resampled documents}}.
    """

    def style(labels):
        return labels if corpus.bio else [t if t == "O" else t[2:] for t in labels]

    paper = [sequence_scores(style(d.labels), style(p)) for d, p in zip(documents, preds)]
    floor = [sequence_scores(style(d.labels), [constant] * len(p))[2] for d, p in zip(documents, preds)]
    counts = []  # of each document: {type: right, predicted, gold}
    for d, p in zip(documents, preds):
        gold, found = marked(d, corpus.pos), units(d, p, corpus.pos)
        counts.append(Counter((k[0], what) for what, of in enumerate((gold & found, found, gold)) for k in of))
    always = [units(d, [constant] * len(p), corpus.pos) for d, p in zip(documents, preds)]
    hit = sum(len(said & marked(d, corpus.pos)) for said, d in zip(always, documents))
    types = sorted({kind for c in counts for kind, _ in c})
    table = {kind: [sum(c[kind, what] for c in counts) for what in range(3)] for kind in types}
    labels = {kind: [*(100 * float(x) for x in prf(*n)), n[2]] for kind, n in table.items()}
    group = [d.group or i for i, d in enumerate(documents)]
    totals = np.array([[sum(c[kind, what] for kind in types) for what in range(3)] for c in counts])
    draws = resample(group, np.column_stack([totals, np.array(paper)[:, 2], np.ones(len(counts))]), RESAMPLES)
    return {
        "paper": (100 * np.mean(paper, axis=0)).tolist(),
        "entity": [100 * float(x) for x in prf(*totals.sum(axis=0))],
        "macro": np.mean([n[:3] for n in labels.values()] or [[0.0] * 3], axis=0).tolist(),
        "labels": labels, "floor": 100 * float(np.mean(floor)),
        "floor_entity": 100 * float(prf(hit, sum(map(len, always)), totals[:, 2].sum())[2]),
        "interval": {
            "paper": np.percentile(100 * draws[:, 3] / draws[:, 4], [2.5, 97.5]).tolist(),
            "entity": np.percentile(100 * prf(*draws[:, :3].T)[2], [2.5, 97.5]).tolist(),
        },
    }  # fmt: skip


def resample(group, values, n):
    """Sums of values (sequences, k) over n draws of documents with replacement, (n, k); group: each one's document."""
    index = {g: i for i, g in enumerate(dict.fromkeys(group))}
    sums = np.zeros((len(index), values.shape[1]))
    np.add.at(sums, [index[g] for g in group], values)
    draws = np.random.default_rng(0).multinomial(len(index), np.full(len(index), 1 / len(index)), n)
    return draws @ sums


# ---------------------------------------------------------------- training


class Tagger(nn.Module):
    """The pre-trained encoder, dropout, and a linear layer over the labels."""

    def __init__(self, encoder, labels):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.dim, labels)
        models.initialise(self.head)

    def forward(self, ids, mask, position):
        """ids, mask (n, L); position (k,) in ids.ravel() -> (k, labels) logits of those words."""
        hidden = self.encoder(ids, mask).flatten(0, 1).index_select(0, position)
        return self.head(F.dropout(hidden, self.encoder.config.dropout, self.training))


def collate(chunk, pad, device):
    """Windows -> (ids, mask, position) as Tagger.forward wants them."""
    width = max(len(w[2]) for w in chunk)
    ids = torch.tensor([w[2] + [pad] * (width - len(w[2])) for w in chunk])
    length = torch.tensor([len(w[2]) for w in chunk])
    position = torch.tensor([i * width + p for i, w in enumerate(chunk) for p in w[3]])
    return ids.to(device), (torch.arange(width) < length[:, None]).to(device), position.to(device)


def train_once(s, seed, encoder, train, labels, pad, device, dtype):
    """One tagger from a copy of the encoder: `epochs` passes over the training windows in a seeded order."""
    torch.manual_seed(seed)
    encoder = models.Encoder(encoder.config) if s.untrained else copy.deepcopy(encoder)
    tagger = Tagger(encoder, len(labels)).to(device).train()
    optimizer = torch.optim.AdamW(tagger.parameters(), s.lr, weight_decay=s.weight_decay, fused=True)
    index = {label: i for i, label in enumerate(labels)}
    documents, cut = train
    for epoch in range(s.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(cut)).tolist()
        bar = tqdm(range(0, len(order), s.batch_size), f"seed {seed}", disable=None, leave=False, dynamic_ncols=True)
        for i in bar:
            chunk = [cut[j] for j in order[i : i + s.batch_size]]
            gold = [index[t] for w in chunk for t in documents[w[0]].labels[w[1] : w[1] + len(w[3])]]
            with models.autocast(device, dtype):
                logits = tagger(*collate(chunk, pad, device))
            loss = F.cross_entropy(logits.float(), torch.tensor(gold, device=device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if not torch.isfinite(loss):
            raise UserError(f"the loss is {loss.item()} after epoch {epoch + 1}; try a lower --lr or --precision fp32")
    return tagger.eval()


@torch.no_grad()
def predict(tagger, test, labels, pad, device, dtype):
    """A label for every word of every document, windows put together again."""
    documents, cut = test
    pred = [["O"] * len(d.tokens) for d in documents]
    best = [[-1] * len(d.tokens) for d in documents]
    order = sorted(range(len(cut)), key=lambda i: len(cut[i][2]))
    for i in range(0, len(order), 64):
        chunk = [cut[j] for j in order[i : i + 64]]
        with models.autocast(device, dtype):
            logits = tagger(*collate(chunk, pad, device))
        if not torch.isfinite(logits).all():
            raise UserError("the tagger's answers are not finite; try a lower --lr or --precision fp32")
        answer = iter(logits.argmax(-1).tolist())
        for d, first, _, words in chunk:
            for k in range(len(words)):
                label, distance = labels[next(answer)], min(k, len(words) - 1 - k)
                if distance > best[d][first + k]:
                    best[d][first + k], pred[d][first + k] = distance, label
    return pred


def sign(s, checkpoint, encoder, tokenizer, max_len, train, test):
    """What the scores of a seed depend on but the device, as plain values: results of one folder have one signature."""
    weights = hashlib.sha256(Path(checkpoint, "config.json").read_bytes() + tokenizer.to_str().encode())
    for name, tensor in encoder.state_dict().items():
        weights.update(name.encode() + tensor.contiguous().numpy().tobytes())
    corpus = hashlib.sha256()
    for d in (*train, None, *test):
        corpus.update(repr(d and (d.tokens, d.labels, d.spans, d.gold, d.breaks, d.group)).encode())
    values = {"checkpoint": str(Path(checkpoint).resolve()), "corpus": s.corpus}
    values |= {"data": str(Path(place(s.corpus, s.data)).resolve()), "max_len": max_len}
    values |= {k: getattr(s, k) for k in ("epochs", "batch_size", "lr", "weight_decay", "untrained", "precision")}
    return values | {"checkpoint sha256": weights.hexdigest(), "data sha256": corpus.hexdigest()}


def differences(old, new):
    """Which settings of two signatures differ; a digest only if its path does not, which says more."""
    keys = [k for k in new if old.get(k) != new[k]]
    return [k for k in keys if not (k.endswith(" sha256") and k.removesuffix(" sha256") in keys)]


@contextmanager
def alone(out):
    """Keeps other processes out of a results folder; the system lets go of it when this one ends, however it does."""
    out.mkdir(parents=True, exist_ok=True)
    lock = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{out}: another process writes results into it; wait for it, or choose another --out"
            ) from None
        except OSError:  # a file system without locks, as some of clusters are
            pass
        yield
    finally:
        os.close(lock)


def earlier_runs(out, signature):
    """{seed: its scores} in a results folder. Raises: UserError if they are of another signature, or of none."""
    path = out / "scores.json"
    if not path.exists():
        return {}
    try:
        record = json.loads(read_utf8(path))
        old, runs = record.get("signature"), {r["seed"]: r for r in record["runs"]}
        if isinstance(old, dict):
            table_row([*runs.values()])
            [is_a(int, seed) for seed in runs]
    except (UserError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is not a file of results and is not overwritten; choose another --out") from None
    if not isinstance(old, dict):
        raise UserError(f"{out} holds results without a record of all their settings; choose another --out")
    if other := differences(old, signature):
        told = ", ".join(f"{k} {str(old.get(k))[:200]}, now {signature[k]}" for k in other)
        raise UserError(f"{out} holds results of {told}; choose another --out")
    return runs


def run(s, checkpoint):
    """--runs taggers from a checkpoint, their scores printed and written, and what they predicted."""
    if s.precision == "fp16":
        raise UserError("precision = 'fp16': fine-tuning has no loss scaler; say auto, bf16 or fp32")
    device, dtype = models.choose_device(s.device, s.precision)
    if dtype == torch.float16:
        dtype = None  # auto on a GPU without bf16
    parts, odd = read_corpus(s.corpus, s.data)
    corpus, train, test = CORPORA[s.corpus], parts["train"], parts["test"]
    encoder = models.load(checkpoint, heads=False).encoder
    config = encoder.config
    max_len = min(s.max_len or config.max_positions, config.max_positions)
    if max_len < 8:
        raise UserError(f"max_len = {max_len}: windows of fewer than 8 tokens are not worth reading")
    tokenizer = tokenization.load(checkpoint, config.vocab_size)
    signature = sign(s, checkpoint, encoder, tokenizer, max_len, train, test)
    special = tokenization.special_ids(tokenizer)
    often = Counter(t for d in train for t in d.labels)
    labels = sorted(often, key=lambda t: (t != "O", t[2:], t))
    cut = [(part, windows(part, tokenizer, special, max_len)) for part in (train, test)]
    print(
        f"{s.corpus}: {len(train):,} + {len(test):,} sequences, "
        + (f"{number(train):,} + {number(test):,} entities, " if not corpus.pos else "")
        + f"{len(cut[0][1]):,} + {len(cut[1][1]):,} windows of up to {max_len} tokens, {len(labels)} labels",
        flush=True,
    )
    for part in ("train", "test"):
        for what, n in sorted((+odd[part]).items()):
            print(f"{part}: {n:,} {what}")
    if not corpus.pos and (lost := torn(*cut[1])):
        print(f"test: {lost:,} entities are in no window whole; they count as missed unless put together rightly")
    if unseen := sorted({t for d in test for t in d.labels} - set(labels)):
        print(f"labels {', '.join(unseen)} never occur in training; what has them counts as missed")
    name, language = Path(checkpoint).resolve().name + "-untrained" * s.untrained, language_of(s.corpus, s.data)
    task = s.corpus  # of one in several languages, or of your own, with what tells which it is
    if not language or corpus.language != language:
        task += f"-{language or Path(s.data).resolve().name}"
    task += f"-{s.epochs}-epochs" * (s.epochs > 1)
    out = Path(s.out or Path("results", name, task))
    settings = {k: v for k, v in asdict(s).items() if k not in ("seed", "runs", "check", "dataset")}
    record = {"checkpoint": str(checkpoint), "corpus": s.corpus, "task": task, "language": language}
    record |= {"settings": settings, "signature": signature}
    constant, results = often.most_common(1)[0][0], []
    with alone(out):
        runs = earlier_runs(out, signature)
        seeds = range(s.seed, s.seed + s.runs)
        if runs:
            held, again = (", ".join(map(str, sorted(x))) for x in (runs, runs.keys() & seeds))
            print(f"{out} holds seeds {held} of the same settings; the new ones are added to them")
            if again:
                print(f"seeds {again} are replaced, each when its new result is whole", flush=True)
        for seed in seeds:
            began = time.time()
            tagger = train_once(s, seed, encoder, cut[0], labels, special["pad"], device, dtype)
            pred = predict(tagger, cut[1], labels, special["pad"], device, dtype)
            results.append({"seed": seed} | score(test, pred, corpus, constant))
            rows = ["\n".join(map("\t".join, zip(d.tokens, d.labels, p))) + "\n\n" for d, p in zip(test, pred)]
            write_atomic(out / f"predictions-{seed}.conll", lambda f, rows=rows: f.write("".join(rows).encode()))
            runs[seed] = results[-1]
            record["runs"] = [runs[k] for k in sorted(runs)]
            write_atomic(out / "scores.json", lambda f: f.write((json.dumps(record, indent=1) + "\n").encode()))
            print(f"seed {seed}: {table_row(results[-1:])}  ({time.time() - began:.0f} s)", flush=True)
    if len(runs) > 1:
        print(f"mean of {len(runs)}: {table_row(record['runs'])}")
    of = "documents" if test[0].text is not None or test[0].group else "sentences"
    for kind in ("paper", "entity"):
        ends = ", ".join("{:.2f} to {:.2f}".format(*r["interval"][kind]) for r in results)
        print(f"95 % interval of the {kind} F1, {of} drawn anew: {ends}")
    what = "token accuracy" if corpus.pos else "entity F1"
    floor = f"paper F1 {results[0]['floor']:.2f}, {what} {results[0]['floor_entity']:.2f}"
    print(f"(a tagger that always says {constant}: {floor})")
    print(f"\n{'of seed ' + str(s.seed):<32} {'P':>7} {'R':>7} {'F1':>7} {'gold':>7}")
    for kind, (p, r, f1, n) in results[0]["labels"].items():
        print(f"  {kind:<30} {p:7.2f} {r:7.2f} {f1:7.2f} {n:7,}")
    print(f"\n{out}")


def table_row(results):
    """Paper and entity (micro, macro over types) P / R / F1, as mean and standard deviation over the runs."""
    scores = {kind: [spread([r[kind][i] for r in results]) for i in range(3)] for kind in ("paper", "entity", "macro")}
    return "  ".join(f"{kind} P/R/F1 " + " / ".join(three) for kind, three in scores.items())


# ---------------------------------------------------------------- --list and --check


def number(documents):
    """Entities of a part: all that the corpus marks, labelled or not."""
    return sum(len(d.gold if d.gold is not None else decode(d.labels)) for d in documents)


TABLE5 = (
    "Table 5 has what the authors' scripts kept and cut; the corpora themselves hold other numbers (--check): "
    "QUAERO-MEDLINE has 833, 832, 833 titles and 10 types, for example. Classes are the labels of the training part."
)


def show_corpora():
    """--list: a line of what and where, and a line of what the folder must hold, for each corpus."""
    row = "{:<16}{:<16}{:<16}{:<36}{}"
    print(row.format("--corpus", "in the paper", "language", "Table 5: train, dev, test, classes", "licence"))
    for name, c in CORPORA.items():
        print(row.format(name, c.title, c.language, c.table5 or "-", c.licence or "-"))
        print(f"    --data: a folder that holds {c.holds}")
    print(TABLE5)


def check(s):
    """--check: what a corpus holds, what was lost or mended on the way, and what pre-training has seen of it."""
    parts, odd = read_corpus(s.check, s.data)
    corpus = CORPORA[s.check]
    rows = {}
    if any(d.group for docs in parts.values() for d in docs):
        rows["documents"] = {part: len({d.group for d in docs}) for part, docs in parts.items()}
    unit = "documents" if any(d.text is not None for d in parts["test"]) else "sentences"
    rows[unit] = {part: len(docs) for part, docs in parts.items()}
    rows["tokens"] = {part: sum(len(d.tokens) for d in documents) for part, documents in parts.items()}
    if not corpus.pos:
        rows["entities"] = {part: number(d) for part, d in parts.items()}
        rows["entities that are labelled"] = {p: sum(len(decode(d.labels)) for d in docs) for p, docs in parts.items()}
    kinds = {
        part: Counter(kind for d in docs for kind, _ in (d.gold or marked(d, corpus.pos)))
        for part, docs in parts.items()
    }
    rows |= {f"  {k}": {p: kinds[p][k] for p in parts} for k in sorted({k for c in kinds.values() for k in c})}
    rows |= {k: {p: odd[p][k] for p in parts} for k in sorted({k for c in odd.values() for k in +c})}
    if not corpus.pos:
        for what in ("precision", "recall"):
            best = rows[f"best {what} that labels can have (%)"] = {}
            for part, docs in parts.items():
                said, gold = ([units(d, d.labels, False) for d in docs], [marked(d, False) for d in docs])
                n = sum(map(len, said if what == "precision" else gold))
                best[part] = round(100 * sum(len(a & b) for a, b in zip(said, gold)) / n, 2) if n else "-"
    if s.dataset:
        tokenizer = Tokenizer.from_str(data.read_tokenizer(s.dataset).decode())
        examples = data.Examples(s.dataset, "train", ["mlm"])
        special = tokenization.special_ids(tokenizer)
        if not corpus.pos:
            what = f"labelled, in no window of {examples.seq_len} tokens whole"
            rows[what] = {p: torn(d, windows(d, tokenizer, special, examples.seq_len)) for p, d in parts.items()}
        seen = contamination(parts, examples, tokenizer)
        rows[f"of {data.GRAM + data.FEWEST - 1} words or more"] = {p: int(long.sum()) for p, (_, long) in seen.items()}
        where = f"  of these, in the training documents of {Path(s.dataset).name}"
        rows[where] = {p: int(known.sum()) for p, (known, _) in seen.items()}
    width = max(map(len, rows)) + 2
    print(f"{corpus.title}, {s.data}\n{'':<{width}}" + "".join(f"{p:>10}" for p in parts))
    for what, values in rows.items():
        print(f"{what:<{width}}" + "".join(f"{v:>10,}" if v != "-" else f"{v:>10}" for v in values.values()))
    if s.dataset and int(seen["test"][0].sum()):
        print("make data EXCLUDE=.., the folder or file of the test part, leaves them out of pre-training")


def contamination(parts, examples, tokenizer):
    """{part: (which sequences stand in the pre-training documents, which are long enough to tell)}, two bool arrays.

    Both sides as the tokenizer writes them (data.common says what standing in is).
    """
    at = zip(examples.offsets[examples.rows], examples.offsets[examples.rows + 1])
    documents = tokenizer.decode_batch([examples.ids[a:b].tolist() for a, b in at])
    texts = [d.text if d.text is not None else " ".join(d.tokens) for sequences in parts.values() for d in sequences]
    texts = [tokenizer.decode(e.ids) for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    known, long = np.zeros(len(texts), bool), np.array([len(data.grams(text)) >= data.FEWEST for text in texts])
    for found in data.common(configs.progress("documents of the data set", documents), texts):
        known[found] = True
    ends = np.cumsum([len(sequences) for sequences in parts.values()])[:-1]
    return dict(zip(parts, zip(np.split(known, ends), np.split(long, ends))))


# ---------------------------------------------------------------- the paper's tables

ABLATION = re.compile(r"(.+)-(mlm|ep-lp|ep-tc|tc-lp|all)(-untrained)?")  # names of runs that belong into Table 6


def language_of(corpus, folder):
    """The language of a corpus; of one in several the first folder from the right that is named for one of them."""
    known = CORPORA[corpus].language.split()
    names = {name.lower(): lang for lang, (_, name) in data.LANGUAGES.items() if name} | {lang: lang for lang in known}
    parts = [word for part in Path(place(corpus, folder)).resolve().parts for word in re.split(r"[\W_]", part.lower())]
    said = [names[word] for word in reversed(parts) if word in names]
    return known[0] if len(known) == 1 else next((lang for lang in said if lang in known), "")


def plain_name(run):
    """A run's name without the seed of its pre-training, -s0, -s1 ..."""
    return re.sub(r"-s\d+(?=$|-untrained$)", "", run)


def read_records(folder, pattern, take):
    """take(record) of each JSON file below a folder, and its path; what is not a file of results is told in a line."""
    for path in sorted(Path(folder).rglob(pattern)):
        try:
            taken = take(json.loads(read_utf8(path)))
        except (UserError, OSError, ArithmeticError, LookupError, ValueError, TypeError, RecursionError) as e:
            why = " ".join(f"{type(e).__name__}: {e}"[:200].split())
            print(f"{path}: not a file of results, left out ({why})")
        else:
            yield path, taken


def is_a(kind, value):
    """The value of a file of results, if it is of this kind. Raises: TypeError."""
    if type(value) is not kind:
        raise TypeError(f"{repr(value)[:40]} is not {'an object' if kind is dict else kind.__name__}")
    if kind is str:
        value.encode()  # half of a surrogate pair is no text
    return value


def finite(value, least=0, most=1e9):
    """A number of a file of results. Raises: TypeError or ValueError if it is none, or cannot be a result."""
    if type(value) not in (int, float):
        raise TypeError(f"{repr(value)[:40]} is not a number")
    if not least <= value <= most:  # nor is NaN
        raise ValueError(f"{repr(value)[:40]} is not a score")
    return float(value)


def percent(value):
    return finite(value, most=100 + 1e-6)


def read_results(folder):
    """{(language, task): {run: its scores of all seeds}} of the scores.json below a folder.

    Runs that differ only in the seed of pre-training (name-s0, name-s1 ...) are one; the same seed of the same
    checkpoint counts once, and of results with different settings the first.
    """

    def take(record):
        name = Path(is_a(str, is_a(dict, record)["checkpoint"])).name
        name += "-untrained" * is_a(bool, is_a(dict, record["settings"])["untrained"])
        runs = {}
        for r in is_a(list, record["runs"]):
            scores = {k: [percent(x) for x in is_a(list, is_a(dict, r)[k])] for k in ("paper", "entity")}
            if not all(len(x) == 3 for x in scores.values()):
                raise ValueError("not three scores")
            runs[is_a(int, r["seed"])] = scores | {"floor": percent(r["floor"])}
        if len(runs) < len(record["runs"]):
            raise ValueError("a seed is in it twice")
        # Where a folder lies is not a setting; digests say whether the contents are the same.
        signature = is_a(dict, record.get("signature", {}))
        signature = {k: v for k, v in signature.items() if k not in ("checkpoint", "data")}
        return name, is_a(str, record["language"]), is_a(str, record["task"]), runs, signature

    found, seen, first_of = defaultdict(lambda: defaultdict(list)), {}, {}
    for path, (name, language, task, runs, signature) in read_records(folder, "scores.json", take):
        if signature:  # files of before it was written have none
            first, of_first = first_of.setdefault((name, task), (path, signature))
            if other := sorted(differences(signature, of_first)):
                print(f"{path}: of other settings ({', '.join(other)}) than {first}, left out")
                continue
        for seed, scores in runs.items():
            if (first := seen.setdefault((name, task, seed), path)) != path:
                print(f"{path}: seed {seed} of {name} is in {first} already, left out")
                continue
            found[language, task][plain_name(name)].append(scores)
    return found


KNOWN = {  # columns of what encoders know: where they are in kgi.py's record
    "MLM loss": "mlm * loss", "EP tokens": "ep tokens", "LP accuracy": "lp accuracy", "LP macro F1": "lp macro_f1",
    "TC accuracy": "tc accuracy", "AUC, other pair": "tc other_pair auc",
    "AUC, other relation": "tc other_relation auc", "synonym at 1": "synonyms * mean at_1",
    "at 5": "synonyms * mean at_5", "MRR": "synonyms * mean mrr", "MRR, [CLS]": "synonyms * cls mrr",
    "MRR, spelling": "synonyms * spelling mrr",
}  # fmt: skip


def reach(record, path):
    """The numbers at a path of keys; "*" is the mean over all languages. An empty list where there is none."""
    if not path:
        return [finite(record)]
    is_a(dict, record)
    if path[0] == "*":
        found = [x for value in record.values() for x in reach(value, path[1:])]
        return [statistics.mean(found)] if found else []
    return reach(record[path[0]], path[1:]) if path[0] in record else []


def knowledge_table(folder):
    """What `kgi.py --evaluate` found, a block for each data set, as lines of Markdown."""
    found = defaultdict(lambda: defaultdict(list))

    def take(record):
        values = {k: reach(record, path.split()) for k, path in KNOWN.items()}
        values = {k: [x if k == "MLM loss" else percent(x) for x in found] for k, found in values.items()}
        if record.get("tasks") is not None:  # the head of a task that was not trained knows nothing
            never = {*data.TASKS} - {is_a(str, task) for task in is_a(list, record["tasks"])}
            values = {k: [] if KNOWN[k].split()[0] in never else x for k, x in values.items()}
        terms = is_a(int, is_a(dict, record["settings"])["terms"])
        return f"{is_a(str, record['data'])}, {terms:,} terms", Path(is_a(str, record["checkpoint"])).name, values

    for _, (block, name, values) in read_records(folder, "knowledge-*.json", take):
        found[block][plain_name(name)].append(values)
    lines = ["# What encoders know of held-out pairs, and of synonyms", ""]
    lines += ["In per cent but the loss; mean ± deviation over the seeds; **best**, <u>second</u>.", ""]
    lines += ["–: not run, or a task that the encoder was not trained on.", ""]
    for name, runs in sorted(found.items()):
        grid = {(run, k): [x for r in records for x in r[k]] for run, records in runs.items() for k in KNOWN}
        lines += [f"| {name} | " + " | ".join(KNOWN) + " |", "|---|" + "---:|" * len(KNOWN)]
        for run in sorted(runs):
            cells = [cell(grid[run, k], [grid[n, k] for n in runs], least=k == "MLM loss") for k in KNOWN]
            lines.append(f"| {run} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def spread(values):
    """Mean ± deviation of some runs."""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def cell(values, column, paper=None, least=False):
    """spread of some runs, the best of its column (most, or least) bold, the second underlined; the paper's behind."""
    text = spread(values) if values else "–"
    places = sorted({statistics.mean(v) for v in column if v}, reverse=not least)
    if values and len(places) > 1 and (place := places.index(statistics.mean(values))) < 2:
        text = (f"**{text}**", f"<u>{text}</u>")[place]
    return text + (f" [{paper:.2f}]" if paper is not None else "")


def table(part, found, kind, number, with_paper):
    """One block of a table as lines of Markdown: the paper's rows and corpora, then the others with results."""
    language, columns = part["language"], part["columns"]
    corpora = [*part["corpora"], *(c for lang, c in found if lang == language and c not in part["corpora"])]
    rows = {row["model"]: row for row in part["rows"]}
    named = {name for row in part["rows"] for name in row["runs"]}
    others = sorted({n for c in corpora for n in found.get((language, c), ())} - named)
    if number != "others":  # which has all there is
        others = [n for n in others if bool(ABLATION.fullmatch(n)) == (number == "6")]
    rows |= {n: {"runs": [n], "paper": []} for n in others}
    grid = {}
    for name, row in rows.items():
        for c in corpora:
            runs = [r for n in row["runs"] for r in found.get((language, c), {}).get(n, ())]
            for k in columns:
                grid[name, c, k] = [r[kind]["P R F1".split().index(k)] for r in runs]
    heads = [f"{c} {k}" if len(columns) > 1 else c for c in corpora for k in columns]
    lines = ["| model | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for name, row in rows.items():
        cells = []
        for i, c in enumerate(corpora):
            for j, k in enumerate(columns):
                theirs = row["paper"][i][j] if with_paper and i < len(row["paper"]) else None
                cells.append(cell(grid[name, c, k], [grid[n, c, k] for n in rows], theirs))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if kind == "paper":
        floors = [{r["floor"] for runs in found.get((language, c), {}).values() for r in runs} for c in corpora]
        shown = [f"{min(f):.2f}" if f and k == "F1" else "" for f in floors for k in columns]
        lines.append("| *always the same* | " + " | ".join(shown) + " |")
    return [*lines, ""]


def tables(folder="results", with_paper=False):
    """--tables: Tables 2, 3, 4, 6, 9, 10 and 11 and what encoders know, from all results, as Markdown in results/."""
    found, out = read_results(folder), {"table-knowledge.md": knowledge_table(folder)}
    layouts = json.loads(Path(configs.__file__).with_name("tables.json").read_text())
    shown = {part["language"] for layout in layouts.values() for part in layout["parts"]}
    others = sorted({language for language, _ in found} - shown)
    parts = [{"language": lang, "corpora": [], "columns": ["P", "R", "F1"], "rows": []} for lang in others]
    layouts["others"] = {"title": "Corpora that are in no other table", "parts": parts}
    brackets = " In brackets: the paper's figures." if with_paper else ""
    for number, layout in layouts.items():
        lines = [f"# Table {number}: {layout['title']}" if number.isdigit() else f"# {layout['title']}", ""]
        for kind, what in (
            ("paper", "The paper's metric, averaged over sequences, in per cent." + brackets),
            ("entity", "Strict entity-level micro scores (parts of speech: token accuracy), in per cent."),
        ):
            lines += [what + " Mean ± deviation over the seeds; **best**, <u>second</u>; –: not run.", ""]
            for part in layout["parts"]:
                lines += table(part, found, kind, number, with_paper and kind == "paper")
        out[f"table-{number}.md"] = lines
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, lines in out.items():
        path = Path(folder, name)
        write_atomic(path, lambda f, lines=lines: f.write("\n".join(lines).encode()))
        print(path)


USAGE = """python finetune.py CHECKPOINT --corpus NAME --data DIR [config.toml] [--key value ...]
       python finetune.py --list
       python finetune.py --check NAME --data DIR [--dataset DATASET]
       python finetune.py --tables [--paper]"""


def main(argv):
    if argv == ["--list"]:
        return show_corpora()
    if argv in (["--tables"], ["--tables", "--paper"]):
        return tables(with_paper=len(argv) > 1)
    if argv[:1] in (["--list"], ["--tables"]):
        raise UserError(f"unexpected argument '{argv[1]}'; usage: {USAGE}")
    checking = any(arg.split("=")[0] == "--check" for arg in argv)
    s, checkpoint = configs.load("finetune", argv, USAGE, positionals=0 if checking else 1)
    return check(s) if checking else run(s, *checkpoint)


if __name__ == "__main__":
    configs.run(main)
