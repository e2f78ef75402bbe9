"""The evaluation corpora (section 4.2): one table, and one reader for each format.

    splits, issues = read_corpus("meddocan", "MEDDOCAN")        -> {"train": [Document, ...], "dev": .., "test": ..}
    texts = read_texts("MEDDOCAN/test")                          what make data EXCLUDE=.. leaves out of pre-training

A corpus is one entry of CORPORA. The formats are brat, PubTator, BioC (JSON), CoNLL columns and the columns of CAS and
ESSAI. Nothing is dropped silently: `issues` counts what labels cannot express and what was repaired.
"""

import gzip
import json
import re
import unicodedata
import zlib
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from configs import UserError
from support.files import read_utf8
from support.texts import replace_surrogates, word_patterns
from support.umls import LANGUAGES

SPLIT_NAMES = {  # what files and folders of a split are called
    "train": ("train", "training", "trng"),
    "dev": ("dev", "devel", "develop", "development", "val", "valid", "validation", "eval", "testa"),
    "test": ("test", "tests", "testing", "testb"),
}
SPLITS = tuple(SPLIT_NAMES)
PUBTATOR_TEXT = re.compile(r"([^\s|]+)\|([ta])\|(.*)")
NUMBER = re.compile(r"\d{1,15}")  # an offset, or the number of a sentence; int() refuses thousands of digits
BRAT_SPAN = re.compile(r"(\S+) (N N(?:;N N)*)".replace("N", NUMBER.pattern))
LABEL = re.compile(r"O|[BIELSU]-.+")  # of IOB, BIOES and BILOU
COLUMNS_MARK = ("###MEDLINE:", "-DOCSTART-")  # lines that begin a document of columns
TEXT_SUFFIXES = (".txt", ".tsv", ".conll", ".bio", ".iob", ".iob2", ".pubtator", ".json")
MAX_CHARACTERS = 10**7  # of a document: where BioC has a passage further away, its offset is wrong
MAX_SHIFT = 3  # characters that an entity's offsets may be beside its words
SCHEMES = {"B-": "", "I-": "", "E-": "BIOES", "S-": "BIOES", "L-": "BILOU", "U-": "BILOU"}  # B- and I- are of all
BREAKS_COLUMNS = re.compile("[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029\ud800-\udfff]")


@dataclass
class Document:
    """One sequence of a corpus: a document, a title or a sentence.

    labels: one per token, IOB2 or a part of speech. breaks: the tokens that begin a line. group: the document that a
    sentence belongs to, if that is known. Only a corpus with text has spans and gold. spans: character spans of the
    tokens. gold: all entities as (type, ((start, end), ...)). They include those that labels cannot express (nested, of
    several fragments, within a word).
    """

    name: str
    tokens: list
    labels: list
    spans: list | None = None
    gold: list | None = None
    text: str | None = None
    breaks: tuple = ()
    group: str = ""


# ---------------------------------------------------------------- labels


class LabelledEntity(NamedTuple):
    """What labels say: an entity from one token to another."""

    start: int
    end: int  # one past the last
    tag: str


def decode_entities(labels):
    """Strict IOB2: an entity begins at B-X and continues with I-X. Returns: a LabelledEntity each."""
    entities, start, kind = [], None, ""
    for i, label in enumerate([*labels, "O"]):
        if start is not None and label != f"I-{kind}":
            entities.append(LabelledEntity(start, i, kind))
            start = None
        if label[:2] == "B-":
            start, kind = i, label[2:]
    return entities


def strict_iob2(labels):
    """Labels without those that belong to no entity, such as an I-X after O: every reader finds the same entities."""
    return iob2_labels(len(labels), decode_entities(labels))


def iob2_labels(n, entities):
    """The labels of n tokens with these entities."""
    out = ["O"] * n
    for start, end, kind in entities:
        out[start:end] = [f"B-{kind}"] + [f"I-{kind}"] * (end - start - 1)
    return out


