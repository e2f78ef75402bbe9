"""The entities of texts, as JSON Lines, brat, CoNLL columns, forms of annotation tools, and a web page.

    python -m beyond.tag results/kgi-fr/e3c < notes.txt > entities.jsonl                 a document a line
    python -m beyond.tag results/kgi-fr/e3c notes --format brat --out tagged             a folder of .txt files
    python -m beyond.tag results/kgi-fr/e3c notes.jsonl --html page.html                 a page to look at

The tagger is one that fine-tuning keeps in its results folder, or a token classifier of another library. Offsets are
code points of the text as it is, as in brat. Documents are written in the order in which they were read.
"""

from configs import DEVICES, UserError, argument, setting  # isort: split

import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer

import model as models
from beyond.pages import PAGE, PAGE_CHARACTERS, format_block, format_page, types_of
from beyond.tagged import (
    FORMATS,
    RECORDS,
    Entity,
    TaggedText,
    check_format_destination,
    format_documents,
    read_texts,
    write_brat,
)
from finetune import TokenClassifier, choose_machine, word_scores
from support import taggers, tokenizers
from support.files import atomic_directory, check_output_file, progress, write_all, write_atomic
from support.labels import align_entities, decode_entities, strict_iob2, to_iob2
from support.programs import run_command, standard_output
from support.reports import print_next
from support.windows import make_windows

# The test parts of all corpora with text are smaller. So each is tagged as one chunk, in the batches of its evaluation.
CHUNK_DOCUMENTS, CHUNK_CHARACTERS = 1024, 4_000_000


@dataclass
class Tag:
    """Mark the entities of texts: python -m beyond.tag RESULTS < notes.txt > entities.jsonl"""

    model: str = argument("MODEL", "folder of a tagger, or a results folder of fine-tuning, which holds one in model/")
    input: str = argument(
        "INPUT", "a file, a document a line, a .jsonl, or a folder of .txt; default: standard input", optional=True
    )
    format: str = setting(
        "jsonl", "JSON Lines, brat (.txt, .ann), CoNLL columns, or a tool's import format", choices=("brat", *FORMATS)
    )
    out: str = setting("", "output file, for brat a new folder; default: standard output")
    html: str = setting("", "also write a page with the entities highlighted; a terminal then shows no other output")
    precision: str = setting("", "number format; default: as in fine-tuning", choices=("auto", "bf16", "fp32"))
    device: str = setting("auto", "where to run", choices=DEVICES)


# ---------------------------------------------------------------- the tagger


class Tagger(NamedTuple):
    """A token classifier, and how text is read, cut and predicted for it."""

    classifier: TokenClassifier
    tokenizer: Tokenizer
    max_len: int
    has_text: bool  # whether words that touch are tokenised without a space between them
    pos: bool  # whether labels are parts of speech, each word a unit
    is_ours: bool  # whether fine-tuning wrote it, so that its labels are strict IOB2
    scheme: str  # of its labels: BIOES, BILOU, or "" for IOB1 or IOB2


def load_tagger(s):
    """The Tagger of a folder that save_tagger or another library wrote. Raises: UserError if it is none."""
    config = models.load_config(s.model)
    labels, weights, details = taggers.read_tagger(s.model, config)
    device, dtype = choose_machine(s.device, s.precision or details["precision"])
    encoder, tokenizer = models.open_encoder(s.model, device, log=lambda _: None)
    classifier = TokenClassifier(encoder, labels, tokenizers.special_ids(tokenizer)["pad"], device, dtype).eval()
    classifier.load_state_dict(classifier.state_dict() | weights)
    settings = {key: details[key] for key in ("max_len", "has_text", "pos", "is_ours", "scheme")}
    return Tagger(classifier, tokenizer, **settings)


def tag_texts(tagger, inputs, beginnings):
    """Yields a TaggedText for each Text, by the windows and the decoding of the evaluation.

    Texts are read in chunks, whose windows are batched by length. beginnings: as in read_labels.
    """
    special = tokenizers.special_ids(tagger.tokenizer)
    for chunk in in_chunks(inputs):
        documents = [align_entities("", text, [], None, Counter()) for _, text in chunk]
        read = documents if tagger.has_text else [replace(d, spans=None) for d in documents]
        windows = make_windows(read, tagger.tokenizer, special, tagger.max_len)
        windows = [w for w in windows if w.word_positions]  # a text without a word has nothing to predict
        predicted = predict_with_probabilities(tagger.classifier, read, windows)
        for (key, text), document, *found in zip(chunk, documents, *predicted):
            labels, probabilities = read_labels(tagger, *found, beginnings)
            entities = scored_entities(document.spans, labels, probabilities, tagger.pos)
            yield TaggedText(key, text, document.spans, labels, probabilities, entities)


def predict_with_probabilities(classifier, documents, windows):
    """predict, with the probability of each label and that of O: two lists with an entry a document, (words, 2) each.

    The probability of O is 0 if O is no label.
    """
    labels = classifier.labels
    outside = [i for i, label in enumerate(labels) if label == "O"]

    def best_of(logits):
        best, softmax = logits.argmax(-1, keepdim=True), logits.float().softmax(-1)
        return torch.cat([best, softmax.gather(-1, best), softmax[:, outside].sum(-1, keepdim=True)], -1)

    found = word_scores(classifier, documents, windows, best_of)
    return [[labels[int(i)] for i in x[:, 0].tolist()] for x in found], [x[:, 1:] for x in found]


def in_chunks(texts):
    """Yields lists of up to CHUNK_DOCUMENTS Texts, which end earlier where they have CHUNK_CHARACTERS."""
    chunk, n_characters = [], 0
    for text in texts:
        chunk.append(text)
        n_characters += len(text.text)
        if len(chunk) == CHUNK_DOCUMENTS or n_characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, n_characters = [], 0
    if chunk:
        yield chunk


