"""Reports of what files hold: a data set, curves, a map, the model card, an evaluation. No model is needed."""

import json
import math
import shlex
import sys
from itertools import islice
from pathlib import Path

import numpy as np

import configs
from configs import UserError
from support.files import check_output, check_output_file, made_folder, name_of, read_bytes, write_atomic
from support.texts import replace_surrogates

MADE_BY = "KGI, a program for UMLS-KGI-BERT"  # in each picture
PICTURE = f"(?s).*{MADE_BY}".encode()  # how ours are recognised; see check_output


def print_next(*commands, file=None):
    """Prints the commands that a user may want next. Each is a tuple: a text with {}, and what is put there, quoted."""
    for i, (text, *parts) in enumerate(commands):
        quoted = (shlex.quote(replace_surrogates(str(part))) for part in parts)
        print(f"{'next:' if i == 0 else '':<7}" + text.format(*quoted), file=file or sys.stdout, flush=True)


# ---------------------------------------------------------------- a data set


def print_dataset_tables(manifest, tasks):
    """Tables 1 and 7 of the paper for a data set, and what its samples are made of. tasks: data.TASKS."""

    def row(first, values, form="{:>11,}"):
        print(f"{first:<16}" + "".join(form.format(x) if not isinstance(x, str) else f"{x:>11}" for x in values))

    def heading(titles):
        for line in range(2):
            row("", [words[line] if line < len(words) else "" for words in map(str.split, titles)])

    counts = manifest["counts"]
    tasks = [task for task in tasks if any(task.name in c["train"] for c in counts.values())]
    titles = [task.title.removesuffix(" modelling").replace("classification", "classif.") for task in tasks]
    table_1 = {
        lang: [*(c["train"].get(task.name, 0) for task in tasks), sum(c["train"].values()), c["megabytes"]]
        for lang, c in counts.items()
    }
    table_7 = {lang: [c["terms"], c["cuis"], c["relations"]] for lang, c in counts.items()}
    print("\nTable 1: training examples")
    heading([*titles, "total", "MB"])
    print_rows_and_total(row, table_1)
    print("\nTable 7: the knowledge graph")
    row("", ("terms", "CUIs", "relations"))
    print_rows_and_total(row, table_7)
    for lang, c in counts.items():
        distribution = c["distribution"]
        print(f"\n{lang}: shares in the graph and in the training samples (%)")
        heading(distribution["columns"])
        for kind in ("groups", "relations"):
            for name, values in distribution[kind].items():
                row(f"  {name}", [100 * v for v in values], "{:>11.2f}")
        deviation = distribution["largest_deviation"]
        row("  deviation", [100 * deviation[x][0] for x in distribution["columns"]], "{:>11.3f}")
        worst = max(deviation, key=lambda x: deviation[x][0])
        print(f"  largest deviation from the source triples: pair {deviation[worst][1]}, sample {worst}")
    for file, n in manifest["malformed_rows_left_out"].items():
        print(f"\n{file}: {n:,} malformed or missing rows left out")
    for file, n in manifest["nci_rows_left_out"].items():
        print(f"\n{file}: {n:,} rows left out, of concepts with NCI Metathesaurus ids (CL and digits)")
    print()


def print_training(s, out, counts, tasks):
    """Prints the command that trains on a data set, and a warning if the schedule of the build's config is too long.

    Args: s: a configs.Data. out: the data set. counts: of its manifest. tasks: names of those trained by default.
    """
    train = configs.Train(**s.tables.get("train", {}))
    n = sum(c["train"].get(task, 0) for c in counts.values() for task in train.tasks or tasks)
    try:
        if not train.time_budget:
            configs.check_schedule(train, configs.count_steps(train, n), n)
    except UserError as e:
        print(f"warning: the training of {' '.join(s.files)} would be refused with this data set:\n  {e}")
    command, parts = "python kgi.py" + " {}" * len(s.files), [*s.files]
    if Path(train.data) != Path(out):
        command, parts = command + " --data {}", [*parts, out]
    if s.tokenizer:
        command, parts = command + " --init {}", [*parts, s.tokenizer]
    print_next((command, *parts))