def to_iob2(labels):
    """Labels of IOB1, BIOES or BILOU as IOB2, and IOB2 as it is.

    An entity ends at E-, L-, S- and U-. One begins at B-, S- and U-, and also at another label that continues none.
    """
    out, open_kind = [], None
    for label in labels:
        prefix, kind = label[:2], label[2:]
        begins = prefix in ("B-", "S-", "U-") or kind != open_kind
        out.append("O" if label == "O" else ("B-" if begins else "I-") + kind)
        open_kind = kind if prefix in ("B-", "I-") else None
    return out


def check_label(label, scheme, where):
    """The scheme of some labels and one more: "" while all are O, B-X and I-X (IOB1 or IOB2), else BIOES or BILOU.

    Raises: UserError, which begins with `where`, for a label of no scheme or of another one.
    """
    check_type(label, where)
    if label == "O":
        return scheme
    if label[:2] not in SCHEMES or not label[2:]:
        expected = "O, B-<type> or I-<type>, or also E- and S- (BIOES) or L- and U- (BILOU)"
        raise UserError(f"{where}: unknown label '{label}'; expected {expected}")
    theirs = SCHEMES[label[:2]]
    if theirs and scheme and theirs != scheme:
        raise UserError(f"{where}: label '{label}' is of {theirs}, and there are labels of {scheme}; use one scheme")
    return scheme or theirs


def check_type(kind, where):
    """Raises UserError for a type that would break a file of columns, such as the predictions."""
    if BREAKS_COLUMNS.search(kind):
        what = "a TAB, a line break or half a surrogate pair"
        raise UserError(f"{where}: the label or type {kind!r} holds {what}; rename it")


def count_entities(documents):
    """Entities of a split: all that the corpus marks, labelled or not."""
    return sum(len(d.gold if d.gold is not None else decode_entities(d.labels)) for d in documents)


# ---------------------------------------------------------------- text and entities -> tokens and labels


def align_entities(name, text, entities, types, issues):
    """Text and its entities, (type, fragments) each -> a Document. What labels cannot express is counted.

    Of entities that overlap the longest is labelled (then the first in the text, then in the file), from its first
    character to its last. A token belongs to an entity if they share a character; two in one token: to the earlier.
    """
    entities = distinct_entities(text, entities, types, issues)
    tokens = word_patterns()[1].finditer(text)
    spans = [m.span() for m in tokens if unicodedata.category(m[0][0])[0] != "C"]
    begin, end = [a for a, _ in spans], [b for _, b in spans]
    outer_spans = [(min(a for a, _ in f), max(b for _, b in f)) for _, f in entities]
    labels = ["O"] * len(spans)
    for i in longest_without_overlap(outer_spans, len(text), issues):
        kind, (a, b) = entities[i][0], outer_spans[i]
        inside = range(bisect_right(end, a), bisect_left(begin, b))
        free = [k for k in inside if labels[k] == "O"]
        if not free:
            issues["entities within the word of another: not labelled"] += 1
            continue
        is_exact = (begin[free[0]], end[free[-1]]) == (a, b)
        issues["entities that begin or end inside a word: labelled with all of it"] += not is_exact
        for k in free:
            labels[k] = ("B-" if k == free[0] else "I-") + kind
    lines = text.replace("\r", "\n")  # a line may end with CR alone
    breaks = tuple(k for k in range(1, len(spans)) if "\n" in lines[end[k - 1] : begin[k]])
    return Document(name, [text[a:b] for a, b in spans], labels, spans, entities, text, breaks)


def distinct_entities(text, entities, types, issues):
    """Entities with the task's types, their fragments as join_fragments has them, and each entity once."""
    distinct = {}
    for kind, spans in entities:
        if not (kind := map_type(kind, types, issues)):
            continue
        joined = join_fragments(text, spans)
        fragments = tuple(trim_span(text, a, b) for a, b in joined if text[a:b].strip())
        issues["entities with blanks at an end: trimmed"] += fragments != joined
        issues["entities marked twice: counted once"] += (kind, fragments) in distinct
        distinct[kind, fragments] = None
    n_fragmented = sum(len(fragments) > 1 for _, fragments in distinct)
    issues["entities of several fragments: one stretch, where labelled"] += n_fragmented
    return [*distinct]


