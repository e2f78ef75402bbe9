"""The paper's tables from result files (Tables 2, 3, 4, 6, 9, 10 and 11, and what encoders know), and printed tables.

A result is a scores.json of finetune.py or a knowledge-*.json of beyond.evaluate. Files of other shapes are named and
left out. The paper's rows and figures are in configs/tables.json.
"""

import json
import re
import statistics
from collections import defaultdict
from pathlib import Path

import configs
from configs import UserError
from support import hub
from support.corpora import CORPORA, TABLE_5_NOTE
from support.files import check_output, write_atomic
from support.forms import find_misfit
from support.labels import count_entities
from support.reports import print_next
from support.results import SCORES, differing_settings, read_records
from support.texts import replace_surrogates
from support.windows import count_split_entities

ABLATION = re.compile(r"(.+)-(mlm|ep-lp|ep-tc|tc-lp|all)(-untrained)?")  # names of runs that belong into Table 6
KNOWLEDGE = {  # columns of the table of what encoders know: keys of the scores that beyond.evaluate writes
    "MLM loss": "mlm_loss", "EP tokens": "ep_tokens", "LP accuracy": "lp_accuracy",
    "LP accuracy, REL": "lp_rel_accuracy", "LP macro F1": "lp_macro_f1", "TC accuracy": "tc_accuracy",
    "AUC, corrupted entities": "tc_auc_corrupted_entities",
    "AUC, corrupted relation": "tc_auc_corrupted_relation", "synonyms at 1": "synonyms_at_1", "at 5": "synonyms_at_5",
    "MRR": "synonyms_mrr", "MRR, [CLS]": "synonyms_mrr_cls", "MRR, spelling": "synonyms_mrr_spelling",
    "MRR, [CLS], held out": "synonyms_mrr_cls_held_out", "MRR, spelling, held out": "synonyms_mrr_spelling_held_out",
}  # fmt: skip


KNOWLEDGE_HEAD = (
    "# What encoders know of held-out pairs, and of synonyms",
    "In per cent but the loss; mean ± deviation over the seeds; **best**, <u>second</u>.\n\n"
    "–: not run, or a task that the encoder was not trained on. LP accuracy, REL: any relation of the right REL is "
    "correct, where some are finer. LP macro F1: over the relations with 20 held-out targets or more.",
)


def score_fault(scores):
    """What is wrong with the scores of a knowledge-*.json, all but the loss in per cent; "" if nothing."""
    if misfit := find_misfit(scores, {str: float}, "scores"):
        return misfit
    shown = {*KNOWLEDGE.values()} - {"mlm_loss"}
    above = [key for key, x in scores.items() if key.removesuffix("_majority") in shown and x > 100 + 1e-6]
    return f"has {above[0]} = {scores[above[0]]}" if above else ""


KNOWLEDGE_FILE = {  # the form of a knowledge-*.json, as find_misfit has it
    "checkpoint": str, "data": str, "settings": {"terms": int, str: None}, "scores": score_fault, str: None,
}  # fmt: skip


# ---------------------------------------------------------------- result files


def read_results(folder):
    """{(language, task): {run: its scores of all seeds}} of the scores.json below a folder.

    Runs that differ only in the seed of pre-training (name-s0, name-s1 ...) are one. The same seed of the same
    checkpoint counts once, and of results with different settings the first.
    """
    found, path_of_seed, first_of = defaultdict(lambda: defaultdict(list)), {}, {}
    for path, record in read_records(folder, "scores.json", SCORES):
        name, language, task = (replace_surrogates(record[key]) for key in ("checkpoint", "language", "task"))
        name = Path(name).name + "-untrained" * record["settings"]["untrained"]
        if isinstance(signature := record.get("signature"), dict):  # older files have none
            # Where a folder lies is not a setting; digests say whether the contents are the same.
            signature = {k: v for k, v in signature.items() if k not in ("checkpoint", "data")}
            first, first_signature = first_of.setdefault((name, task), (path, signature))
            if other := sorted(differing_settings(signature, first_signature)):
                print(f"{path}: of other settings ({', '.join(other)}) than {first}, left out")
                continue
        for scores in record["runs"]:
            key = name, task, scores["seed"]
            if key in path_of_seed:
                print(f"{path}: seed {scores['seed']} of {name} is in {path_of_seed[key]} already, left out")
                continue
            path_of_seed[key] = path
            found[language, task][strip_seed_suffix(name)].append(scores)
    return found


def strip_seed_suffix(run):
    """A run's name without the seed of its pre-training, -s0, -s1 ..."""
    return re.sub(r"-s\d+(?=$|-untrained$)", "", run)


# ---------------------------------------------------------------- tables, each a list of rows of cells


