"""Documents and their labels: the schemes IOB1, IOB2, BIOES and BILOU, and text with entities -> tokens and labels."""

import re
import unicodedata
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from configs import UserError
from support.texts import word_patterns

SCHEMES = {"B-": "", "I-": "", "E-": "BIOES", "S-": "BIOES", "L-": "BILOU", "U-": "BILOU"}  # B- and I- are of all
WITHOUT_BLANKS = re.compile(r"\S(.*\S)?", re.S)  # of a stretch of text
BREAKS_COLUMNS = re.compile("[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029\ud800-\udfff]")


@dataclass
class Document:
    """One sequence of a corpus: a document, a title or a sentence. Only a corpus with text has spans, gold and text."""

    name: str
    tokens: list
    labels: list  # of each token: IOB2, or a part of speech
    spans: list | None = None  # (start, end) of each token, in characters
    gold: list | None = None  # all entities, also those that labels cannot express: (type, ((start, end), ...))
    text: str | None = None
    breaks: tuple = ()  # the tokens that begin a line
    group: str = ""  # the document that a sentence belongs to, if that is known


# ---------------------------------------------------------------- labels


class LabelledEntity(NamedTuple):
    """An entity of tokens."""

    start: int
    end: int
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
    """Labels without those that belong to no entity, such as an I-X after O."""
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
    starts, ends = [a for a, _ in spans], [b for _, b in spans]
    labels = ["O"] * len(spans)
    for kind, (a, b) in longest_without_overlap(entities, len(text), issues):
        free = [k for k in range(bisect_right(ends, a), bisect_left(starts, b)) if labels[k] == "O"]
        if not free:
            issues["entities within the word of another: not labelled"] += 1
            continue
        is_exact = (starts[free[0]], ends[free[-1]]) == (a, b)
        issues["entities that begin or end inside a word: labelled with all of it"] += not is_exact
        for k in free:
            labels[k] = ("B-" if k == free[0] else "I-") + kind
    breaks = tuple(k for k in range(1, len(spans)) if re.search("[\r\n]", text[ends[k - 1] : starts[k]]))
    return Document(name, [text[a:b] for a, b in spans], labels, spans, entities, text, breaks)


def is_same_text(found, words):
    """Whether the words that a corpus gives for an entity are those at its offsets, in any Unicode form and blanks."""
    found, words = (unicodedata.normalize("NFC", x).split() for x in (found, words))
    return found == words != []


def distinct_entities(text, entities, types, issues):
    """Entities with the task's types, their fragments as join_fragments has them, and each entity once."""
    distinct = {}
    for kind, spans in entities:
        if not (kind := map_type(kind, types, issues)):
            continue
        joined = join_fragments(text, spans)
        fragments = tuple(m.span() for a, b in joined if (m := WITHOUT_BLANKS.search(text, a, b)))
        issues["entities with blanks at an end: trimmed"] += fragments != joined
        issues["entities marked twice: counted once"] += (kind, fragments) in distinct
        distinct[kind, fragments] = None
    n_fragmented = sum(len(fragments) > 1 for _, fragments in distinct)
    issues["entities of several fragments: one stretch, where labelled"] += n_fragmented
    return [*distinct]


def join_fragments(text, spans):
    """The fragments of an entity, sorted; those that overlap or have only blanks between them are one, as in labels."""
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


def longest_without_overlap(entities, n, issues):
    """(type, (start, end)) of each entity to be labelled in a text of n characters: the longest where they overlap."""
    taken, kept = np.zeros(n, bool), []
    outer = [(kind, (min(a for a, _ in spans), max(b for _, b in spans))) for kind, spans in entities]
    for kind, (a, b) in sorted(outer, key=lambda entity: (entity[1][0] - entity[1][1], entity[1][0])):
        if taken[a:b].any():
            issues["entities within or across a longer one: not labelled"] += 1
        else:
            taken[a:b] = True
            kept.append((kind, (a, b)))
    return sorted(kept, key=lambda entity: entity[1])
