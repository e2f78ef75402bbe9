"""Entity linking: mentions with ids, a dictionary of names, and the rank of the right concept by the nearest name.

python -m beyond.link runs/kgi-en < mentions.txt                        the nearest concepts of each
python -m beyond.link runs/kgi-en entities.jsonl > linked.jsonl         those of a tagger's entities
python -m beyond.link runs/kgi-en --corpus NCBI-Disease --ids ids.tsv   how often the nearest is the right one
"""

from configs import DEVICES, POOLINGS, PRECISIONS, UserError, argument, setting  # isort: split

import sys
import time
from dataclasses import dataclass, fields
from functools import partial

import numpy as np

import model as models
from beyond.dictionaries import (
    embed_mentions_and_names,
    make_dictionary,
    query_blocks,
    read_dictionary,
)
from beyond.embed import POOLING_HELP, choose_pooling
from beyond.mentions import LINKS, mentions_of_records, read_records, write_records
from beyond.ranking import link_corpus
from beyond.retrieval import DATA_HELP, data_of
from support.datasets import names_of_dataset
from support.programs import check_destination, run_command

LANG_HELP = "only names of these languages (en,fr); default: all of the data set"
N_NEAREST = 5  # concepts that are written for a mention


@dataclass
class Link:
    """Link mentions to concepts by the nearest name: those of a file, or of a corpus with ids, which is scored."""

    checkpoint: str = argument("CHECKPOINT", "run folder, or folder of another checkpoint")
    mentions: str = argument(
        "MENTIONS", "a file, a mention a line, or JSON Lines of beyond.tag; default: standard input", optional=True
    )
    corpus: str = setting("", "folder of a gold standard: PubTator, BioC, brat with ids, E3C's XMI: score it", "corpus")
    split: str = setting("test", "whose mentions are scored", "corpus", choices=("train", "dev", "test", "all"))
    ids: str = setting("", "file of id TAB concept lines; default: the corpus has the dictionary's ids", "corpus")
    expand_abbreviations: bool = setting(False, "read a short form as the long form its document defines", "corpus")
    train_mentions: bool = setting(False, "add the mentions of the training split to the names", "corpus")
    dictionary: str = setting("", "file of id TAB name lines (or .gz); default: names of the data set", "dictionary")
    data: str = setting("", DATA_HELP, "dictionary")
    lang: list[str] = setting([], f"{LANG_HELP}; for a corpus several choices in turn (fr en fr,en)", "dictionary")
    umls: str = setting("", "release (folder or zip): for --codes, --types and retired CUIs", "dictionary")
    keep_vectors: str = setting("", "folder that keeps the names' vectors; the next run reads them", "dictionary")
    pooling: str = setting("", f"{POOLING_HELP}; for a corpus of none both in turn", "model", choices=POOLINGS)
    precision: str = setting("auto", "number format of the matrix products", "model", choices=PRECISIONS)
    device: str = setting("auto", "where the names are embedded; the search runs on the CPU", "model", choices=DEVICES)
    out: str = setting("", "file of links [standard output]; of a --corpus the results folder [results]", "output")


def link(s):
    """Links mentions to the concepts of a dictionary: scores those of a corpus, or writes the links of others."""
    if s.dictionary and (s.data or s.lang):
        raise UserError("--dictionary and a data set (--data, --lang): give one of them")
    if s.corpus and s.mentions:
        raise UserError(f"{s.mentions} and --corpus {s.corpus}: give one of them")
    corpus_fields = [f for f in fields(s) if f.metadata.get("group") == "corpus"]
    if given := [f.name for f in corpus_fields if not s.corpus and getattr(s, f.name) != f.default]:
        raise UserError(f"--{given[0]} is for the mentions of a --corpus, and there is none")
    if not s.corpus:
        check_destination(s.out, LINKS, s.mentions or 0, *[s.dictionary] * bool(s.dictionary))
    if len(s.lang) > 1 and not s.corpus:
        raise UserError(
            f"--lang {' '.join(s.lang)}: several choices are for a --corpus; give one, such as fr,en, after MENTIONS"
        )
    if s.dictionary:
        dictionaries = {"": read_dictionary(s.dictionary)}
    else:
        data = data_of(s, s.checkpoint)
        dictionaries = {lang: make_dictionary(*names_of_dataset(data, lang)) for lang in s.lang or [""]}
    if s.corpus:
        link_corpus(s, dictionaries)
    else:
        link_mentions(s, *dictionaries.values())


def link_mentions(s, dictionary):
    """Writes the nearest concepts of the mentions of a file, as JSON Lines."""
    began, records = time.monotonic(), read_records(s.mentions)
    mentions = mentions_of_records(records)
    texts, log = [text for _, text in mentions if text], partial(print, file=sys.stderr)
    pooling, *_ = choose_pooling(s, models.load_config(s.checkpoint), log)
    queries, nearest = list(dict.fromkeys(texts)), []
    if queries:
        vectors, names = embed_mentions_and_names(s, queries, dictionary.names, [pooling])
        nearest = nearest_concepts(dictionary, len(queries), lambda x: vectors[pooling][x] @ names[:, 0].T)
    found = {"": []} | dict(zip(queries, nearest))
    for mention, text in mentions:
        mention["concepts"] = found[text]
    write_records(records, s.out)
    print(
        f"{len(texts):,} mentions, {len(queries):,} of them distinct; {len(dictionary.ids):,} concepts with "
        f"{len(dictionary.names):,} names ({time.monotonic() - began:.0f} s)",
        file=sys.stderr,
    )


def nearest_concepts(dictionary, n_queries, similarities):
    """The N_NEAREST concepts of each query, by the nearest of their names; equally near ones in the order of the ids.

    Args: similarities: a function of a slice of the queries: (k, names) float32.
    Returns: [[{"id", "name", "similarity"}, ...], ...], the nearest concept first.
    """
    n, offset = min(N_NEAREST, len(dictionary.ids)), np.flatnonzero(np.diff(dictionary.concept, prepend=-1))
    end, out = [*offset[1:], len(dictionary.term)], []
    for block in query_blocks(dictionary, n_queries):
        for name_similarity in similarities(block):
            pair_similarity = name_similarity[dictionary.term]
            similarity = np.maximum.reduceat(pair_similarity, offset)
            near = np.flatnonzero(similarity >= np.partition(similarity, -n)[-n])
            near = near[np.argsort(-similarity[near], kind="stable")][:n]
            terms = [dictionary.term[offset[c] + pair_similarity[offset[c] : end[c]].argmax()] for c in near]
            out.append([
                {"id": dictionary.ids[c], "name": dictionary.names[t], "similarity": round(float(similarity[c]), 4)}
                for c, t in zip(near, terms)
            ])  # fmt: skip
    return out


COMMANDS = {"link": (link, Link)}

if __name__ == "__main__":
    run_command(__doc__, COMMANDS, default="link")
