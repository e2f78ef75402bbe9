"""The paper's tables from result files (Tables 2, 3, 4, 6, 9, 10 and 11, and what encoders know), and printed tables.

A result is a scores.json of finetune.py or a knowledge-*.json of beyond.evaluate. Files of other shapes are named and
left out. The paper's rows and figures are in configs/tables.json.
"""

import itertools
import json
import re
import statistics
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import configs
from configs import UserError
from support.corpora import CORPORA, TABLE_5_NOTE
from support.files import check_output, write_atomic
from support.reports import print_next
from support.results import checked, differing_settings, finite, percent, read_records

ABLATION = re.compile(r"(.+)-(mlm|ep-lp|ep-tc|tc-lp|all)(-untrained)?")  # names of runs that belong into Table 6
KNOWLEDGE = {  # columns of the table of what encoders know: keys of the scores that beyond.evaluate writes
    "MLM loss": "mlm_loss", "EP tokens": "ep_tokens", "LP accuracy": "lp_accuracy", "LP macro F1": "lp_macro_f1",
    "TC accuracy": "tc_accuracy", "AUC, corrupted entities": "tc_auc_corrupted_entities",
    "AUC, corrupted relation": "tc_auc_corrupted_relation", "synonyms at 1": "synonyms_at_1", "at 5": "synonyms_at_5",
    "MRR": "synonyms_mrr", "MRR, [CLS]": "synonyms_mrr_cls", "MRR, spelling": "synonyms_mrr_spelling",
    "MRR, [CLS], held out": "synonyms_mrr_cls_held_out", "MRR, spelling, held out": "synonyms_mrr_spelling_held_out",
}  # fmt: skip


# ---------------------------------------------------------------- result files


class Scores(NamedTuple):
    """A scores.json of finetune.py."""

    name: str  # of the checkpoint
    language: str
    task: str
    runs: dict  # {seed: {"paper": [P, R, F1], "entity": [P, R, F1], "constant_baseline": F1}}
    signature: dict


def parse_scores(record):
    """A scores.json -> Scores. Raises: TypeError, KeyError or ValueError if it is of another shape."""
    name = Path(checked(str, checked(dict, record)["checkpoint"])).name
    name += "-untrained" if checked(bool, checked(dict, record["settings"])["untrained"]) else ""
    runs = {}
    for r in checked(list, record["runs"]):
        scores = {k: [percent(x) for x in checked(list, checked(dict, r)[k])] for k in ("paper", "entity")}
        if not all(len(x) == 3 for x in scores.values()):
            raise ValueError("not three scores")
        runs[checked(int, r["seed"])] = scores | {"constant_baseline": percent(r["constant_baseline"])}
    if len(runs) < len(record["runs"]):
        raise ValueError("a seed is in it twice")
    # Where a folder lies is not a setting; digests say whether the contents are the same.
    signature = checked(dict, record.get("signature", {}))
    signature = {k: v for k, v in signature.items() if k not in ("checkpoint", "data")}
    return Scores(name, checked(str, record["language"]), checked(str, record["task"]), runs, signature)


def read_results(folder):
    """{(language, task): {run: its scores of all seeds}} of the scores.json below a folder.

    Runs that differ only in the seed of pre-training (name-s0, name-s1 ...) are one. The same seed of the same
    checkpoint counts once, and of results with different settings the first.
    """
    found, path_of_seed, first_of = defaultdict(lambda: defaultdict(list)), {}, {}
    for path, (name, language, task, runs, signature) in read_records(folder, "scores.json", parse_scores):
        if signature:  # older files have none
            first, first_signature = first_of.setdefault((name, task), (path, signature))
            if other := sorted(differing_settings(signature, first_signature)):
                print(f"{path}: of other settings ({', '.join(other)}) than {first}, left out")
                continue
        for seed, scores in runs.items():
            if (first := path_of_seed.setdefault((name, task, seed), path)) != path:
                print(f"{path}: seed {seed} of {name} is in {first} already, left out")
                continue
            found[language, task][strip_seed_suffix(name)].append(scores)
    return found


def strip_seed_suffix(run):
    """A run's name without the seed of its pre-training, -s0, -s1 ..."""
    return re.sub(r"-s\d+(?=$|-untrained$)", "", run)