def print_rows_and_total(row, table):
    for lang, values in table.items():
        row(lang, values)
    if len(table) > 1:
        row("total", [sum(column) for column in zip(*table.values())])


# ---------------------------------------------------------------- a run: its metrics, its curves, its card


def parse_record(line):
    """A line of metrics.jsonl, {} if it is damaged: cut off, not JSON, or not a step with numbers."""
    try:
        record = json.loads(line)
        step, values = record["step"], record | record.get("valid", {})
        numbers = [x for key, x in values.items() if key != "valid"]
        good = all(type(x) is float or (type(x) is int and abs(x) < 2**53) for x in numbers)
        good &= not any(2.0**128 <= abs(x) < math.inf for x in numbers)  # no float32, and no axis is as long
        return record if good and type(step) is int and step >= 0 else {}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def read_metrics(path):
    """(the records of a metrics.jsonl, the number of its damaged lines); none of either if there is no file."""
    lines = [line for line in read_bytes(path).split(b"\n") if line] if path.exists() else []
    records = [record for line in lines if (record := parse_record(line))]
    return records, len(lines) - len(records)


def draw_curves(runs, out, tasks):
    """Draws loss and accuracy of each task over the steps, of one or several runs, as one picture.

    Args: runs: run folders. out: the picture, "" for the default. tasks: data.TASKS. Returns: the path of the picture.
    """
    records_of = {}
    for run in runs:
        path = run / "metrics.jsonl"
        if not path.is_file():
            raise UserError(f"{path} not found; is {run} a run folder?")
        records, n_damaged = read_metrics(path)
        if n_damaged:
            print(f"{path}: {n_damaged:,} damaged lines are left out")
        if not any("valid" in r for r in records):
            raise UserError(f"{path}: no validation in it yet")
        records_of[run] = records
    found = {key for records in records_of.values() for r in records for key in (*r, *r.get("valid", ()))}
    tasks = [task for task in tasks if f"{task.name}_loss" in found]
    figure, colours = blank_figure((16, 8)), distinct_colours(len(records_of))
    axes = figure.subplots(2, len(tasks), sharex=True, squeeze=False)
    for records, colour in zip(records_of.values(), colours):
        for row, what, unit in zip(axes, ("loss", "accuracy"), (1, 100)):
            for ax, task in zip(row, tasks):
                key = f"{task.name}_{what}"
                train = [(r["step"], unit * r[key]) for r in records if key in r]
                valid = [(r["step"], unit * r["valid"][key]) for r in records if key in r.get("valid", ())]
                if train:
                    ax.plot(*zip(*train), color=colour, alpha=0.4)
                if valid:
                    ax.plot(*zip(*valid), color=colour, marker="o")
    for row, what in zip(axes, ("loss", "accuracy (%)")):
        row[0].set_ylabel(what)
        for ax in row:
            ax.grid(alpha=0.4)
            ax.tick_params(labelbottom=True)
    for ax, task in zip(axes[0], tasks):
        ax.set_title(task.title)
    for ax in axes[1]:
        ax.set_xlabel("step")
    add_legend(figure, names_of_runs(records_of), colours, "held out (pale: training)")
    out = Path(out or (runs[0] / "curves.png" if len(runs) == 1 else "curves.png"))
    if out.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise UserError(f"--out {out}: must end in .png, .pdf or .svg")
    check_output_file(out, PICTURE)
    kind = out.suffix[1:].lower()
    made_by = {"Software" if kind == "png" else "Creator": MADE_BY}
    write_atomic(out, lambda f: figure.savefig(f, format=kind, metadata=made_by))
    return out


def check_picture(path, signature):
    """Raises UserError if a picture that draw_map would replace is of another checkpoint."""
    check_output(path, PICTURE)
    if path.exists() and f"Source\0{signature}".encode() not in path.read_bytes():
        raise UserError(f"{path} is of another checkpoint, or of this one before more training; choose another --out")