def join_fragments(text, spans):
    """The fragments of an entity in the order of the text; those that overlap or have only blanks between them are one.

    So an entity over a line end, of which brat makes two fragments, is one span, as the predicted entity is.
    """
    joined = []
    for a, b in sorted(spans):
        if joined and not text[joined[-1][1] : a].strip():
            joined[-1] = joined[-1][0], max(joined[-1][1], b)
        else:
            joined.append((a, b))
    return tuple(joined)


def map_type(kind, types, issues):
    """An entity's type as the task has it; None, counted, if it has not. types: {theirs: ours}, or None for all."""
    if types is None or kind in types:
        return types[kind] if types else kind
    issues[f"entities of type {kind}: left out"] += 1


def trim_span(text, start, end):
    """(start, end) of a stretch of text without the blanks at its ends."""
    stretch = text[start:end]
    start += len(stretch) - len(stretch.lstrip())
    return start, start + len(stretch.strip())


def longest_without_overlap(spans, n, issues):
    """Which spans are labelled, in the order of the text: the longest of those that overlap."""
    taken, kept = np.zeros(n, bool), []
    for i in sorted(range(len(spans)), key=lambda i: (spans[i][0] - spans[i][1], spans[i][0], i)):
        a, b = spans[i]
        if taken[a:b].any():
            issues["entities within or across a longer one: not labelled"] += 1
        else:
            taken[a:b] = True
            kept.append(i)
    return sorted(kept, key=lambda i: spans[i])


# ---------------------------------------------------------------- the formats


def read_brat(folder, types, issues):
    """A folder of X.txt and X.ann (brat standoff): a list of Documents.

    Only text-bound lines (T) count. Offsets are code points of the file as it is, a byte order mark included.
    Raises: UserError for a line that is not brat's, or offsets whose text is not in the file at or near them.
    """
    documents, files = [], sorted(Path(folder).glob("[!.]*.ann"))
    without_ann = {*Path(folder).glob("[!.]*.txt")} - {f.with_suffix(".txt") for f in files}
    issues["texts without an .ann file: not read"] += len(without_ann)
    for path in files:
        if not path.with_suffix(".txt").is_file():
            raise UserError(f"{path.with_suffix('.txt')} not found, the text of {path.name}")
        text = read_utf8(path.with_suffix(".txt"), bom="\ufeff")
        entities = [
            parse_brat_entity(f"{path}, row {row}", line.rstrip("\r"), text, issues)
            for row, line in enumerate(read_utf8(path).split("\n"), 1)
            if line.startswith("T")
        ]
        documents.append(align_entities(path.stem, text, entities, types, issues))
    return documents


def parse_brat_entity(where, line, text, issues):
    """One text-bound line of an .ann file -> (type, fragments). Raises: UserError."""
    fields = line.split("\t")
    match = BRAT_SPAN.fullmatch(fields[1]) if len(fields) == 3 else None
    if not match:
        raise UserError(f"{where}: not 'T<n> TAB type start end TAB text': {line[:60]!r}")
    fragments = [tuple(map(int, f.split())) for f in match[2].split(";")]
    for shift in sorted(range(-MAX_SHIFT, MAX_SHIFT + 1), key=abs):  # 0 first: the offsets as they are
        shifted = tuple((a + shift, b + shift) for a, b in fragments)
        words = " ".join(text[a:b] for a, b in shifted)
        # A slice ends at the end of the text without a word, so the offsets are compared with it.
        if is_same_text(words, fields[2]) and all(0 <= a <= b <= len(text) for a, b in shifted):
            issues["entities beside their offsets: moved"] += shift != 0
            return match[1], shifted
    words = " ".join(text[a:b] for a, b in fragments)
    past = f" (the text has {len(text):,} characters)" if max(map(max, fragments)) > len(text) else ""
    raise UserError(
        f"{where}: {match[2]} is {words[:40]!r} in the text{past}, not {fields[2][:40]!r}; "
        "are both files of one version?"
    )


