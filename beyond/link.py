"""Entity linking: mentions, a dictionary of names, and the concepts with the nearest names, written or scored.

python -m beyond.link runs/kgi-en < mentions.txt                        the nearest concepts of each
python -m beyond.link runs/kgi-en entities.jsonl > linked.jsonl         those of a tagger's entities
python -m beyond.link runs/kgi-en entities.jsonl --groups DISO --codes SNOMEDCT_US --umls 2022AB --format tsv
python -m beyond.link runs/kgi-en --corpus NCBI-Disease --ids ids.tsv   how often the nearest is the right one
"""

from configs import DEVICES, POOLINGS, PRECISIONS, UserError, argument, setting  # isort: split

import sys
import time
from dataclasses import dataclass, fields

from beyond.dictionaries import make_dictionary, read_pairs
from beyond.embed import POOLING_HELP
from beyond.linked import LINKS, write_links
from beyond.mentions import WITH_PLACES, mentions_of_records, read_records
from beyond.nearest import choose_concepts, choose_similarity, nearest_concepts, restrict
from beyond.ranking import link_corpus
from beyond.retrieval import DATA_HELP, data_of
from beyond.tagged import check_format_destination
from support.codes import codes_of_concepts
from support.datasets import groups_of_dataset, names_of_dataset
from support.programs import run_command

LANG_HELP = "only names of these languages (en,fr); default: all of the data set"


@dataclass
class Link:
    """Link mentions to the concepts with the nearest names, or score the links of a gold standard."""

    checkpoint: str = argument("CHECKPOINT", "run folder, or folder of another checkpoint")
    mentions: str = argument(
        "MENTIONS", "a file, a mention a line, or JSON Lines of beyond.tag; default: standard input", optional=True
    )
    corpus: str = setting("", "gold standard to score: folder of PubTator, BioC, brat with ids, or E3C's XMI", "corpus")
    split: str = setting("test", "whose mentions are scored", "corpus", choices=("train", "dev", "test", "all"))
    ids: str = setting("", "file of id TAB concept lines; default: the corpus has the dictionary's ids", "corpus")
    expand_abbreviations: bool = setting(False, "read a short form as the long form its document defines", "corpus")
    train_mentions: bool = setting(False, "add the mentions of the training split to the names", "corpus")
    top: int = setting(5, "concepts that are written for each mention, at most", "links", least=1)
    min_similarity: float = setting(
        -1.0, "leave out less similar concepts, so that a mention may have none", "links", least=-1.0, most=2.0
    )
    score: str = setting(
        "cosine", "similarity: cosine of vectors, trigrams of letters, or the sum of both", "links",
        choices=("cosine", "trigrams", "sum"),
    )  # fmt: skip
    groups: list[str] = setting([], "only concepts of these semantic groups (DISO CHEM), or of --types", "links")
    types: list[str] = setting([], "only concepts of these semantic types (T047 T184), or of --groups", "links")
    codes: list[str] = setting([], "also write the concepts' codes in these sources (SNOMEDCT_US)", "links")
    format: str = setting(
        "jsonl", "JSON Lines or a table; for a tagger's entities also brat (.txt, .ann) or CoNLL columns", "links",
        choices=("jsonl", "tsv", "brat", "conll"),
    )  # fmt: skip
    dictionary: str = setting("", "file of id TAB name lines (or .gz); default: names of the data set", "dictionary")
    data: str = setting("", DATA_HELP, "dictionary")
    lang: list[str] = setting([], f"{LANG_HELP}; a --corpus takes several choices (fr en fr,en)", "dictionary")
    umls: str = setting("", "UMLS release (folder or zip), for --codes, --types and retired CUIs", "dictionary")
    keep_vectors: str = setting("", "folder that keeps the names' vectors; the next run reads them", "dictionary")
    pooling: str = setting("", f"{POOLING_HELP}, or for a --corpus both", "model", choices=POOLINGS)
    precision: str = setting("auto", "number format of the matrix products", "model", choices=PRECISIONS)
    device: str = setting("auto", "where the names are embedded; the search runs on the CPU", "model", choices=DEVICES)
    out: str = setting(
        "", "file of links, for brat a folder [standard output]; for a --corpus the results folder [results]", "output"
    )