def names_of_runs(runs):
    """The name of each run folder, or its path where two have the same name."""
    names = [name_of(run) for run in runs]
    return [name if names.count(name) == 1 else str(run) for name, run in zip(names, runs)]


def draw_map(path, points, groups, strings, shares, title, signature):
    """Draws terms as points, a colour for each semantic group, some of them with their names.

    Args:
        path: the picture, a .png. points: (n, 2). groups: the name of the group of each term. strings: the terms.
        shares: (n,) of the neighbours of each term the share of its group: those with the highest get their names.
        signature: of the checkpoint, which is kept in the picture.
    """
    figure, groups = blank_figure((10, 11)), np.array(groups)
    names, size = np.unique(groups, return_counts=True)
    names = names[np.argsort(-size, kind="stable")]
    ax, colours, legend, taken = figure.subplots(), distinct_colours(len(names)), [], []
    for name, colour in zip(names, colours):  # the rare ones above
        x, y = points[groups == name].T
        ax.scatter(x, y, s=8, alpha=0.6, linewidths=0, color=colour)
        legend.append(f"{name} ({len(x):,})")
    ax.set(xlabel="t-SNE axis 1", ylabel="t-SNE axis 2", xticks=[], yticks=[])  # their units mean nothing
    ax.set_title(as_drawn(title), fontsize=10)
    add_legend(figure, legend, colours)
    figure.draw_without_rendering()  # labels need the final layout
    for name, colour in [*zip(names, colours)][::-1]:  # the rare ones first, as they have the least room
        rows = sorted(np.flatnonzero(groups == name), key=lambda i: (len(strings[i]) > 30, -shares[i]))[:50]
        fitting = (i for i in rows if label_term(ax, strings[i], points[i], colour, taken))
        list(islice(fitting, 3))
    made_by = {"Software": MADE_BY, "Source": signature}
    with made_folder(path.parent):
        write_atomic(path, lambda f: figure.savefig(f, format="png", metadata=made_by))


def label_term(ax, text, point, colour, taken):
    """Writes a term beside its point if there is room. taken: the boxes of other terms, which grows. Returns: if so."""
    for x, y, ha, va in ((0, 4, "center", "bottom"), (0, -4, "center", "top"), (5, 0, "left", "center"),
                         (-5, 0, "right", "center")):  # fmt: skip
        label = ax.annotate(
            as_drawn(text if len(text) <= 30 else text[:29] + "…"), point, (x, y), textcoords="offset points",
            fontsize=9, ha=ha, va=va, color=[0.6 * x for x in colour],
            bbox={"pad": 0.5, "color": "white", "alpha": 0.75, "linewidth": 0},
        )  # fmt: skip
        box = label.get_window_extent()
        if all(ax.bbox.contains(*x) for x in (box.min, box.max)) and not any(box.overlaps(x) for x in taken):
            ax.plot(*point, "o", markersize=4, color=colour, markeredgecolor="black", markeredgewidth=0.6, zorder=4)
            taken.append(box)
            return True
        label.remove()
    return False


def as_drawn(name):
    """The name of a file as matplotlib shows it: Unicode, $ is no formula, and _ at its beginning hides no label."""
    return (" " * name.startswith("_") + replace_surrogates(name)).replace("$", r"\$")