def parse_knowledge(record):
    """A knowledge-*.json -> (title of its block, name of the checkpoint, {key: score})."""
    scores = checked(dict, checked(dict, record)["scores"])
    scores = {k: (finite if k == "mlm_loss" else percent)(scores[k]) for k in KNOWLEDGE.values() if k in scores}
    if record.get("tasks") is not None:  # the head of a task that was not trained knows nothing
        trained = [checked(str, task) for task in checked(list, record["tasks"])]
        scores = {k: x for k, x in scores.items() if k.split("_")[0] in ("synonyms", *trained)}
    terms = checked(int, checked(dict, record["settings"])["terms"])
    name = Path(checked(str, record["checkpoint"])).name
    return f"{checked(str, record['data'])}, {terms:,} terms at most", name, scores


# ---------------------------------------------------------------- Markdown


def mean_and_deviation(values):
    """Mean ± standard deviation of some runs, as text."""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def format_cell(values, column, paper=None, lower_is_better=False):
    """mean_and_deviation of some runs, the best of its column bold, the second underlined; the paper's behind."""
    text = mean_and_deviation(values) if values else "–"
    ranking = sorted({statistics.mean(v) for v in column if v}, reverse=not lower_is_better)
    if values and len(ranking) > 1 and (rank := ranking.index(statistics.mean(values))) < 2:
        text = (f"**{text}**", f"<u>{text}</u>")[rank]
    return text + (f" [{paper:.2f}]" if paper is not None else "")