def link(s):
    """Links mentions to the concepts of a dictionary: scores those of a corpus, or writes the links of others."""
    check_settings(s)
    folder = "" if s.dictionary else data_of(s, s.checkpoint)

    def names_in(lang):
        """(ids, names) of a choice of languages."""
        return read_pairs(s.dictionary, "id TAB name") if s.dictionary else names_of_dataset(folder, lang)

    if s.corpus:
        link_corpus(s, {lang: make_dictionary(*names_in(lang)) for lang in s.lang or [""]})
    else:
        lang = "".join(s.lang)
        link_mentions(s, *names_in(lang), {} if s.dictionary else groups_of_dataset(folder, lang))


def check_settings(s):
    """Raises UserError for settings that exclude each other, or a place that cannot be written to."""
    if s.dictionary and (s.data or s.lang):
        raise UserError("--dictionary and a data set (--data, --lang): give one of them")
    if s.corpus and s.mentions:
        raise UserError(f"{s.mentions} and --corpus {s.corpus}: give one of them")
    group = "links" if s.corpus else "corpus"
    default = type(s)(s.checkpoint)
    of_group = [f.name for f in fields(s) if f.metadata.get("group") == group]
    if given := [name for name in of_group if getattr(s, name) != getattr(default, name)]:
        fault = "mentions of one's own, and those of a --corpus are scored" if s.corpus else ""
        raise UserError(f"--{given[0]} is for {fault or 'the mentions of a --corpus, and there is none'}")
    if s.groups and s.dictionary:
        raise UserError(f"--groups: {s.dictionary} does not say them; give a data set, or --types and --umls")
    if (s.types or s.codes) and not s.umls:
        raise UserError(f"--{'types' if s.types else 'codes'} are read from a release; give it with --umls")
    if s.codes and s.format in WITH_PLACES:
        raise UserError(f"--codes: {s.format} has no place for them; give --format jsonl or tsv")
    if s.umls and not (s.types or s.codes or s.corpus):
        raise UserError(f"--umls {s.umls} is for --codes, --types or a --corpus; give one of them")
    if s.score == "trigrams" and (s.pooling or s.keep_vectors):
        unused = "pooling" if s.pooling else "keep_vectors"
        raise UserError(f"--{unused} is for vectors, and --score trigrams has none; leave it out, or give --score sum")
    if not s.corpus:
        check_format_destination(s.format, s.out, LINKS, s.mentions or 0, *filter(None, (s.dictionary, s.umls)))
    if len(s.lang) > 1 and not s.corpus:
        choices = " ".join(s.lang)
        raise UserError(
            f"--lang {choices}: several choices are for a --corpus; give one, such as fr,en, after MENTIONS"
        )


def link_mentions(s, ids, names, group_of):
    """Writes the nearest concepts of the mentions of a file.

    Args: ids, names: as make_dictionary takes them, a concept's preferred name first. group_of: {id: its semantic
        group}, {} where none is known.
    """
    began, records = time.monotonic(), read_records(s.mentions, s.format)
    mentions, preferred = mentions_of_records(records), dict(zip(reversed(ids), reversed(names)))
    dictionary, queries = make_dictionary(ids, names), [*dict.fromkeys(text for _, text in mentions if text)]
    chosen, index = restrict(dictionary, choose_concepts(s, dictionary, group_of))
    codes, nearest = codes_of_concepts(s.umls, s.codes) if s.codes else {}, ()
    if s.codes and codes.keys().isdisjoint(chosen.ids):
        raise UserError(f"--codes: no id of the dictionary, such as {chosen.ids[0]}, has a code in {s.umls}")
    if queries:
        similarities = choose_similarity(s, queries, dictionary, chosen, index)
        nearest = nearest_concepts(chosen, len(queries), similarities, s.top)

    def describe(concept, name, similarity):
        """What is written of a link."""
        i = chosen.ids[concept]
        link = {"id": i, "name": preferred[i], "matched": chosen.names[name], "group": group_of.get(i)}
        of_codes = {"codes": codes.get(i, {})} if s.codes else {}
        return link | {"similarity": round(similarity, 4)} | of_codes

    found = {"": ([], 0)} | dict(zip(queries, nearest))
    for mention, text in mentions:
        links, tied = found[text]
        concepts = [link for link in (describe(*x) for x in links) if link["similarity"] >= s.min_similarity]
        mention |= {"concepts": concepts, "tied": tied if concepts else 0}
    write_links(s, records)
    print(
        f"{len([text for _, text in mentions if text]):,} mentions, {len(queries):,} of them distinct; "
        f"{len(chosen.ids):,} concepts with {len(chosen.names):,} names ({time.monotonic() - began:.0f} s)",
        file=sys.stderr,
    )


COMMANDS = {"link": (link, Link)}

if __name__ == "__main__":
    run_command(__doc__, COMMANDS, default="link")