def blank_figure(size):
    """A figure of matplotlib, which is an extra, as fine as print needs it. size: in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("drawing needs matplotlib: pip install -r requirements-plot.txt") from None
    return Figure(size, dpi=200, layout="constrained")


def distinct_colours(n):
    """n different colours: the ten of matplotlib, then the same ones darker and darker."""
    from matplotlib.colors import to_rgb

    return [tuple(0.6 ** (i // 10) * x for x in to_rgb(f"C{i % 10}")) for i in range(n)]


def add_legend(figure, names, colours, title=""):
    """Adds a legend below the axes: a dot of each colour with its name."""
    from matplotlib.lines import Line2D

    dots = [Line2D([], [], color=colour, marker="o", linestyle="") for colour in colours]
    figure.legend(dots, [*map(as_drawn, names)], loc="outside lower center", title=title, ncols=4)


def print_after_training(s, out):
    """Prints what to do with a finished run. s: its configs.Train."""
    finetune = ("python finetune.py {} --corpus CORPUS --data FOLDER", out)
    if s.tables.get("finetune", {}).get("data"):
        finetune = ("python finetune.py {}" + " {}" * len(s.files), out, *s.files)
    print_next(finetune, ("python kgi.py evaluate {}", out), ("python kgi.py plot {}", out))


def model_card(folder, init, config, manifest, weights, values, tasks, trained):
    """The README.md of a run folder: what it was trained on and with, and its last validation, as Markdown.

    Args:
        init: the checkpoint that it started from, or "". config: model.Config. manifest: of the data set.
        weights: {task name: weight in equation (2)}. values: {setting: value} to show. tasks: data.TASKS.
        trained: names of the tasks that it was trained on.
    """
    tasks, languages = [task for task in tasks if task.name in trained], manifest["languages"]
    has_text, has_graph = "mlm" in trained, trained != ["mlm"]
    sources = ["sequences from the UMLS knowledge graph"] * has_graph + ["documents"] * has_text
    beginning = f"continues the training of `{name_of(init)}`" if init else "was trained from scratch"
    licence = " (for the UMLS, that of the US National Library of Medicine)" if has_graph else ""
    lines = ["---", "language:", *(f"- {lang}" for lang in languages)]
    lines += ["pipeline_tag: fill-mask"] * ("mlm" in config.extra_config["kgi_tasks"])
    lines += ["tags:", "- biomedical", *["- umls", "- knowledge-graph"] * has_graph, "---", ""]
    lines += [f"# {name_of(folder)}", ""]
    lines += [
        f"This is a UMLS-KGI-BERT (Mannion et al., ClinicalNLP 2023). It {beginning} on {' and on '.join(sources)}. "
        f"The encoder opens with any library that reads the layout `{config.family}`. `tokenizer.json` holds the "
        f"relation tokens. What the model was trained on has licences of its own{licence}.",
        "",
    ]
    columns = ["terms", "CUIs", "relations"] * has_graph
    lines += markdown_table(
        ["language", *columns, *(f"{task.title} examples" for task in tasks)],
        [
            [lang, *(f"{n[x.lower()]:,}" for x in columns), *(f"{n['train'][task.name]:,}" for task in tasks)]
            for lang, n in manifest["counts"].items()
        ],
    )
    sizes = {"layers": config.layers, "heads": config.heads, "hidden size": config.dim, "feed-forward": config.ffn}
    sizes |= {"vocabulary": config.vocab_size, "positions": config.max_positions}
    weights = ", ".join(f"{task.name.upper()} {weights[task.name]:.3f}" for task in tasks)
    lines += markdown_table(["setting", "value"], (sizes | values | {"weights of the tasks": weights}).items())
    validations = [r for r in read_metrics(folder / "metrics.jsonl")[0] if "valid" in r]
    if validations:
        step, valid = validations[-1]["step"], validations[-1]["valid"]
        rows = [
            [unit_of(task), f"{valid[f'{task.name}_loss']:.3f}", f"{100 * valid[f'{task.name}_accuracy']:.1f} %"]
            for task in tasks
            if f"{task.name}_loss" in valid and f"{task.name}_accuracy" in valid
        ]
        lines += markdown_table([f"held out, at step {step:,}", "loss", "accuracy"], rows)
    return replace_surrogates("\n".join(lines))


def unit_of(task):
    """The title of a task where its accuracy stands, which for entity prediction is that of single tokens."""
    return task.title + ", of tokens" * (task.name == "ep")


def markdown_table(heads, rows):
    """A table as lines of Markdown, a blank line after it."""
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return [*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]


# ---------------------------------------------------------------- what was learnt


def print_evaluation(record, tasks, relations):
    """Prints what kgi.py evaluate found. Args: tasks, relations: data.TASKS, data.RELATIONS."""
    titles = {task.name: task.title for task in tasks}
    for lang, x in record.get("mlm", {}).items():
        print(f"  {titles['mlm']}, {lang}: loss {x['loss']:.3f}, accuracy {x['accuracy']:.1f} %")
    if x := record.get("ep"):
        print(f"  {titles['ep']}: {x['tokens']:.1f} % of the tokens, {x['entities']:.1f} % of the entities")
    if x := record.get("lp"):
        confusion = np.array(x["confusion"])
        majority = 100 * confusion.sum(1).max() / confusion.sum()
        print(
            f"  {titles['lp']}: accuracy {x['accuracy']:.1f} % (majority baseline {majority:.1f} %), "
            f"macro F1 {x['macro_f1']:.1f} %"
        )
        names = relations[: len(confusion)]
        print("    gold \\ predicted" + "".join(f"{name:>7}" for name in names))
        for name, row in zip(names, confusion.tolist()):
            print(f"    {name:<16}" + "".join(f"{n:>7,}" for n in row))
    if x := record.get("tc"):
        print(f"  {titles['tc']}: accuracy {x['accuracy']:.1f} %")
        for kind in ("corrupted_entities", "corrupted_relation"):
            if kind in x:
                accuracy, auc = x[kind]["accuracy"], x[kind]["auc"]
                negatives = f"negatives with {kind.replace('_', ' ')}"
                print(f"    {negatives}: accuracy {accuracy:.1f} %, ROC AUC against true ones {auc:.1f} %")
    for name in titles.keys() - {"mlm", "ep", "lp", "tc"}:  # a task that is measured in no other way
        if x := record.get(name):
            print(f"  {titles[name]}: accuracy {x['accuracy']:.1f} %")
    for lang, by_vectors in record["translations"].items():
        for how, x in by_vectors.items():
            if x:
                what = how.replace("spelling", "trigrams of letters").replace("_held_out", ", held-out concepts")
                print(f"  {lang} -> en, {x['queries']:,} names, {what}: accuracy at 1 {x['at_1']:.1f} %")
    for lang, by_vectors in record["synonyms"].items():
        n = by_vectors["terms"]
        if not by_vectors["mean"]:
            print(f"  synonyms, {lang}: no concept has two of the {n:,} terms")
        for how, x in by_vectors.items():
            if how != "terms" and x:
                what = how.replace("spelling", "trigrams of letters").replace("_held_out", ", held-out concepts")
                print(
                    f"  synonyms, {lang}, {x['queries']:,} among {n:,} terms, {what}: accuracy at 1 {x['at_1']:.1f} %, "
                    f"at 5 {x['at_5']:.1f} %, MRR {x['mrr']:.1f} %"
                )


def print_linking(record):
    """Prints what kgi.py link found: for each subset of the mentions a table of methods."""
    s, scores = record["settings"], record["scores"]
    n_all, n_reachable = scores["all"]["mentions"], scores["reachable"]["mentions"]
    print(
        f"{s['corpus']}, {s['split']}: {n_all:,} mentions in {record['documents']:,} documents, {n_reachable:,} with a "
        f"concept in the dictionary of {record['concepts']:,} concepts and {record['names']:,} names"
    )
    for issue, n in record["issues"].items():
        print(f"  {issue}: {n:,}")
    titles = {
        "all": "all mentions", "reachable": "mentions with a concept in the dictionary",
        "unseen": "mentions unseen in training", "unseen_reachable": "unseen, with a concept in the dictionary",
    }  # fmt: skip
    for subset, title in titles.items():
        if not (x := scores.get(subset)):
            continue
        title = f"{title} ({x['mentions']:,})"
        print(f"\n  {title:<49}{'at 1':<22}{'at 5':<22}MRR")
        for method, found in x["methods"].items():
            if found:
                cells = [format_score(found, key) for key in ("at_1", "at_5", "mrr")]
                print(f"    {method:<45}" + "".join(f"{cell:<22}" for cell in cells).rstrip())
    print("\n  accuracy and MRR in per cent [95 % bootstrap confidence interval, documents resampled]")


def format_score(scores, key):
    """A score of linking.linking_scores with its confidence interval."""
    low, high = scores["interval"][key]
    return f"{scores[key]:5.1f} [{low:.1f}, {high:.1f}]"
