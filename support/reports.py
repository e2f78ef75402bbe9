"""Reports of what files hold: a data set, the model card, the scores of fine-tuning. No model is needed."""

import json
import math
import shlex
import sys
import textwrap
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tqdm import tqdm

import configs
from configs import UserError
from support import hardware
from support.datasets import read_tokenizer
from support.files import append_line, name_of, read_bytes
from support.layouts import IGNORE
from support.sources import print_sources
from support.texts import replace_surrogates

VALID_MFU = 0.3  # what a validation makes of the speed of matrix products, to say beforehand how long it may take


def print_next(*commands, file=None):
    """Prints the commands that a user may want next. Each is a tuple: a text with {}, and what is put there, quoted."""
    for i, (text, *parts) in enumerate(commands):
        quoted = (shlex.quote(replace_surrogates(str(part))) for part in parts)
        print(f"{'next:' if i == 0 else '':<7}" + text.format(*quoted), file=file or sys.stdout, flush=True)


# ---------------------------------------------------------------- a data set


def print_dataset_tables(manifest, tasks):
    """Tables 1 and 7 of the paper for a data set, and what its samples are made of. tasks: data.TASKS."""

    def row(first, values, form="{:>11,}", width=16):
        print(f"{first:<{width}}" + "".join(form.format(x) if not isinstance(x, str) else f"{x:>11}" for x in values))

    def heading(titles, width=16):
        for line in range(2):
            row("", [words[line] if line < len(words) else "" for words in map(str.split, titles)], width=width)

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
        print_sources(lang, c.get("sources"), manifest["settings"].get("sources"))
    for lang, c in counts.items():
        distribution = c["distribution"]
        print(f"\n{lang}: shares in the graph and in the training samples (%)")
        width = max([16, *(len(name) + 4 for name in distribution["relations"])])
        heading(distribution["columns"], width)
        for kind in ("groups", "relations"):
            for name, values in distribution[kind].items():
                row(f"  {name}", [100 * v for v in values], "{:>11.2f}", width)
        deviation = distribution["largest_deviation"]
        row("  deviation", [100 * deviation[x][0] for x in distribution["columns"]], "{:>11.3f}", width)
        worst = max(deviation, key=lambda x: deviation[x][0])
        print(f"  largest deviation from the source triples: pair {deviation[worst][1]}, sample {worst}")
    for file, n in manifest["malformed_rows_left_out"].items():
        print(f"\n{file}: {n:,} malformed or missing rows left out")
    for file, n in manifest["nci_rows_left_out"].items():
        print(f"\n{file}: {n:,} rows left out, of concepts with NCI Metathesaurus ids (CL...)")
    print()


def print_examples(folder, task, kinds, batch, relations):
    """Prints examples of a task as the model sees them, each with what it should answer.

    Args: folder: of the data set. task: of data.TASKS. kinds: of the triples. batch: a data.MaskedBatch of them.
    """
    tokenizer = Tokenizer.from_buffer(read_tokenizer(folder))
    print(task.title)
    for kind, offset, length in zip(kinds.tolist(), batch.offset, batch.length):
        ids, labels = (x[offset : offset + length].tolist() for x in (batch.ids, batch.labels))
        answer = describe_answer(task, [label for label in labels if label != IGNORE], kind, tokenizer, relations)
        for line in (tokenizer.decode(ids, skip_special_tokens=False), f"-> {answer}"):
            line = line[:600] + " ..." if len(line) > 600 else line
            print(textwrap.fill(line, 110, initial_indent="  ", subsequent_indent="    "))
    print()


def describe_answer(task, labels, kind, tokenizer, relations):
    """What the model should answer for one example, as text."""
    if task.name == "tc":
        return ("true", "false: other concepts", "false: another relation")[kind]
    if task.name == "lp":
        return " ".join(relations[label] for label in labels)
    if task.name == "ep":
        return tokenizer.decode(labels)
    return " | ".join(tokenizer.decode([label]) if task.head == "mlm_head" else str(label) for label in labels)


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
        row("total", [round(sum(column), 1) for column in zip(*table.values())])


# ---------------------------------------------------------------- a run: its metrics, its card


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


