"""The end of make demo-links: French mentions with their nearest concepts, before and after synonym alignment.

python tests/demo_links.py mentions demo/links      the names that are searched, and the mentions
python tests/demo_links.py report demo/links        the table

The names are the preferred ones, one for each concept. The mentions are the other names of the held-out concepts, which
are in no pair of the training.
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data  # noqa: E402
from support import datasets  # noqa: E402

SHOWN = 5  # mentions
NEAREST = 3  # concepts of each
WIDTH = 41  # of a name


def write_mentions(folder):
    """Writes the preferred names of all concepts, and the other names of held-out ones with the concept of each.

    A mention that holds the preferred name of its concept is left out: letters alone would find it.
    """
    dataset = Path(folder, "fr")
    s = datasets.read_manifest(dataset)["settings"]
    names = [*zip(*datasets.names_of_dataset(dataset, ""))]
    preferred = dict(reversed(names))
    cuis = np.array([int(cui[1:]) for cui, _ in names])
    held_out = data.in_validation(cuis, cuis, s["seed"], s["valid_fraction"])
    mentions = [
        {"text": name, "concept": cui, "preferred": preferred[cui]}
        for (cui, name), is_held_out in zip(names, held_out)
        if is_held_out and preferred[cui] not in name
    ]
    lines = "".join(f"{cui}\t{preferred[cui]}\n" for cui in sorted(preferred))
    Path(folder, "names.tsv").write_text(lines, encoding="utf-8")
    Path(folder, "mentions.jsonl").write_text("".join(json.dumps(m) + "\n" for m in mentions))


def read_links(path):
    """{mention: its record, as beyond.link has written it}."""
    return {record["text"]: record for record in map(json.loads, path.read_text().splitlines())}


def accuracy(links):
    """The share of the mentions whose nearest concept is the right one, in per cent."""
    return f"{100 * np.mean([m['concepts'][0]['id'] == m['concept'] for m in links.values()]):.1f}"


def describe(link, concept):
    """A concept in the table: a mark if it is the right one, the similarity, and the name."""
    name = link["name"] if len(link["name"]) <= WIDTH else link["name"][: WIDTH - 1] + "…"
    return f"{'✓' if link['id'] == concept else ' '} {link['similarity']:.2f} {name}"


def report(folder):
    """Prints the table: the shortest mentions with different first words, and the accuracy of all mentions."""
    trigrams, before, after = (read_links(Path(folder, f"{name}.jsonl")) for name in ("trigrams", "before", "after"))
    shortest = {}
    for mention in sorted(before, key=lambda text: (len(text), text)):
        shortest.setdefault(mention.split()[0], mention)
    print(f"\n  {'nearest concepts before alignment':<48}  nearest concepts after it; ✓ is the right one")
    for mention in [*shortest.values()][:SHOWN]:
        print(f"\n{mention} (a name of: {before[mention]['preferred']})")
        for links in zip(*(x[mention]["concepts"][:NEAREST] for x in (before, after))):
            left, right = (describe(link, before[mention]["concept"]) for link in links)
            print(f"  {left:<48}  {right}")
    figures = f"before {accuracy(before)}, after {accuracy(after)}, by trigrams of letters {accuracy(trigrams)}"
    print(f"\naccuracy at 1 in per cent, of all {len(before)} mentions: {figures}")


if __name__ == "__main__":
    {"mentions": write_mentions, "report": report}[sys.argv[1]](sys.argv[2])