def is_same_text(found, words):
    """Whether the words that a corpus gives for an entity are those at its offsets, in any Unicode form and blanks."""
    found, words = (unicodedata.normalize("NFC", x).split() for x in (found, words))
    return found == words != []


def read_pubtator(path, types, issues):
    """PubTator blocks (id|t|title, id|a|abstract, then entities, a TAB between fields) -> a list of Documents."""
    texts, entities, n_repeats = parse_pubtator(path)
    issues["repeated documents: left out"] += n_repeats.total()
    found = {pmid: [(kind, ((a, b),)) for a, b, kind, _ in entities[pmid]] for pmid in texts}
    return [align_entities(pmid, text, found[pmid], types, issues) for pmid, text in texts.items()]


def parse_pubtator(path):
    """A file of PubTator as it is: {document: title, line end and abstract}, {document: its entities}, Counter.

    An entity is (start, end, type, ids): characters of the text, and the sixth column as text, "" if there is none.
    Relations (BioRED, BC5CDR) are skipped, and so are the single names that BC5CDR has in a seventh column. The Counter
    has the documents that come again, and how often; only the first of each is read.
    """
    texts, entities = {}, defaultdict(list)
    n_repeats, is_repeat = Counter(), False
    for row, line in enumerate(read_utf8(path).split("\n"), 1):
        line = line.rstrip("\r")
        if match := PUBTATOR_TEXT.fullmatch(line):
            pmid, what, text = match.groups()
            if what == "t":
                is_repeat = pmid in n_repeats
                n_repeats[pmid] += is_repeat
            if not is_repeat:
                texts[pmid] = text if what == "t" else f"{texts.get(pmid, '')}\n{text}"
            continue
        fields = line.split("\t")
        is_relation = len(fields) in (4, 5) and not NUMBER.fullmatch(fields[1])
        if not line.strip() or is_repeat or is_relation:
            continue
        is_entity = len(fields) in (5, 6, 7) and all(map(NUMBER.fullmatch, fields[1:3]))
        if not is_entity or fields[0] not in texts:
            raise UserError(f"{path}, row {row}: neither text, entity nor relation of PubTator: {line[:60]!r}")
        pmid, a, b, words, kind, ids = [*fields, ""][:6]
        a, b = int(a), int(b)
        found = texts[pmid][a:b]
        if not is_same_text(found, words) or b > len(texts[pmid]):
            raise UserError(f"{path}, row {row}: {a} {b} is {found[:40]!r} in the text, not {words[:40]!r}")
        entities[pmid].append((a, b, kind, ids))
    return texts, entities, n_repeats


def read_bioc(path, types, issues):
    """BioC as JSON -> a list of Documents. Offsets are of the document: a passage or a sentence begins at its own.

    The text is that of the passages, or of the sentences of those that have none of their own. Annotations are those of
    documents, passages and sentences.
    """
    documents = []
    try:
        for document in json.loads(read_utf8(path))["documents"]:
            name, text = replace_surrogates(str(document["id"])), ""
            for part in bioc_parts(document):
                if not 0 <= part["offset"] <= MAX_CHARACTERS:
                    raise UserError(f"{path}, document {name}: no passage can begin at {part['offset']}")
                text = text.ljust(part["offset"], "\n") + replace_surrogates(part["text"])
            sentences = [sentence for passage in document["passages"] for sentence in passage.get("sentences", [])]
            parts = [document, *document["passages"], *sentences]
            entities = []
            for a in (a for part in parts for a in part.get("annotations", [])):
                spans = tuple((x["offset"], x["offset"] + x["length"]) for x in a["locations"])
                found = " ".join(text[a:b] for a, b in spans)
                is_inside = all(0 <= a <= b <= len(text) for a, b in spans)
                if not is_inside or not is_same_text(found, replace_surrogates(a["text"])):
                    raise UserError(f"{path}, document {name}: {spans} is {found[:40]!r}, not {a['text'][:40]!r}")
                entities.append((replace_surrogates(a["infons"]["type"]), spans))
            documents.append(align_entities(name, text, entities, types, issues))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{path}: not a collection of BioC in JSON ({type(e).__name__}: {e})") from None
    return documents