def mean_and_deviation(values):
    """Mean ± standard deviation of some runs, as text."""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def format_column(values, paper, lower_is_better=False):
    """{row: its cell in Markdown} of a column: mean_and_deviation, the best bold, the second underlined.

    Args: values: {row: those of its runs}. paper: {row: the paper's figure, shown behind}.
    """
    means = {row: statistics.mean(x) for row, x in values.items() if x}
    ranking = sorted({*means.values()}, reverse=not lower_is_better)
    cells = {row: mean_and_deviation(x) if x else "–" for row, x in values.items()}
    for row, mean in means.items() if len(ranking) > 1 else ():
        cells[row] = {ranking[0]: f"**{cells[row]}**", ranking[1]: f"<u>{cells[row]}</u>"}.get(mean, cells[row])
    return {row: cell + (f" [{paper[row]:.2f}]" if row in paper else "") for row, cell in cells.items()}


def join_columns(name, columns):
    """A table of columns, {title: {row: cell}}; `name` is over the names of the rows."""
    names = next(iter(columns.values()), {})
    return [[name, *columns], *([row, *(cells[row] for cells in columns.values())] for row in names)]


def knowledge_tables(folder):
    """The scores that `beyond.evaluate` wrote below a folder, a table for each data set."""
    found, tables = defaultdict(lambda: defaultdict(list)), []
    for _, record in read_records(folder, "knowledge-*.json", KNOWLEDGE_FILE):
        checkpoint, data = replace_surrogates(record["checkpoint"]), replace_surrogates(record["data"])
        scores, tasks = record["scores"], record.get("tasks")
        if isinstance(tasks, list):  # the head of a task that was not trained knows nothing
            scores = {key: x for key, x in scores.items() if key.split("_")[0] in ("synonyms", *tasks)}
        name = f"{data}, {record['settings']['terms']:,} terms at most"
        found[name][strip_seed_suffix(Path(checkpoint).name)].append(scores)
    for name, runs in sorted(found.items()):
        columns, every = {}, [pair for seeds in runs.values() for scores in seeds for pair in scores.items()]
        majority = {key.removesuffix("_majority"): f"{x:.2f}" for key, x in every if key.endswith("_majority")}
        for title, key in KNOWLEDGE.items():
            values = {run: [scores[key] for scores in runs[run] if key in scores] for run in sorted(runs)}
            columns[title] = format_column(values, {}, lower_is_better=key == "mlm_loss")
            columns[title] |= {"*majority baseline*": majority.get(key, "")} if majority else {}
        tables.append(join_columns(name, columns))
    return tables


def score_table(part, found, metric, number, with_paper):
    """One block of a table: the paper's rows and corpora, then the others with results, then the constant baseline.

    Args: part: of configs/tables.json. found: of read_results. metric: paper or entity. number: of the table.
    """
    language = part["language"]
    corpora = [*part["corpora"], *(c for lang, c in found if lang == language and c not in part["corpora"])]
    rows = {row["model"]: row for row in part["rows"]}
    named = {name for row in part["rows"] for name in row["runs"]}
    others = sorted({n for c in corpora for n in found.get((language, c), ())} - named)
    if number != "others":  # which has all there is
        others = [n for n in others if bool(ABLATION.fullmatch(n)) == (number == "6")]
    rows |= {n: {"runs": [n], "paper": []} for n in others}
    columns = {}
    for i, corpus in enumerate(corpora):
        runs = found.get((language, corpus), {})
        baselines = {r["constant_baseline"] for seeds in runs.values() for r in seeds}
        for j, score in enumerate(part["columns"]):
            k = ("P", "R", "F1").index(score)
            values = {name: [r[metric][k] for n in row["runs"] for r in runs.get(n, ())] for name, row in rows.items()}
            paper = {name: row["paper"][i][j] for name, row in rows.items() if with_paper and i < len(row["paper"])}
            column = format_column(values, paper)
            if metric == "paper":  # the F1 of a tagger that always gives the same label
                column["*constant baseline*"] = f"{min(baselines):.2f}" if baselines and score == "F1" else ""
            columns[f"{corpus} {score}" if len(part["columns"]) > 1 else corpus] = column
    return join_columns("model", columns)


# ---------------------------------------------------------------- pages of tables, written and printed


def write_tables(folder, with_paper):
    """Writes all results below a folder as tables in Markdown into it, and prints what they hold. Raises: UserError."""
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; --results names the one that finetune.py writes to")
    found, layouts = read_results(folder), json.loads(Path(configs.__file__).with_name("tables.json").read_text())
    in_paper = {part["language"] for layout in layouts.values() for part in layout["parts"]}
    others = sorted({language for language, _ in found} - in_paper)
    parts = [{"language": lang, "corpora": [], "columns": ["P", "R", "F1"], "rows": []} for lang in others]
    layouts["others"] = {"title": "Corpora that are in no other table", "parts": parts}
    brackets = " In brackets: the paper's figures." if with_paper else ""
    captions = {
        "paper": "The paper's metric, averaged over sequences, in per cent." + brackets,
        "entity": "Strict entity-level micro scores (parts of speech: token accuracy), in per cent.",
    }
    pages = {"knowledge": [*KNOWLEDGE_HEAD, *knowledge_tables(folder)]}
    for number, layout in layouts.items():
        name = f"Table {number}: " if number.isdecimal() else ""
        page = pages[number] = [f"# {name}{layout['title']}"]
        for metric, caption in captions.items():
            page.append(f"{caption} Mean ± deviation over the seeds; **best**, <u>second</u>; –: not run.")
            paper = with_paper and metric == "paper"
            page += [score_table(part, found, metric, number, paper) for part in layout["parts"]]
    pages = {Path(folder, f"table-{name}.md"): page for name, page in pages.items() if tables_with_results(page)}
    for path in pages:
        check_output(path, rb"# (Table \d|Corpora that are in no|What encoders know)")
    for path, page in pages.items():
        text = "\n".join([line for block in page for line in to_markdown(block)])
        write_atomic(path, lambda f, text=text: f.write(text.encode()))
        print(f"\n{path}: {page[0].removeprefix('# ')}")
        for table in tables_with_results(page):
            print_table(table)
    if not pages:
        print(f"{folder}: no results in it yet; finetune.py CHECKPOINT --corpus CORPUS --data FOLDER writes some")


