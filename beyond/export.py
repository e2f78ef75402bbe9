"""Names and ids of concepts for other tools.

    python -m beyond.export dictionary datasets/fr --out names.tsv           its concepts, a line CUI TAB name each
    python -m beyond.export ids 2022AB --out ids.tsv                         MeSH and OMIM ids, a line id TAB CUI each

Without --out the lines go to standard output, and what is said about them to standard error.
"""

from configs import argument, setting  # isort: split

import sys
from dataclasses import dataclass
from pathlib import Path

from support import umls
from support.datasets import names_of_dataset
from support.programs import check_destination, run_command, write_output
from support.reports import print_next


@dataclass
class Dictionary:
    """Write all names of a data set's concepts, a line CUI TAB name each, for beyond.link or other tools."""

    dataset: str = argument("DATASET", "a folder that 'data.py build' wrote")
    lang: str = setting("", "only names of these languages (en,fr); default: all of the data set")
    out: str = setting("", "the file; default: standard output")


@dataclass
class Ids:
    """Write which concept each MeSH and OMIM id of a UMLS release names, a line id TAB CUI each."""

    umls: str = argument("RELEASE", "folder or zip of a UMLS release")
    out: str = setting("", "the file; default: standard output")


def write_dictionary(s):
    """Writes a line CUI TAB name for each term of a data set's concepts: those of its release, the preferred first."""
    check_destination(s.out, rb"C\d{7}\t", s.dataset, Path(s.dataset).parent / "tables")
    cuis, names = names_of_dataset(s.dataset, s.lang)
    lines, counted = map("\t".join, zip(cuis, names)), f"{len(names):,} names of {len({*cuis}):,} concepts"
    write_lines(s.out, lines, counted, "--dictionary {} < mentions.txt > links.jsonl")


def write_ids(s):
    """Writes a line id TAB CUI for each code of MeSH and OMIM in a UMLS release, as PubTator corpora write the ids."""
    check_destination(s.out, rb"id\tcui\n", s.umls)
    codes = umls.read_codes(s.umls, {"MSH": "", "OMIM": "OMIM:"})
    counted = f"{len(codes):,} pairs of an id and its concept"
    write_lines(s.out, ["id\tcui", *map("\t".join, codes)], counted, "--corpus CORPUS --ids {}")


def write_lines(out, lines, counted, arguments):
    """Writes lines as UTF-8 to a file, or to standard output if `out` is "".

    counted: how many of what, for standard error. arguments: of beyond.link, which takes the file.
    """
    write_output(out, "".join(f"{line}\n" for line in lines).encode())
    print(f"{counted} -> {out or 'standard output'}", file=sys.stderr)
    if out:
        print_next((f"python -m beyond.link CHECKPOINT {arguments}", out), file=sys.stderr)


COMMANDS = {"dictionary": (write_dictionary, Dictionary), "ids": (write_ids, Ids)}

if __name__ == "__main__":
    run_command(__doc__, COMMANDS)