def bioc_parts(document):
    """The parts of a document in BioC that have its text: its passages, or the sentences of a passage without one."""
    for passage in document["passages"]:
        yield from [passage] if passage.get("text") else passage.get("sentences") or [passage]


def read_conll(path, types, issues):
    """A file of columns, TAB or one space between them, the token first, its tag last -> a list of Documents.

    Each is a sentence, ended by a blank line; -DOCSTART- and ###MEDLINE:<id> begin documents (numbered: ids repeat).
    Tags of IOB1, BIOES and BILOU become IOB2: O, B-X, I-X.
    Raises: UserError naming the row of another number of columns, an unknown tag or one of another scheme.
    """
    sentences, n_columns, tokens, tags, n_documents, scheme = [], None, [], [], 0, ""
    for row, line in enumerate([*read_utf8(path).split("\n"), ""], 1):
        line = line.rstrip("\r")
        if not line.strip() or line.startswith(COLUMNS_MARK):
            if tokens:
                group = f"{n_documents}" if n_documents else ""
                labels = convert_tags(tags, types, issues)
                sentences.append(Document(f"{path.stem}:{row}", tokens, labels, group=group))
                tokens, tags = [], []
            n_documents += bool(line.strip())
            continue
        fields = line.split("\t") if "\t" in line else line.split(" ")
        n_columns = n_columns or max(2, len(fields))
        if len(fields) != n_columns or not fields[0]:
            what = f"{len(fields)} columns instead of {n_columns}" if fields[0] else "an empty token"
            raise UserError(f"{path}, row {row}: {what} (the token first, its tag last): {line[:60]!r}")
        scheme = check_label(fields[-1], scheme, f"{path}, row {row}")
        tokens.append(fields[0])
        tags.append(fields[-1])
    if not sentences:
        raise UserError(f"{path}: no sentence in it")
    return sentences


def convert_tags(tags, types, issues):
    """The tags of a sentence, of any scheme, as IOB2 with the task's types. What is not IOB2 is counted."""
    labels = to_iob2(tags)
    for tag, label in zip(tags, labels):
        if SCHEMES.get(tag[:2]):
            issues[f"tags of {SCHEMES[tag[:2]]}: converted to IOB2"] += 1
        if label[:2] == "B-" and tag[:2] in ("I-", "E-", "L-"):
            issues[f"{tag[:2]} tags that begin an entity: read as B-"] += 1
    entities = [(start, end, map_type(kind, types, issues)) for start, end, kind in decode_entities(labels)]
    return iob2_labels(len(labels), [e for e in entities if e[2]])


# CAS and ESSAI: TreeTagger's tags for French, and what the files have beside them by mistake.
TAGS = set(
    "ABR ADJ ADV DET:ART DET:POS FAG INT KON NAM NN NOM NUM PREF PRO PRO:DEM PRO:IND PRO:PER PRO:POS PRO:REL PRP "
    "PRP:det PUN PUN:cit SENT SYM VER: VER:con VER:cond VER:futu VER:impf VER:infi VER:pper VER:ppre VER:pres VER:simp "
    "VER:subi VER:subp".split()
)


