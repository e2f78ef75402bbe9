"""The names of concepts and their ids, and how similar mentions are to names: by spelling, and by vectors."""

import hashlib
import itertools
import re
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

import model as models
from beyond import embed, retrieval
from configs import UserError
from support import hardware, tokenizers
from support.arrays import npy_header
from support.files import folder_lock, name_of, progress, read_utf8, write_atomic
from support.pooling import read_pooling

MAX_SIMILARITIES = 1 << 27  # of mentions to names that are in memory at a time, for each method: 512 MB
NO_ID = ("", "-", "-1", "CUILESS", "CUI-LESS")
VARIANT = re.compile(r"(?:^|[,;])\s*[cgmnpr]?\|[A-Za-z]+\|")  # of BioRED: c|SUB|G|94|A or p|Allele|R|70 is one id
NAMED = r"\w+[ _-]|concept|entity|disease|chemical|term|mesh|omim|umls"
HEADER = re.compile(rf"#?\s*(({NAMED})?(id|cui|code|identifier)s?|concept|mesh|omim)", re.I)  # of a column of ids


class Dictionary(NamedTuple):
    """The names of concepts.

    ids: of the concepts. names: distinct strings. term, concept: (pairs,) int64, which name names which concept, sorted
    by concept; every concept has a name.
    """

    ids: list
    names: list
    term: np.ndarray
    concept: np.ndarray


# ---------------------------------------------------------------- ids


def parse_ids(text):
    """The ids of a mention -> its parts, each a tuple of alternatives: "a|b+c" gives (("a", "b"), ("c",))."""
    parts = [text] if VARIANT.search(text) else text.split("+")
    parts = [tuple(dict.fromkeys(x for x in alternatives(part) if x.upper() not in NO_ID)) for part in parts]
    return tuple(dict.fromkeys(part for part in parts if part))  # a part that is repeated is one


def alternatives(text):
    """Ids of which any is right, a bar, comma or semicolon between them -> a list. A variant keeps its bars."""
    return [normalise_id(x) for x in re.split("[,;]" if VARIANT.search(text) else "[|,;]", text)]


def normalise_id(text):
    """An id without blanks and without the prefix that only some corpora write: MESH:D008661 is D008661."""
    return re.sub(r"^(MESH|UMLS):", "", text.strip(), flags=re.I)


# ---------------------------------------------------------------- names


def make_dictionary(ids, names):
    """The Dictionary of two lists: names[i] is a name of the concept ids[i]. Ids and names may come again.

    Names are in NFC, as mentions are: vocabularies of models are, and so both compare as they look.
    """
    names = [normalize("NFC", name) for name in names]
    concepts, terms = (pa.array(x, pa.large_string()).dictionary_encode() for x in (ids, names))
    pairs = np.asarray(concepts.indices).astype(np.int64) * len(terms.dictionary) + np.asarray(terms.indices)
    concept, term = np.divmod(np.unique(pairs), len(terms.dictionary))
    return Dictionary(concepts.dictionary.to_pylist(), terms.dictionary.to_pylist(), term, concept)


def share_names(dictionaries):
    """The same dictionaries with one list of all their names; each then refers to its own names in it."""
    names = {name: i for i, name in enumerate(dict.fromkeys(name for d in dictionaries for name in d.names))}
    terms = [np.array([names[name] for name in d.names], np.int64)[d.term] for d in dictionaries]
    return [d._replace(names=[*names], term=term) for d, term in zip(dictionaries, terms)]


def read_ids(path):
    """{id: [concepts]} of a file (or .gz) of lines id TAB concept. Raises: UserError naming file and row."""
    concepts = defaultdict(list)
    for ids, concept in zip(*read_pairs(path, "id TAB concept")):
        for i in alternatives(ids):
            concepts[i] += alternatives(concept)
    return dict(concepts)