def read_labels(tagger, labels, probabilities, beginnings):
    """(labels of a document in IOB2, the probability of each), from what predict has of it.

    Of our own taggers an I-X that continues nothing is O, as in their scores, and has the probability of O. Those of
    others may begin an entity with it (to_iob2). Their label gets another name, and keeps its probability.

    Args: beginnings: a Counter, of the prefixes of the labels with which such entities begin.
    """
    of_label, of_outside = probabilities.T.tolist()
    if tagger.pos:
        return labels, of_label
    if tagger.is_ours:
        strict = strict_iob2(labels)
        return strict, [p if a == b else o for a, b, p, o in zip(labels, strict, of_label, of_outside)]
    as_iob2 = to_iob2(labels)
    beginnings.update(theirs[:2] for theirs, ours in zip(labels, as_iob2) if ours[:2] == "B-")
    return as_iob2, of_label


def scored_entities(spans, labels, probabilities, pos):
    """What predicted_entities counts, in the order of the text: an Entity each."""
    units = [(i, i + 1, label) for i, label in enumerate(labels)]
    if not pos:
        units = [(e.start, e.end, e.tag) for e in decode_entities(labels)]
    scores = [round(sum(probabilities[a:b]) / (b - a), 4) for a, b, _ in units]
    return [Entity(spans[a][0], spans[b - 1][1], kind, score) for (a, b, kind), score in zip(units, scores)]


# ---------------------------------------------------------------- what is written


@dataclass
class Tally:
    """What was tagged so far, and the blocks of the web page."""

    n_documents: int = 0
    entities: Counter = field(default_factory=Counter)  # by type
    page: list = field(default_factory=list)
    page_characters: int = 0


def check_outputs(s):
    """Raises UserError for places that cannot be written to, or that hold what would be lost."""
    inputs = s.input or 0, s.model
    check_format_destination(s.format, s.out, RECORDS, *inputs)
    if s.html:
        check_output_file(s.html, PAGE, *inputs)
    if s.out and s.html and Path(s.out).resolve() == Path(s.html).resolve():
        raise UserError(f"--out and --html are both {s.out}; choose two names")


def write_tagged(tagged, s, labels):
    """Writes TaggedTexts as they come, in the format and to the place of the settings, and the page if asked for.

    Args: s: a Tag. labels: of the tagger, whose types have a colour each. Returns: a Tally.
    """
    tally, types = Tally(), types_of(labels)
    counted = count(tagged, tally, types if s.html else None)
    if s.format == "brat":
        with atomic_directory(s.out, {}) as folder:
            for document in counted:
                write_brat(folder, document)
    elif s.out:
        write_atomic(s.out, lambda f: f.writelines(map(str.encode, format_documents(counted, s.format))))
    else:
        is_silent = s.html and sys.stdout.isatty()  # who asks for a page wants no lines there
        for text in format_documents(counted, s.format):
            if not is_silent:
                write_all(standard_output(), text.encode())
    if s.html:
        page = format_page(tally, types, s.model).encode()
        write_atomic(s.html, lambda f: f.write(page))
    return tally


def count(tagged, tally, types):
    """Yields TaggedTexts, adding each to the Tally; with a progress bar. types: of the page, None for no page."""
    with progress("tagged", None, "doc") as bar:
        for document in tagged:
            tally.n_documents += 1
            tally.entities.update(entity.type for entity in document.entities)
            if types is not None and tally.page_characters < PAGE_CHARACTERS:
                tally.page_characters += len(document.text)
                tally.page.append(format_block(document, types))
            yield document
            bar.update()


def print_scheme(scheme, beginnings):
    """Says on standard error how the labels of a tagger of others were read.

    Args: scheme: BIOES, BILOU or "". beginnings: {prefix: how many entities begin with it}. With IOB1 most begin with
    I-, and with IOB2 those that a model begins so by mistake.
    """
    total, known = beginnings.total(), ("B-", "S-", "U-")
    others = {prefix: n for prefix, n in sorted(beginnings.items()) if prefix not in known}
    either = "IOB1" if 2 * beginnings["I-"] > total else "IOB2" if total else "IOB1 or IOB2"
    how = "".join(f"; {n:,} of {total:,} entities begin with {prefix}" for prefix, n in others.items())
    print(f"the labels were read as {scheme or either}{how}", file=sys.stderr)


def tag(s):
    """Writes the entities of texts."""
    if not Path(s.model, "config.json").exists() and Path(s.model, "model").is_dir():  # a results folder
        s.model = str(Path(s.model, "model"))
    check_outputs(s)
    tagger = load_tagger(s)
    began, beginnings = time.monotonic(), Counter()
    tally = write_tagged(tag_texts(tagger, read_texts(s.input), beginnings), s, tagger.classifier.labels)
    if not tagger.is_ours:
        print_scheme(tagger.scheme, beginnings)
    n, n_entities, seconds = tally.n_documents, tally.entities.total(), max(1e-9, time.monotonic() - began)
    print(f"{n:,} documents, {n_entities:,} entities, {n / seconds:,.1f} documents/s", file=sys.stderr)
    for path in filter(None, (s.out, s.html)):
        print(f"wrote {path}", file=sys.stderr)
    if s.out and s.format == "jsonl":
        print_next(("python -m beyond.link CHECKPOINT {} --out links.jsonl", s.out), file=sys.stderr)


COMMANDS = {"tag": (tag, Tag)}

if __name__ == "__main__":
    run_command(__doc__, COMMANDS, default="tag")