# ---------------------------------------------------------------- a run of kgi.py: its console and metrics.jsonl


def print_run(run):
    """Prints how large a run is, and what it runs on."""
    s, ranks = run.s, run.ranks
    size = sum(p.numel() for p in run.model.parameters())
    weights = zip(run.names, run.coefficients.tolist())
    shown = " ".join(f"{name} {w:.3f}" for name, w in weights if name in (*s.tasks, *run.trained))
    ranks.print(f"{run.out}: {size:,} parameters, {len(run.train):,} examples, weights {shown}")
    ranks.print(
        f"{ranks.world_size} x {ranks.device.type} {str(ranks.dtype or torch.float32)[6:]}, "
        f"{run.matmul_flops / 1e12:.3g} TFLOP/s, micro-batches of {run.batches.max_tokens:,} tokens"
    )


def announce_validation(run, rows):
    """A line before the first validation, which can take minutes: a log file shows no progress bar."""
    length = np.minimum(np.diff(run.valid.offsets)[rows] + 2, run.valid.seq_len)  # with [CLS] and [SEP]
    flops = hardware.training_flops(run.model.encoder.config, length, 0.15 * length.sum()) / 3  # forward alone
    seconds = flops / (VALID_MFU * run.matmul_flops)
    note = "; the accuracy of ep is of tokens" if "ep" in run.s.tasks else ""
    what = f"{len(rows):,} held-out examples before the first step"
    run.ranks.print(f"validation: {what}, in about {max(1, seconds):.0f} s{note}")


def progress_bar(run):
    """A bar over the steps: on a terminal from the first rank, nothing elsewhere."""
    disable = None if run.ranks.is_main_process else True  # None: only where there is no terminal
    state = run.state
    return tqdm(total=state.steps, initial=state.step, unit="step", disable=disable, leave=False, dynamic_ncols=True)


def log_training(run, losses, lr, eta):
    """A line of the console and of metrics.jsonl about the steps since the last one. eta: seconds left."""
    state = run.state
    work, seconds = state.work, state.work["seconds"] or math.inf  # no clock is fine enough for everything
    achieved = work["flops"] / seconds
    run.matmul_flops = max(run.matmul_flops, achieved)  # it may have been measured on a busy machine
    speed = work["tokens"] / seconds
    record = {"step": state.step, "epoch": state.step * run.s.batch_size / len(run.train), **losses}
    record |= {
        "lr": lr, "tokens_per_s": speed, "mfu": achieved / run.matmul_flops if run.matmul_flops else 0.0,
        "padding": 1 - work["tokens"] / work["computed"], "skipped": state.skipped,
        "memory_gb": hardware.peak_memory(run.ranks.device) / 1e9, "eta_s": eta,
    }  # fmt: skip
    write_metrics(run, record)
    shown = {name: losses.get(f"{name}_loss") for name in run.trained}
    # A sum over some of the tasks cannot be compared with one over all.
    shown = {"loss": None if None in shown.values() else losses["loss"]} | shown
    parts = [f"step {state.step:>6}/{state.steps}"] + ["no targets"] * (not losses)
    parts += [f"{name} -" if loss is None else f"{name} {loss:.3f}" for name, loss in shown.items() if losses]
    parts += [f"{speed:,.0f} tokens/s", f"left {timedelta(seconds=round(eta))}"]
    run.ranks.print("  ".join(parts))
    state.begin_interval(len(run.names))


def log_validation(run, losses):
    """A line of the console and of metrics.jsonl about a validation: loss and accuracy of each task."""
    state = run.state
    state.validated = state.step
    write_metrics(run, {"step": state.step, "valid": losses})
    valid = f"valid {losses['loss']:.3f}" if losses else "valid: no targets"
    parts = [f"step {state.step:>6}/{state.steps}", valid]
    for name in run.names:
        if f"{name}_loss" in losses:
            parts.append(f"{name} {losses[f'{name}_loss']:.3f} ({100 * losses[f'{name}_accuracy']:.1f} %)")
    run.ranks.print("  ".join(parts))


def write_metrics(run, record):
    if run.ranks.is_main_process:
        append_line(run.out / "metrics.jsonl", (json.dumps(record) + "\n").encode())