def knowledge_table(folder):
    """What `beyond.evaluate` found, a block for each data set, as lines of Markdown."""
    blocks = defaultdict(lambda: defaultdict(list))
    for _, (block, name, scores) in read_records(folder, "knowledge-*.json", parse_knowledge):
        blocks[block][strip_seed_suffix(name)].append(scores)
    lines = ["# What encoders know of held-out pairs, and of synonyms", ""]
    lines += ["In per cent but the loss; mean ± deviation over the seeds; **best**, <u>second</u>.", ""]
    lines += ["–: not run, or a task that the encoder was not trained on.", ""]
    for block, runs in sorted(blocks.items()):
        lines += [f"| {block} | " + " | ".join(KNOWLEDGE) + " |", "|---|" + "---:|" * len(KNOWLEDGE)]
        columns = {k: {run: [r[k] for r in x if k in r] for run, x in runs.items()} for k in KNOWLEDGE.values()}
        for run in sorted(runs):
            cells = [format_cell(x[run], x.values(), lower_is_better=k == "mlm_loss") for k, x in columns.items()]
            lines.append(f"| {run} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def score_table(part, found, metric, number, with_paper):
    """One block of a table as lines of Markdown: the paper's rows and corpora, then the others with results.

    Args: part: of configs/tables.json. found: of read_results. metric: paper or entity. number: of the table.
    """
    language, columns = part["language"], part["columns"]
    corpora = [*part["corpora"], *(c for lang, c in found if lang == language and c not in part["corpora"])]
    rows = {row["model"]: row for row in part["rows"]}
    named = {name for row in part["rows"] for name in row["runs"]}
    others = sorted({n for c in corpora for n in found.get((language, c), ())} - named)
    if number != "others":  # which has all there is
        others = [n for n in others if bool(ABLATION.fullmatch(n)) == (number == "6")]
    rows |= {n: {"runs": [n], "paper": []} for n in others}
    grid = {}
    for name, row in rows.items():
        for c in corpora:
            runs = [r for n in row["runs"] for r in found.get((language, c), {}).get(n, ())]
            for k in columns:
                grid[name, c, k] = [r[metric]["P R F1".split().index(k)] for r in runs]
    heads = [f"{c} {k}" if len(columns) > 1 else c for c in corpora for k in columns]
    lines = ["| model | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for name, row in rows.items():
        cells = []
        for i, c in enumerate(corpora):
            for j, k in enumerate(columns):
                paper = row["paper"][i][j] if with_paper and i < len(row["paper"]) else None
                cells.append(format_cell(grid[name, c, k], [grid[n, c, k] for n in rows], paper))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if metric == "paper":
        lines.append(baseline_row(found, language, corpora, columns))
    return [*lines, ""]


def baseline_row(found, language, corpora, columns):
    """The F1 of a tagger that always gives the same label."""
    cells = []
    for c in corpora:
        baselines = {r["constant_baseline"] for runs in found.get((language, c), {}).values() for r in runs}
        cells += [f"{min(baselines):.2f}" if baselines and k == "F1" else "" for k in columns]
    return "| *constant baseline* | " + " | ".join(cells) + " |"


def write_tables(folder, with_paper):
    """Writes all results below a folder as tables in Markdown into it, and prints what they hold. Raises: UserError."""
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; --results names the one that finetune.py writes to")
    found, out = read_results(folder), {"table-knowledge.md": knowledge_table(folder)}
    layouts = json.loads(Path(configs.__file__).with_name("tables.json").read_text())
    shown = {part["language"] for layout in layouts.values() for part in layout["parts"]}
    others = sorted({language for language, _ in found} - shown)
    parts = [{"language": lang, "corpora": [], "columns": ["P", "R", "F1"], "rows": []} for lang in others]
    layouts["others"] = {"title": "Corpora that are in no other table", "parts": parts}
    titles = {
        "paper": "The paper's metric, averaged over sequences, in per cent."
        + (" In brackets: the paper's figures." if with_paper else ""),
        "entity": "Strict entity-level micro scores (parts of speech: token accuracy), in per cent.",
    }
    for number, layout in layouts.items():
        lines = [f"# Table {number}: {layout['title']}" if number.isdecimal() else f"# {layout['title']}", ""]
        for metric, title in titles.items():
            lines += [title + " Mean ± deviation over the seeds; **best**, <u>second</u>; –: not run.", ""]
            for part in layout["parts"]:
                lines += score_table(part, found, metric, number, with_paper and metric == "paper")
        out[f"table-{number}.md"] = lines
    out = {name: (lines, shown) for name, lines in out.items() if (shown := tables_with_results(lines))}
    for name in out:
        check_output(Path(folder, name), rb"# (Table \d|Corpora that are in no|What encoders know)")
    for name, (lines, shown) in out.items():
        path = Path(folder, name)
        write_atomic(path, lambda f, lines=lines: f.write("\n".join(lines).encode()))
        print(f"\n{path}: {lines[0].removeprefix('# ')}")
        for rows in shown:
            print_rows(rows)
    if not out:
        print(f"{folder}: no results in it yet; finetune.py CHECKPOINT --corpus CORPUS --data FOLDER writes some")


def tables_with_results(lines):
    """The tables in lines of Markdown, each a list of rows of cells, without rows and columns that hold no result."""
    tables, caption = [], ""
    for is_table, block in itertools.groupby(lines, key=lambda line: line.startswith("|")):
        block = list(block)
        if not is_table:
            caption = next((line.split(".")[0] for line in block if line and not line.startswith("#")), caption)
            continue
        head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in block)
        rows = [row for row in rows if any(map(is_result, row[1:]))]
        columns = [0, *(i for i in range(1, len(head)) if any(is_result(row[i]) for row in rows))]
        if any(not row[0].startswith("*") for row in rows):  # not the baseline alone
            head[0] = caption if head[0] == "model" else f"{head[0]}: {caption}"
            tables.append([[row[i] for i in columns] for row in (head, *rows)])
    return tables


def is_result(cell):
    return cell not in ("", "–") and not cell.startswith("– [")


def print_rows(rows, most=120):
    """Prints rows of cells in aligned columns; columns that do not fit into `most` characters come below the others."""
    rows = [[re.sub(r"\*|</?u>", "", cell) for cell in row] for row in rows]
    print(f"\n{rows[0][0]}")
    width = [max(len(row[i]) for row in rows[1:] + rows[:1] * (i > 0)) + 2 for i in range(len(rows[0]))]
    first = 1
    while first < len(width):
        last = first + 1
        while last < len(width) and width[0] + sum(width[first : last + 1]) <= most:
            last += 1
        for i, row in enumerate(rows):
            name = "" if i == 0 else row[0]
            print(f"  {name:<{width[0] - 2}}" + "".join(f"{row[k]:>{width[k]}}" for k in range(first, last)))
        first = last


# ---------------------------------------------------------------- the corpora, and the scores of a run


def print_corpora():
    """Prints a line of what and where, and a line of what the folder must hold, for each corpus."""
    row = "{:<16}{:<16}{:<16}{:<36}{}"
    print(row.format("--corpus", "in the paper", "language", "Table 5: train, dev, test, classes", "licence"))
    for name, c in CORPORA.items():
        print(row.format(name, c.title, c.language, c.table5 or "-", c.licence or "-"))
        print(f"    --data: a folder that holds {c.holds}")
    print(TABLE_5_NOTE)
    print_next(("python -m beyond.check --corpus CORPUS --data FOLDER",))


def print_scores(runs, constant, unit, pos):
    """Prints the scores of all seeds of a results folder as a table: mean ± deviation, interval, baseline, each type.

    Args:
        runs: of a scores.json. constant: the label of the baseline. unit: what the intervals resample. pos: whether
        labels are parts of speech.
    """

    def row(name, threes, *rest):
        name = name if len(name) <= 30 else name[:29] + "…"
        cells = threes and [mean_and_deviation([three[i] for three in threes]) for i in range(3)]
        line = f"{name:<30}" + "".join(f"{cell:>17}" for cell in cells or ("P", "R", "F1"))
        print((line + "{:>19}{:>11}".format(*rest)).rstrip())

    seeds = f"{len(runs)} seeds" if len(runs) > 1 else f"seed {runs[0]['seed']}"
    print()
    row(f"{seeds}, in per cent", [], "95 % interval", "constant")
    titles = {"paper": "paper, mean over sequences", "entity": "tokens" if pos else "entities, strict"}
    for (kind, title), baseline in zip(titles.items(), ("constant_baseline", "constant_baseline_entity")):
        low, high = (statistics.mean(r["interval"][kind][i] for r in runs) for i in range(2))
        row(title, [r[kind] for r in runs], f"[{low:.2f}, {high:.2f}]", f"{runs[0][baseline]:.2f}")
    row("mean over " + ("labels" if pos else "types"), [r["macro"] for r in runs], "", "")
    print(f"{'of each ' + ('label' if pos else 'type'):<100}{'gold':>11}")
    n_gold = {kind: n for r in runs for kind, (*_, n) in r["labels"].items()}
    for kind in sorted(n_gold):
        row(f"  {kind}", [r["labels"][kind] for r in runs if kind in r["labels"]], "", f"{n_gold[kind]:,}")
    of_seeds = ", mean of those of the seeds" if len(runs) > 1 else ""
    print(f"95 % interval: of the F1, by bootstrap with {unit} resampled{of_seeds}")
    print(f"constant: the F1 of always {constant}")


def print_advice(predicted_labels, scores, s, dim):
    """Says which seeds predict one label alone, or find no entity, and why that is likely.

    Args: predicted_labels: {seed: a set}. scores: {seed: its scores}. s: a configs.Finetune. dim: of the encoder.
    """
    single_label = {seed: [*labels][0] for seed, labels in predicted_labels.items() if len(labels) == 1}
    n_gold = {seed: sum(n for *_, n in scores[seed]["labels"].values()) for seed in predicted_labels}
    no_entity = [k for k in predicted_labels if k not in single_label and n_gold[k] and scores[k]["entity"][2] == 0]
    if not single_label and not no_entity:
        return
    print()
    if single_label:
        labels = " or ".join(sorted({*single_label.values()}))
        print(f"warning: {name_seeds(single_label)} predicted {labels} alone, for every word.")
    if no_entity:
        print(f"warning: {name_seeds(no_entity)} found none of the entities of the test split.")
    if dim < 768 and s.lr < 1e-4:
        why = f"the learning rate {s.lr:g} suits encoders of dim 768, and this one has {dim}"
        advice = "--lr 5e-4 or more"
    elif s.lr > 1e-3:
        why, advice = f"a learning rate of {s.lr:g} is too high for this corpus", "--lr 5e-4"
    else:
        why = f"{s.epochs} pass at a learning rate of {s.lr:g} teaches too little here"
        advice = "a higher --lr or more --epochs"
    print(f"  The likely reason: {why}.\n  Try {advice}, with another --out.")


def name_seeds(seeds):
    """seed 1, or seeds 0, 2."""
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))
