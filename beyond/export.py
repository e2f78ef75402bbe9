"""Names and ids of concepts, and the graph, for other tools.

    python -m beyond.export dictionary datasets/fr --out names.tsv           its concepts, a line CUI TAB name each
    python -m beyond.export graph datasets/fr --out graph.tsv                its triples, CUI TAB REL TAB CUI each
    python -m beyond.export ids 2022AB --out ids.tsv                         MeSH and OMIM ids, id TAB CUI each
    python -m beyond.export ids 2022AB --sources SNOMEDCT_US --out ids.tsv   those of another source

Without --out the lines go to standard output, and a summary to standard error.
"""

from configs import argument, setting  # isort: split

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from support.codes import id_of_code, read_codes
from support.datasets import choose_languages, names_of_dataset, read_dataset_tables
from support.files import progress
from support.programs import check_destination, run_command, write_chunks
from support.relations import RELS, sort_unique, split_key, triple_key
from support.reports import print_next

CHUNK = 1 << 18  # triples that are lines in memory at a time


@dataclass
class Dictionary:
    """Write all names of a data set's concepts, a line CUI TAB name each, for beyond.link or other tools."""

    dataset: str = argument("DATASET", "a folder that 'data.py build' wrote")
    lang: str = setting("", "only names of these languages (en,fr); default: all of the data set")
    out: str = setting("", "the file; default: standard output")


@dataclass
class Graph:
    """Write the graph of a data set, a line CUI TAB REL TAB CUI for each triple (h, r, t) of its release, each once."""

    dataset: str = argument("DATASET", "a folder that 'data.py build' wrote")
    names: bool = setting(False, "preferred terms instead of CUIs, in the first language that has one")
    lang: str = setting("", "only triples of these languages (en,fr); default: all of the data set")
    out: str = setting("", "the file; default: standard output")


@dataclass
class Ids:
    """Write the ids that sources (MeSH and OMIM) give the concepts of a UMLS release, a line id TAB CUI each.

    An id is the CODE of MRCONSO. With several sources it is SAB:CODE, unless the code itself begins with its source
    (GO:0005634). Ids of MeSH never get a prefix, as corpora write them.
    """

    umls: str = argument("RELEASE", "folder or zip of a UMLS release")
    sources: list[str] = setting([], "names of sources (SNOMEDCT_US RXNORM); default: MSH and OMIM, if they are there")
    out: str = setting("", "the file; default: standard output")


def write_dictionary(s):
    """Writes a line CUI TAB name for each term of a data set's concepts: those of its release, the preferred first."""
    check_destination(s.out, rb"C\d{7}\t", s.dataset, Path(s.dataset).parent / "tables")
    cuis, names = names_of_dataset(s.dataset, s.lang)
    lines, counted = map("\t".join, zip(cuis, names)), f"{len(names):,} names of {len({*cuis}):,} concepts"
    write_lines(s.out, [lines], counted, "--dictionary {} < mentions.txt > links.jsonl")


def write_graph(s):
    """Writes a line h TAB REL TAB t for each triple of a data set's release: its CUIs, or their preferred terms."""
    form = rf"[^\t\n]+\t({'|'.join(RELS)}|SY)(:[^\t\n]+)?\t[^\t\n]+\n".encode()
    check_destination(s.out, form, s.dataset, Path(s.dataset).parent / "tables")
    tables = [read_dataset_tables(s.dataset, lang) for lang in choose_languages(s.dataset, s.lang)]
    keys = [triple_key(x.cui[h], r, x.cui[t]) for x in tables for h, r, t in [split_key(x.keys)]]
    keys = sort_unique(np.concatenate(keys))
    cuis, relations = np.unique(np.concatenate([x.cui for x in tables])), tables[0].relations
    texts = np.array([f"C{cui:07d}" for cui in cuis.tolist()], object)
    for x in reversed(tables) if s.names else ():
        names = x.terms.take(pa.array(x.first_term[:-1])).to_pylist()
        texts[np.searchsorted(cuis, x.cui)] = [" ".join(name.split()) for name in names]

    def chunks():
        for offset in progress("chunks of triples", range(0, len(keys), CHUNK)):
            h, r, t = split_key(keys[offset : offset + CHUNK])
            h, t = (texts[np.searchsorted(cuis, x)].tolist() for x in (h, t))
            yield map("\t".join, zip(h, [relations[x] for x in r.tolist()], t))

    write_lines(s.out, chunks(), f"{len(keys):,} triples of {len(cuis):,} concepts")


def write_ids(s):
    """Writes a line id TAB CUI for each code of some sources in a UMLS release, as PubTator corpora write the ids."""
    check_destination(s.out, rb"id\tcui\n", s.umls)
    sources = s.sources or ["MSH", "OMIM"]
    codes = read_codes(s.umls, sources, all_needed=bool(s.sources))
    is_alone = {*sources} if len({*sources}) == 1 else {"MSH"}
    ids = [code if sab in is_alone else id_of_code(sab, code) for sab, code, _ in codes]
    pairs = sorted(zip(ids, (cui for *_, cui in codes)))
    counted = f"{len(pairs):,} pairs of an id and its concept"
    write_lines(s.out, [["id\tcui", *map("\t".join, pairs)]], counted, "--corpus CORPUS --ids {}")


def write_lines(out, chunks, counted, arguments=""):
    """Writes lines as UTF-8 to a file, or to standard output if `out` is "".

    chunks: iterables of lines, one of which is in memory at a time. counted: how many of what, for standard error.
    arguments: of beyond.link, if it takes the file.
    """
    write_chunks(out, ("".join(f"{line}\n" for line in lines).encode() for lines in chunks))
    print(f"{counted} -> {out or 'standard output'}", file=sys.stderr)
    if out and arguments:
        print_next((f"python -m beyond.link CHECKPOINT {arguments}", out), file=sys.stderr)


COMMANDS = {"dictionary": (write_dictionary, Dictionary), "graph": (write_graph, Graph), "ids": (write_ids, Ids)}

if __name__ == "__main__":
    run_command(__doc__, COMMANDS)