def read_tagged(path, issues):
    """A file of CAS or ESSAI (columns: sentence, token, word, lemma, tag, cues) -> {sentence number: (words, tags)}.

    A number that was cut at its thousands ("100 000") has moved the columns after it. So the tag is the first column
    from the fifth on that is one, and the word all before the lemma. @card@, the lemma of numbers, is not a tag.
    """
    sentences, last = {}, None
    for row, line in enumerate(read_utf8(path).split("\n"), 1):
        fields = line.rstrip("\r").split("\t")
        if not line.strip():
            last = None
            continue
        if len(fields) < 5 or not all(map(NUMBER.fullmatch, fields[:2])):
            issues["lines of fewer than five columns: left out"] += 1
            continue
        at = next((k for k in range(4, len(fields)) if fields[k] in TAGS), None)
        if at is None and "@card@" not in fields[4:]:
            raise UserError(f"{path}, row {row}: no part of speech in column 5 or later: {line[:60]!r}")
        end = at - 1 if at else 3 + fields[3 : fields.index("@card@", 4)].count("000")
        issues["words joined again from several columns"] += end > 3
        number = int(fields[0])
        issues["sentence numbers that come again later: one sentence"] += number != last and number in sentences
        words, tags = sentences.setdefault(number, ([], []))
        words.append(" ".join(fields[2 : max(end, 3)]))
        tags.append(fields[at] if at else "NUM")
        last = number
    return sentences


def read_cas(folder, name, issues):
    """CAS or ESSAI: <name>_neg.txt and <name>_spec.txt -> Documents, sentences; those of both files once."""
    paths = [Path(folder, f"{name}_{what}.txt") for what in ("neg", "spec")]
    if missing := [path for path in paths if not path.is_file()]:
        raise UserError(f"{missing[0]} not found; {folder} must hold {name}_neg.txt and {name}_spec.txt")
    sentences, second = (read_tagged(path, issues) for path in paths)
    known = {tuple(words) for words, _ in sentences.values()}
    documents = [Document(str(number), words, tags) for number, (words, tags) in sorted(sentences.items())]
    for number, (words, tags) in sorted(second.items()):
        if number not in sentences:
            documents.append(Document(str(number), words, tags))
        elif words != sentences[number][0]:  # not the same sentence after all
            issues["numbers with other words in the second file: kept if new"] += 1
            if tuple(words) not in known:
                documents.append(Document(f"{number}'", words, tags))
    return documents


def read_split(path, types, issues):
    """The Documents of a file or folder, in the form that it has: brat, BioC, PubTator or columns.

    A file has columns if the last column of its first row is a label. Raises: UserError for one of no known form.
    """
    if path.is_dir():
        return read_brat(path, types, issues)
    if path.suffix.lower() == ".json":
        return read_bioc(path, types, issues)
    head = read_head(path) or ""
    if PUBTATOR_TEXT.match(head):
        return read_pubtator(path, types, issues)
    line = re.split("[\r\n]", head, maxsplit=1)[0]
    if not line or line.startswith(COLUMNS_MARK) or LABEL.fullmatch(line.split("\t" if "\t" in line else " ")[-1]):
        return read_conll(path, types, issues)
    if line.lstrip().startswith("<"):
        raise UserError(f"{path}: {describe_xml(head)}")
    raise UserError(
        f"{path}: neither columns (a token first, its label last: O, B-<type> or I-<type>) nor PubTator, and not named "
        f".json as BioC in JSON is; it begins with {line[:60]!r}"
    )