def print_after_training(s, out):
    """Prints what to do with a finished run. s: its configs.Train."""
    finetune = ("python finetune.py {} --corpus CORPUS --data FOLDER", out)
    if s.tables.get("finetune", {}).get("data"):
        finetune = ("python finetune.py {}" + " {}" * len(s.files), out, *s.files)
    print_next(finetune, ("python -m beyond.evaluate {}", out), ("python -m beyond.plot {}", out))


def print_after_finetuning(s, out):
    """Prints what to do with a results folder. s: its configs.Finetune."""
    tables = [("python finetune.py tables",)] * (not s.out)  # elsewhere nobody knows what --results to give
    print_next(("python -m beyond.tag {} < notes.txt > entities.jsonl", out), *tables)


def model_card(folder, init, config, manifest, weights, values, titles):
    """The README.md of a run folder: what it was trained on and with, and its last validation, as Markdown.

    Args:
        init: the checkpoint that it started from, or "". config: model.Config. manifest: of the data set.
        weights: {name: weight in equation (2)}. values: {setting: value} to show. titles: {name: title} of the tasks
        that it was trained on, and of the objectives beside them.
    """
    languages, has_text, has_graph = manifest["languages"], "mlm" in titles, [*titles] != ["mlm"]
    counted = [name for name in titles if all(name in n["train"] for n in manifest["counts"].values())]
    sources = ["sequences from the UMLS knowledge graph"] * has_graph + ["documents"] * has_text
    beginning = f"continues the training of `{name_of(init)}`" if init else "was trained from scratch"
    licence = " (for the UMLS, that of the US National Library of Medicine)" if has_graph else ""
    lines = ["---", "language:", *(f"- {lang}" for lang in languages)]
    lines += ["pipeline_tag: fill-mask"] * ("mlm" in config.extra_config["kgi_tasks"])
    lines += ["tags:", "- biomedical", *["- umls", "- knowledge-graph"] * has_graph]
    lines += [
        "---", "", f"# {name_of(folder)}", "",
        f"This is a UMLS-KGI-BERT (Mannion et al., ClinicalNLP 2023). It {beginning} on {' and on '.join(sources)}. "
        f"The encoder opens with any library that reads the layout `{config.family}`. `tokenizer.json` holds the "
        f"relation tokens. What the model was trained on has licences of its own{licence}.", "",
    ]  # fmt: skip
    columns = ["terms", "CUIs", "relations"] * has_graph
    heads = ["language", *columns, *(f"{titles[name]} examples" for name in counted)]
    lines += markdown_table(heads, [
        [lang, *(f"{n[x.lower()]:,}" for x in columns), *(f"{n['train'][name]:,}" for name in counted)]
        for lang, n in manifest["counts"].items()
    ])  # fmt: skip
    sizes = {"layers": config.layers, "heads": config.heads, "hidden size": config.dim, "feed-forward": config.ffn}
    sizes |= {"vocabulary": config.vocab_size, "positions": config.max_positions}
    if has_graph:
        sizes["relations"] = len(config.relation_classes) + 1  # and synonymy
    weights = ", ".join(f"{name.upper()} {weights[name]:.3f}" for name in titles)
    lines += markdown_table(["setting", "value"], (sizes | values | {"weights of the tasks": weights}).items())
    validations = [r for r in read_metrics(folder / "metrics.jsonl")[0] if "valid" in r]
    if validations:
        step, valid = validations[-1]["step"], validations[-1]["valid"]
        rows = [
            [title + of_tokens(name), f"{valid[f'{name}_loss']:.3f}", f"{100 * valid[f'{name}_accuracy']:.1f} %"]
            for name, title in titles.items() if f"{name}_loss" in valid and f"{name}_accuracy" in valid
        ]  # fmt: skip
        lines += markdown_table([f"held out, at step {step:,}", "loss", "accuracy"], rows)
    return replace_surrogates("\n".join(lines))


def of_tokens(name):
    """A note on the accuracy of entity prediction, which is that of single tokens."""
    return ", of tokens" * (name == "ep")


def markdown_table(heads, rows):
    """A table as lines of Markdown, a blank line after it."""
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return [*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]
