"""Windows of documents: stretches that fit an encoder and together hold every word."""

from collections import defaultdict
from typing import NamedTuple
from unicodedata import normalize

import numpy as np

from support import tokenizers
from support.arrays import ceil_div, concat_ranges
from support.labels import decode_entities

# Tokens, if nobody gives another length. ModernBERT has 8,192 positions; a batch of such windows would fill the memory.
MAX_WINDOW = 512
OVERLAP = 32  # tokens that two windows of a line share, or half a window if that is less


class Window(NamedTuple):
    """A stretch of a document that fits the encoder."""

    document: int  # index
    first_word: int
    ids: list  # with [CLS] and [SEP]
    word_positions: list  # of the first token of each of its words, in ids


def make_windows(documents, tokenizer, special, max_len):
    """Documents -> Windows of at most max_len tokens that together hold every word.

    A window ends at the last line break that fits in. A line that does not fit is covered by windows of about equal
    length that overlap by OVERLAP tokens: an entity of so many is whole in one of them. A word that touches
    the one before it is tokenised without a space, but not where the tokenizer itself puts one before each text, as the
    Metaspace of CamemBERT and XLM-R does. Words are tokenised in NFC, as vocabularies are made of it, and not each
    tokenizer normalises.
    """
    windows, room = [], max_len - 2
    words = [normalize("NFC", word) for d in documents for word in words_with_spaces(d)]
    pieces = iter(tokenizers.encode_lists(tokenizer, words, "words"))
    for i, document in enumerate(documents):
        words = [next(pieces)[:room] or [special["unk"]] for _ in document.tokens]
        offset = np.cumsum([0] + [len(w) for w in words])
        for first, end in cut_words(offset, np.array(document.breaks, int), room):
            window = [special["cls"], *(t for w in words[first:end] for t in w), special["sep"]]
            windows.append(Window(i, first, window, (offset[first:end] - offset[first] + 1).tolist()))
    return windows


def words_with_spaces(document):
    """The tokens of a document, with a space before each that does not touch the one before it."""
    if not document.spans:
        return [" " + w for w in document.tokens]
    previous_end = [None, *(end for _, end in document.spans[:-1])]
    return [w if start == end else " " + w for w, (start, _), end in zip(document.tokens, document.spans, previous_end)]


def cut_words(offset, breaks, room):
    """Yields (first word, one past the last word) of each window of a document.

    Args: offset: (words + 1,) of each word in the tokens. breaks: words that begin a line. room: tokens.
    """
    first = end = 0
    n_words, overlap = len(offset) - 1, min(OVERLAP, room // 2)
    while end < n_words:
        longest = last_word(offset, offset[first] + room)
        fitting = breaks[(breaks > first) & (breaks <= longest)]
        if longest == n_words or len(fitting):
            following = end = n_words if longest == n_words else int(fitting[-1])
        else:
            line = offset[min(breaks[breaks > first], default=n_words)] - offset[first]  # what is left of it, in tokens
            n_windows = ceil_div(line - overlap, room - overlap)
            even = ceil_div(line + (n_windows - 1) * overlap, n_windows)
            end = max(end + 1, last_word(offset, offset[first] + even))
            # The next window has room for the next word, however long that is.
            following = int(np.searchsorted(offset, max(offset[end] - overlap, offset[end + 1] - room)))
            following = max(first + 1, following)
        yield first, end
        first = following


def last_word(offset, limit):
    """One past the last word that ends at or before token `limit`."""
    return int(np.searchsorted(offset, limit, side="right")) - 1


def labels_of(documents, window):
    """The labels of a window's words."""
    return documents[window.document].labels[window.first_word : window.first_word + len(window.word_positions)]


def count_split_entities(documents, windows):
    """How many labelled entities are split across windows, so that none holds them whole."""
    spans = defaultdict(list)
    for w in windows:
        spans[w.document].append((w.first_word, w.first_word + len(w.word_positions)))
    return sum(
        not any(a <= e.start and e.end <= b for a, b in spans[i])
        for i, d in enumerate(documents)
        for e in decode_entities(d.labels)
    )


def central_words(documents, windows):
    """(words of the documents,) int: from which of the words of all windows, one after another, each is read.

    A word in several windows is read in the one in which it is farthest from an edge, and of equals in the first.
    """
    first_word = np.cumsum([0] + [len(d.tokens) for d in documents])
    start = np.array([first_word[w.document] + w.first_word for w in windows], int)
    n_words = np.array([len(w.word_positions) for w in windows], int)
    word = concat_ranges(start, n_words)
    from_start, from_end = word - np.repeat(start, n_words), np.repeat(start + n_words, n_words) - 1 - word
    # What is assigned to a word last stays: that of the middle, and of equals that of the first window.
    order = np.lexsort((-np.arange(len(word)), np.minimum(from_start, from_end)))
    central = np.zeros(first_word[-1], int)
    central[word[order]] = order
    return central