def read_head(path):
    """The first 64 KB of a file (or .gz) as text, without blank lines before the first other one.

    None if it cannot be read: reading all of it says why.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as f:
            text = f.read(1 << 16).decode("utf-8-sig", "replace")
    except (EOFError, OSError, zlib.error):
        return None
    return re.sub(r"\A(?:[^\S\r\n]*[\r\n])+", "", text)


def describe_xml(head):
    """What to do with a file of XML, of which none is read: the corpus that has it in another form, or a conversion."""
    for root, advice in (
        ("collection", "BioC in XML; convert it to BioC in JSON (.json), which biored and custom read, or to PubTator"),
        ("MEDDOCAN", "the XML of MEDDOCAN; --corpus meddocan reads the brat files that lie beside it"),
        ("(xmi:)?XMI", "XMI, as E3C has it; --corpus e3c reads train.txt and test.txt of clinical_entities/layer1"),
    ):
        if re.search(rf"<{root}[\s>]", head):
            return advice
    return "XML, which is not read; convert it to columns, brat, PubTator or BioC in JSON"


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


DEFT = {  # ours, by semantic group where there is one: the paper does not say what its groups are
    "anatomie": "ANAT", "pathologie": "DISO", "sosy": "DISO", "substance": "CHEM", "examen": "PROC",
    "traitement": "PROC", "dose": "dose", "mode": "mode", "moment": "moment", "valeur": "valeur",
}  # fmt: skip
NCBI = dict.fromkeys(("Disease", "SpecificDisease", "Modifier", "DiseaseClass", "CompositeMention"), "Disease")


def read_cas_pos(folder, issues):
    return dict(zip(SPLITS, random_splits(read_cas(folder, "CAS", issues), 0.7, 0.15)))


def read_essai_pos(folder, issues):
    return dict(zip(SPLITS, random_splits(read_cas(folder, "ESSAI", issues), 0.7, 0.15)))


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

    A pattern may be (train, dev, test) where a corpus has names of its own.
    """
    return {
        split: [
            "|".join(p.replace("{}", any_case(name)) for name in names) if isinstance(p, str) else p[i]
            for p in patterns
            if isinstance(p, str) or p[i]
        ]
        for i, (split, names) in enumerate(SPLIT_NAMES.items())
    }


