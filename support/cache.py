"""The cache of a UMLS release: tables of a language are read once from its files, and kept as Parquet."""

import hashlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet

import configs
from support import rrf
from support.arrays import memory_map
from support.files import atomic_directory, check_output, read_bytes, write_atomic
from support.forms import find_misfit
from support.relations import INVERSE, PAPER_RELATIONS, rel_of, split_key, triple_key
from support.sources import FORM, Selection
from support.umls import Tables, read_tables

FILES = {  # of the tables of a language: how their beginning is recognised, as files.check_output has it
    "source.json": rb'\{\s*"source"', "concepts.parquet": b"PAR1", "terms.parquet": None, "relations.parquet": None,
}  # fmt: skip


class Release(NamedTuple):
    """The tables of a release, and what is known of them."""

    tables: list[Tables]  # of each language
    skipped: dict  # {file: malformed rows left out, and those missing of what MRFILES.RRF states}
    nci: dict  # {file: rows left out, of concepts with NCI Metathesaurus ids}
    unsaved: list[Tables]  # those that were not in the cache
    source: dict  # what they were made from, for save_tables


def read_release(umls, langs, s, cache, log):
    """The Release of a folder or zip. Each RRF file is read once, and not at all if the cache holds its outcome.

    Args: s: a configs.Data. cache: the folder of tables. log: prints a line.
    """
    rrf.check_files(umls, "MRSTY", "MRCONSO", "MRREL")
    semgroups = Path(s.semgroups or Path(configs.__file__).with_name("SemGroups.txt"))
    source, found, skipped, nci = describe_source(umls, s, semgroups), {}, Counter(), Counter()
    for lang in langs:
        place = folder_of_tables(cache, lang, s.relations)
        if cached := load_tables(place, lang, source):
            found[lang], skipped, nci = cached[0], skipped | cached[1], nci | cached[2]
            log(f"{lang}: tables of {place} (made from the same files)")
    missing = [lang for lang in langs if lang not in found]
    for lang in missing:
        check_output(folder_of_tables(cache, lang, s.relations), FILES)
    if missing:
        counters = Counter() if s.skip_bad_rows else None, Counter()
        selection = Selection(s.sources, s.exclude_sources)
        for tables in read_tables(umls, missing, s, semgroups, selection, counters, log):
            found[tables.lang] = tables
        skipped, nci = skipped | (counters[0] or Counter()), nci | counters[1]
    tables, unsaved = ([found[lang] for lang in these] for these in (langs, missing))
    return Release(tables, dict(skipped), dict(nci), unsaved, source)


def folder_of_tables(cache, lang, relations):
    """Where the tables of a language are kept; those with finer relations (the setting) are apart."""
    return cache / (lang if relations == "paper" else f"{lang}-{relations}")


def describe_source(umls, s, semgroups):
    """What the tables of a release depend on: if it is the same again, the cache holds."""
    parts = [part for name in (*rrf.TABLE_FILES, "MRFILES") for part in rrf.find_rrf(umls, name)]
    disk_files = {str(part.disk_file.resolve()): part.disk_file.stat() for part in parts}
    return {
        "version": 5, "folder": str(Path(umls).resolve()),
        "files": {f"{part.folder}/{part.name}": [part.n_bytes, part.crc] for part in parts},
        "disk_files": {name: [f.st_size, f.st_mtime_ns] for name, f in disk_files.items()},
        "semantic_types": s.semantic_types, "skip_bad_rows": s.skip_bad_rows,
        "sources": sorted({*s.sources}), "exclude_sources": sorted({*s.exclude_sources}),
        "semgroups": hashlib.sha256(semgroups.read_bytes() if semgroups.is_file() else b"").hexdigest(),
        **({} if s.relations == "paper" else {"relations": s.relations, "n_rela": s.n_rela}),
    }  # fmt: skip


def save_tables(folder, tables, source, skipped, nci):
    """Writes Tables as three Parquet files, with what they were made from."""
    h, r, t = split_key(tables.keys)
    columns = {
        "concepts": {"cui": tables.cui, "group": tables.group, "terms": np.diff(tables.first_term)},
        "terms": {"term": tables.terms},
        "relations": {"head": h, "relation": r, "tail": t},
    }
    options = {"compression": "lz4", "use_dictionary": False, "write_page_checksum": True}
    with atomic_directory(folder, FILES) as new:
        for name, table in columns.items():
            path, table = new / f"{name}.parquet", pa.table(table)
            write_atomic(path, lambda f, table=table: parquet.write_table(table, f, **options))
        about = {"source": source, "groups": tables.groups, "skipped": skipped, "nci": nci, "sources": tables.sources}
        about |= {"relations": tables.relations, "inverse": tables.inverse}
        write_atomic(new / "source.json", lambda f: f.write(json.dumps(about, indent=1).encode()))


def load_tables(folder, lang, source=None):
    """(Tables, skipped, nci) of save_tables; None if not there, damaged, or made from another source."""
    try:
        about = json.loads(read_bytes(Path(folder, "source.json")).decode())
        if source not in (None, about["source"]):
            return None
        concepts, terms, relations = (
            parquet.read_table(memory_map(folder / f"{name}.parquet"), page_checksum_verification=True)
            for name in ("concepts", "terms", "relations")
        )
        first_term = np.concatenate([[0], np.cumsum(concepts["terms"].to_numpy())])
        h, r, t = (relations[c].to_numpy() for c in ("head", "relation", "tail"))
        of_before = {"relations": [*PAPER_RELATIONS], "inverse": [*INVERSE]}
        names, inverse = (about.get(key, seven) for key, seven in of_before.items())
        tables = Tables(
            lang, concepts["cui"].to_numpy(), concepts["group"].to_numpy(), about["groups"], first_term,
            terms["term"].combine_chunks(), triple_key(h, r, t), about.get("sources", {}), tuple(names), tuple(inverse),
        )  # fmt: skip
        consistent = first_term[-1] == len(tables.terms) and len(tables.groups) > tables.group.max()
        misfit = find_misfit([tables.sources, names, inverse], (FORM, [str], [int]))
        consistent &= not misfit and {*map(rel_of, names)} <= {*names}
        consistent &= max(*inverse, r.max(initial=0)) < len(names) == len(inverse)
        return (tables, Counter(about["skipped"]), Counter(about["nci"])) if consistent else None
    except (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException):
        return None


@contextmanager
def saving_tables(release, cache):
    """Saves the tables of a release that are not in its cache, in a thread of its own while the block runs."""
    with ThreadPoolExecutor(1) as saver:
        about = release.source, release.skipped, release.nci
        relations = release.source.get("relations", "paper")
        places = [folder_of_tables(cache, tables.lang, relations) for tables in release.unsaved]
        saving = [saver.submit(save_tables, *x, *about) for x in zip(places, release.unsaved)]
        yield
        for saved in saving:
            saved.result()