def to_markdown(block):
    """The lines of a table or a text, and an empty one."""
    if isinstance(block, str):
        return [block, ""]
    head, *rows = (f"| {' | '.join(row)} |" for row in block)
    return [head, "|---|" + "---:|" * (len(block[0]) - 1), *rows, ""]


def tables_with_results(page):
    """The tables of a page without rows and columns that hold no result, each under the sentence before it."""
    tables, caption = [], ""
    for block in page:
        if isinstance(block, str):
            caption = block.split(".")[0]
            continue
        (name, *titles), *rows = block
        rows = [row for row in rows if any(map(is_result, row[1:]))]
        columns = [0, *(i for i in range(1, len(block[0])) if any(is_result(row[i]) for row in rows))]
        if any(not row[0].startswith("*") for row in rows):  # not the baseline alone
            head = [caption if name == "model" else f"{name}: {caption}", *titles]
            tables.append([[row[i] for i in columns] for row in (head, *rows)])
    return tables


def is_result(cell):
    return cell not in ("", "–") and not cell.startswith("– [")


def print_table(table):
    """Prints a table in aligned columns; columns that do not fit into 120 characters come below the others."""
    table = [[re.sub(r"\*|</?u>", "", cell) for cell in row] for row in table]
    print(f"\n{table[0][0]}")
    width = [max(len(row[i]) for row in table[1:] + table[:1] * (i > 0)) + 2 for i in range(len(table[0]))]
    offset = 1
    while offset < len(width):
        end = offset + 1
        while end < len(width) and width[0] + sum(width[offset : end + 1]) <= 120:
            end += 1
        for name, row in zip(["", *(row[0] for row in table[1:])], table):
            cells = "".join(f"{row[k]:>{width[k]}}" for k in range(offset, end))
            if cells.strip():
                print(f"  {name:<{width[0] - 2}}" + cells.rstrip())
        offset = end


# ---------------------------------------------------------------- the corpora, and the scores of a run


def print_corpora():
    """Prints a line of what and where, and a line of what the folder must hold, for each corpus."""
    row = "{:<16}{:<16}{:<16}{:<36}{}"
    print(row.format("--corpus", "in the paper", "language", "Table 5: train, dev, test, classes", "licence"))
    for name, c in CORPORA.items():
        print(row.format(name, c.title, c.language, c.table5 or "-", c.licence or "-"))
        print(f"    --data: a folder that holds {c.holds}")
    print(f"Each folder may also hold its corpus in a form of the hub: {hub.FORMS}.")
    print(TABLE_5_NOTE)
    print_next(("python -m beyond.check --corpus CORPUS --data FOLDER",))


def print_scores(runs, constant, unit, pos):
    """Prints the scores of all seeds of a results folder as a table: mean ± deviation, interval, baseline, each type.

    Args: runs: of a scores.json. constant: the label of the baseline. unit: of resampling. pos: for parts of speech.
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
    mean = ", mean of those of the seeds" if len(runs) > 1 else ""
    print(f"95 % interval: of the F1, by bootstrap with {unit} resampled{mean}")
    print(f"constant: the F1 of always {constant}")


def print_advice(predicted_labels, scores, s, dim):
    """Says which seeds predict one label alone, or find no entity, and why. predicted_labels, scores: of each seed."""
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


def print_corpus(s, setup, issues):
    """Prints what is trained and tested on, and what of it cannot be learnt or found. issues: of read_corpus."""
    train, test, windows = setup.splits["train"], setup.splits["test"], setup.windows
    entities = "" if setup.corpus.pos else f"{count_entities(train):,} + {count_entities(test):,} entities, "
    print(
        f"{s.corpus}: {len(train):,} + {len(test):,} sequences, {entities}{len(windows['train']):,} + "
        f"{len(windows['test']):,} windows of up to {setup.max_len} tokens, {len(setup.labels)} labels",
        flush=True,
    )
    for split in ("train", "test"):
        for what, n in sorted((+issues[split]).items()):
            print(f"{split}: {n:,} {what}")
    if not setup.corpus.pos and (n_split := count_split_entities(test, windows["test"])):
        print(f"test: {n_split:,} entities are split across windows; they count as missed unless joined correctly")
    if unseen := sorted({t for d in test for t in d.labels} - set(setup.labels)):
        print(f"labels {', '.join(unseen)} never occur in training; their entities count as missed")