def read_pairs(path, form):
    """The two columns of a file (or .gz): ([ids], [texts]). Raises: UserError naming file and row.

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


# ---------------------------------------------------------------- similarities of mentions to names


def exact_matches(names, queries):
    """A function of a slice of the queries: (k, names) float32, 1 where both are equal but for case and blanks."""
    words = [" ".join(text.lower().split()) for text in (*names, *queries)]
    codes = np.asarray(pa.array(words, pa.large_string()).dictionary_encode().indices)
    return lambda block: (codes[len(names) :][block, None] == codes[: len(names)]).astype(np.float32)


def trigram_similarities(names, queries):
    """A function of a slice of the queries: (k, names) float32, the cosine of retrieval.trigram_vectors."""
    x, y = (retrieval.sparse_trigram_vectors(strings) for strings in (names, queries))
    return lambda block: np.ascontiguousarray((x @ y[block].toarray().T).T)


def query_blocks(dictionary, n_queries):
    """Slices of the queries. Each has at most MAX_SIMILARITIES similarities to the names, or one query."""
    size = max(1, MAX_SIMILARITIES // len(dictionary.names))
    return progress("blocks of mentions", [slice(i, i + size) for i in range(0, n_queries, size)])


def embed_mentions_and_names(s, mentions, names, poolings):
    """Vectors of length 1: ({pooling: (mentions, dim)}, (names, poolings, dim)), float32 arrays.

    With --keep_vectors those of the names are read from a file, if they have been embedded before.
    """
    device, dtype = hardware.choose_device(s.device, s.precision)
    encoder, tokenizer = models.open_encoder(s.checkpoint, device, partial(print, file=sys.stderr))
    max_tokens = embed.longest_text(read_pooling(s.checkpoint), encoder.config)
    queries = embed.embed_terms(encoder, tokenizer, mentions, poolings, dtype, max_tokens)
    queries, path = {pooling: F.normalize(x, dim=-1).cpu().numpy() for pooling, x in queries.items()}, None
    if s.keep_vectors:
        parts = ["\n".join(names), *poolings, str(max_tokens), str(dtype), tokenizer.to_str(), repr(encoder.config)]
        parts += [x.cpu().contiguous().numpy().tobytes() for x in encoder.state_dict().values()]
        path = vectors_file(s.keep_vectors, name_of(s.checkpoint), parts)

    def blocks():
        ids, length = tokenizers.encode_names(tokenizer, names, "tokens")
        special = tokenizers.special_ids(tokenizer)
        for block in embed.embed(encoder, special, ids, length, poolings, max_tokens, dtype):
            yield F.normalize(torch.from_numpy(block), dim=-1).numpy()

    return queries, name_vectors(path, (len(names), len(poolings), encoder.config.dim), blocks())


def name_vectors(path, shape, blocks):
    """The vectors of all names: an array of float32, one row a name; each block is asked for once.

    Args:
        path: the file that keeps them, or None. It is read if it is there and whole, and written if not. It is mapped,
            so that it may be larger than memory. shape: of the array. blocks: yields its rows, some at a time.
    """
    if path is None:
        out, offset = np.empty(shape, np.float32), 0
        for block in blocks:
            out[offset : offset + len(block)] = block
            offset += len(block)
        return out
    if not path.is_file() or not is_whole(path):
        if path.is_file():
            print(f"{path}: damaged, or of an older version; the names are embedded again", file=sys.stderr)
        with folder_lock(path.parent, "another process embeds names for it; try again when it has ended"):
            write_atomic(path, lambda f: write_vectors(f, shape, blocks))
    return np.load(path, mmap_mode="r")


def write_vectors(f, shape, blocks):
    """Writes an array of float32 as NumPy's .npy, block by block, and behind it the SHA-256 of all that is before."""
    digest = hashlib.sha256()
    for part in itertools.chain([npy_header(shape)], (np.ascontiguousarray(block, "<f4").data for block in blocks)):
        digest.update(part)
        f.write(part)
    f.write(digest.digest())


def is_whole(path):
    """Whether a file of write_vectors ends with its own SHA-256; what it should hold is in its name."""
    content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    return hashlib.sha256(content[:-32]).digest() == content[-32:].tobytes()


def vectors_file(folder, checkpoint, parts):
    """Where the vectors of a checkpoint are kept. Its name has a hash of all that they depend on: others are no match.

    parts: bytes-like objects and strings.
    """
    digest = hashlib.sha256()
    for part in parts:
        part = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(part).to_bytes(8, "little") + part)
    return Path(folder, f"{checkpoint}-{digest.hexdigest()[:16]}.npy")