def any_case(name):
    """A pattern of glob for a name in small or large letters."""
    return "".join(f"[{c}{c.upper()}]" for c in name)


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
        "788 790 787 7", in_splits("corpus/{}/MEDLINE", "{}/MEDLINE"), bio=False,
    ),
    "quaero-emea": Corpus(
        "QUAERO-EMEA", "fr", "GFDL", "corpus/{train,dev,test}/EMEA/*.{txt,ann}", "",
        in_splits("corpus/{}/EMEA", "{}/EMEA"), bio=False,
    ),
    "essai-pos": Corpus(
        "ESSAI-POS", "fr", "on request (Dalloux, Claveau, Grabar)", "ESSAI_neg.txt and ESSAI_spec.txt",
        "5,072 1,088 1,087 34", read=read_essai_pos, pos=True,
    ),
    "ncbi-disease": Corpus(
        "NCBI-Disease", "en", "public domain", "NCBI{train,develop,test}set_corpus.txt, or {train,devel,test}.tsv",
        "5,433 924 941 3", types=NCBI, splits=in_splits(
            ("NCBItrainset_corpus.txt", "NCBIdevelopset_corpus.txt", "NCBItestset_corpus.txt"),
            "{}.tsv",
        ),
    ),
    "biored": Corpus(
        "BioRED-NER", "en", "public domain", "{Train,Dev,Test}.PubTator, or the same .BioC.JSON", "387 98 97 7",
        in_splits(*[tuple(f"{p}.{f}" for p in ("Train", "Dev", "Test")) for f in ("PubTator", "BioC.JSON")]), bio=False,
    ),
    "jnlpba": Corpus(
        "JNLPBA04", "en", "GENIA project", "Genia4ERtask2.iob2 and Genia4EReval2.iob2 (or the same with 1)",
        "16,619 1,927 3,856 11", in_splits(*[(f"Genia4ERtask{i}.iob2", None, f"Genia4EReval{i}.iob2") for i in "21"]),
    ),
    "pharmaconer": Corpus(
        "PharmaCoNER", "es", "CC BY 4.0", "{train,dev,test}-set_1.1/{train,dev,test}/subtrack1/*.{txt,ann}",
        "500 250 250 5", in_splits("{}-set_1.1/{}/subtrack1", "{}/subtrack1"), bio=False,
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


def read_corpus(name, folder):
    """({split: Documents}, {split: Counter of issues}) of a corpus; dev may be absent.

    Raises: UserError if the corpus is unknown, a split is missing or broken, or the folder is not there.
    """
    if name not in CORPORA:
        raise UserError(f"unknown corpus '{name}'; it is one of {', '.join(CORPORA)} (finetune.py list)")
    corpus = CORPORA[name]
    if not folder:
        raise UserError(f"no folder of the corpus given; give --data, which must hold {corpus.holds}")
    if not Path(folder).is_dir():
        raise UserError(f"--data '{folder}': there is no such folder; it must hold the corpus: {corpus.holds}")
    folder, splits, issues = corpus_folder(name, folder), {}, {}
    if corpus.read:
        issues["train"] = Counter()
        splits = corpus.read(folder, issues["train"])
    else:
        for split, patterns in corpus.splits.items():
            if path := find_split(folder, split, patterns):
                issues[split] = Counter()
                splits[split] = read_split(path, corpus.types, issues[split])
                for d in splits[split]:
                    for kind in dict(d.gold or ()):
                        check_type(kind, f"{path}, document {d.name}")
            elif split != "dev":
                raise UserError(f"{folder} holds no {split} split; corpus {name} needs {corpus.holds}")
            else:  # its names may be others than those that are known
                unread = [p for p in Path(folder).glob("[!.]*") if re.search("dev|valid", p.name.lower())]
                issues["train"]["files that look like a dev split: not read"] += len(unread)
    for split, documents in splits.items():
        splits[split] = [d for d in documents if d.tokens]
        n_empty = len(documents) - len(splits[split])
        issues.setdefault(split, Counter())["documents without a word: left out"] += n_empty
        if not splits[split]:
            raise UserError(f"{folder}: the {split} split is empty; corpus {name} needs {corpus.holds}")
    return splits, issues


def find_split(folder, split, patterns):
    """The file or folder of a split: the first pattern that is there, in `folder` or one below; None if none is.

    Raises: UserError if there are several of a pattern.
    """
    for pattern in patterns:
        for below in ("", "*/"):
            places = {p for place in pattern.split("|") for p in Path(folder).glob(below + place)}
            found = sorted(p for p in places if p.is_file() or any(p.glob("*.ann")))
            if len(found) > 1:
                names = ", ".join(str(p.relative_to(folder)) for p in found[:3]) + " .." * (len(found) > 3)
                raise UserError(f"{folder} holds {len(found)} of {split} ({names}); leave one, or name a folder of one")
            if found:
                return found[0]
    return None


def corpus_folder(name, folder):
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


def language_of(name, folder):
    """The language of a corpus; of one in several the first folder from the right that is named for one of them."""
    known = CORPORA[name].language.split()
    if len(known) == 1:
        return known[0]
    names = {name.lower(): lang for lang, (_, name) in LANGUAGES.items() if name} | {lang: lang for lang in known}
    parts = Path(corpus_folder(name, folder)).resolve().parts
    words = [word for part in parts for word in re.split(r"[\W_]", part.lower())]
    named = [names[word] for word in reversed(words) if word in names]
    return next((lang for lang in named if lang in known), "")


# ---------------------------------------------------------------- the texts alone


def read_texts(place):
    """The texts of an evaluation corpus or of a part of it, whatever its format: what pre-training must not see.

    Annotations are not parsed. So tags of other schemes, and files that lie beside a corpus, do not stop a build.

    Args: place: a file or folder, as in data.py build --exclude. Returns: the text of each document; of columns each
    sentence, and all sentences of a file as one.
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
    """The texts of BioC, PubTator, a brat .txt, columns or a plain text."""
    text = re.sub(r"^(###MEDLINE:|-DOCSTART-).*", "", read_utf8(file), flags=re.M)
    if file.suffix.lower() == ".json":
        try:
            return [" ".join(part["text"] for part in bioc_parts(d)) for d in json.loads(text)["documents"]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"exclude: {file}: not a collection of BioC in JSON; name another folder") from None
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
