"""Formats of corpora, one reader each: brat, PubTator, CoNLL columns, and the columns of CAS and ESSAI (and bioc.py).

Nothing is dropped silently: `issues`, a Counter, has what labels cannot express and what was repaired.
"""

import gzip
import re
import zlib
from collections import Counter, defaultdict
from pathlib import Path

from configs import UserError
from support.bioc import read_bioc
from support.files import read_utf8
from support.labels import Document, align_entities, check_label, convert_tags, is_same_text

PUBTATOR_TEXT = re.compile(r"([^\s|]+)\|([ta])\|(.*)")
NUMBER = re.compile(r"\d{1,15}")  # an offset, or the number of a sentence; int() refuses thousands of digits
BRAT_SPAN = re.compile(r"(\S+) (N N(?:;N N)*)".replace("N", NUMBER.pattern))
LABEL = re.compile(r"O|[BIELSU]-.+")  # of IOB, BIOES and BILOU
COLUMNS_MARK = ("###MEDLINE:", "-DOCSTART-")  # lines that begin a document of columns
XML_BIOC = re.compile(r"\s*(<[?!][^>]*>[\s\]>]*)*<collection[\s>]")  # after its XML declaration and DOCTYPE
OFFSETS = re.compile(r"\d+_\d+")  # the third of PharmaCoNER's four columns
MAX_SHIFT = 3  # characters that an entity's offsets may be beside its words


def read_brat(folder, types, issues):
    """A folder of X.txt and X.ann (brat standoff): a list of Documents.

    Only text-bound lines (T) count. Offsets are code points of the file as it is, a byte order mark included.
    Raises: UserError for a line that is not brat's, or offsets whose text is not in the file at or near them.
    """
    documents, files = [], sorted(Path(folder).glob("[!.]*.ann"))
    without_ann = {*Path(folder).glob("[!.]*.txt")} - {f.with_suffix(".txt") for f in files}
    issues["texts without an .ann file: not read"] += len(without_ann)
    for path in files:
        text, lines = read_ann(path)
        entities = [
            parse_brat_entity(f"{path}, row {row}", line, text, issues)
            for row, line in enumerate(lines, 1)
            if line.startswith("T")
        ]
        documents.append(align_entities(path.stem, text, entities, types, issues))
    return documents


def read_ann(path):
    """(the text beside an .ann file, the lines of the file). Raises: UserError if there is no text."""
    if not path.with_suffix(".txt").is_file():
        raise UserError(f"{path.with_suffix('.txt')} not found, the text of {path.name}")
    lines = read_utf8(path).split("\n")
    return read_utf8(path.with_suffix(".txt"), bom="\ufeff"), [line.rstrip("\r") for line in lines]


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
    words = " ".join(text[a:b] for a, b in fragments)[:40]
    past = f" (the text has {len(text):,} characters)" if max(map(max, fragments)) > len(text) else ""
    fault = f"{match[2]} is {words!r} in the text{past}, not {fields[2][:40]!r}"
    raise UserError(f"{where}: {fault}; are both files of one version?")


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


def read_conll(path, types, issues):
    """A file of columns, TAB or one space between them, the token first, its tag last -> a list of Documents.

    Each is a sentence, ended by a blank line; -DOCSTART- and ###MEDLINE:<id> begin documents (numbered: ids repeat). In
    the four columns of PharmaCoNER (token, document, offsets, tag) the second names the document. Tags of IOB1, BIOES
    and BILOU become IOB2: O, B-X, I-X.
    Raises: UserError naming the row of another number of columns, an unknown tag or one of another scheme.
    """
    sentences, n_columns, tokens, tags, n_documents, document, scheme = [], None, [], [], 0, "", ""
    for row, line in enumerate([*read_utf8(path).split("\n"), ""], 1):
        line = line.rstrip("\r")
        if not line.strip() or line.startswith(COLUMNS_MARK):
            if tokens:
                group = document or (f"{n_documents}" if n_documents else "")
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
        document = fields[1] if len(fields) == 4 and OFFSETS.fullmatch(fields[2]) else ""
        tokens.append(fields[0])
        tags.append(fields[-1])
    if not sentences:
        raise UserError(f"{path}: no sentence in it")
    return sentences


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
        index = next((k for k in range(4, len(fields)) if fields[k] in TAGS), None)
        if index is None and "@card@" not in fields[4:]:
            raise UserError(f"{path}, row {row}: no part of speech in column 5 or later: {line[:60]!r}")
        end = index - 1 if index else 3 + fields[3 : fields.index("@card@", 4)].count("000")
        issues["words joined again from several columns"] += end > 3
        number = int(fields[0])
        issues["sentence numbers that come again later: one sentence"] += number != last and number in sentences
        words, tags = sentences.setdefault(number, ([], []))
        words.append(" ".join(fields[2 : max(end, 3)]))
        tags.append(fields[index] if index else "NUM")
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
        is_other = number in sentences and words != sentences[number][0]  # not the same sentence after all
        issues["numbers with other words in the second file: kept if new"] += is_other
        if number not in sentences or (is_other and tuple(words) not in known):
            documents.append(Document(f"{number}'" if is_other else str(number), words, tags))
    return documents


def read_split(path, types, issues):
    """The Documents of a file or folder in brat, BioC, PubTator or columns. Raises: UserError for others."""
    if path.is_dir():
        return read_brat(path, types, issues)
    if path.suffix.lower() == ".json":
        return read_bioc(path, types, issues)
    head = read_head(path) or ""
    if XML_BIOC.match(head):
        return read_bioc(path, types, issues)
    if PUBTATOR_TEXT.match(head):
        return read_pubtator(path, types, issues)
    line = re.split("[\r\n]", head, maxsplit=1)[0]
    # Columns: the last one of the first row is a label.
    if not line or line.startswith(COLUMNS_MARK) or LABEL.fullmatch(line.split("\t" if "\t" in line else " ")[-1]):
        return read_conll(path, types, issues)
    if line.lstrip().startswith("<"):
        raise UserError(f"{path}: {describe_xml(head)}")
    forms = "columns (a token first, its label last: O, B-<type> or I-<type>) nor PubTator, nor BioC (.json, or XML)"
    raise UserError(f"{path}: neither {forms}; it begins with {line[:60]!r}")


def read_head(path):
    """The first 64 KB of a file (or .gz) as text, without leading blank lines; None if it cannot be read."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as f:
            text = f.read(1 << 16).decode("utf-8-sig", "replace")
    except (EOFError, OSError, zlib.error):
        return None
    return re.sub(r"\A(?:[^\S\r\n]*[\r\n])+", "", text)


def describe_xml(head):
    """The advice for a file of XML that is not BioC."""
    for root, advice in (
        ("MEDDOCAN", "the XML of MEDDOCAN; --corpus meddocan reads the brat files that lie beside it"),
        ("(xmi:)?XMI", "XMI, as E3C has it; --corpus e3c reads train.txt and test.txt of clinical_entities/layer1"),
    ):
        if re.search(rf"<{root}[\s>]", head):
            return advice
    return "XML that is not BioC; convert it to columns, brat, PubTator or BioC"
