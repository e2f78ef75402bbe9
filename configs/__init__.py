"""The settings of every command, and the one loader that reads them.

    python kgi.py configs/v1-fr.toml --epochs 2 --lr 1e-4
    python data.py build --lang fr --umls 2022AB --e3c E3C-Corpus

A value comes from the dataclass default (the paper's number where it has one), then from the
command's table of a TOML file ([data], [train], [finetune], [evaluate] or [embed]), then from the command line. Each is
checked against the type written here; an unknown key or a wrong type is one line and exit status 1.
"""

import contextlib
import dataclasses
import difflib
import json
import os
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm


class UserError(Exception):
    """Something the user can put right: shown as one line, without a traceback."""


def setting(default, help, least=0, most=1e15):
    """A field with its line of --help and, for numbers, the least and the largest value they may have."""
    metadata = {"help": help, "least": least, "most": most}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


LONGEST = 16_384  # tokens of a sequence: beyond what any BERT has positions for

# "Semantic types related to human biology and medicine" (appendix A.1). The paper does not list
# them; this is our reading: whole groups, then single types of the mixed groups. Concepts such as
# qualifiers (T169, T079, T080 ...) stay, or the AQ and QB relations would have nothing to point to.
SEMANTIC_TYPES = (
    "ANAT CHEM DEVI DISO GENE PHEN PHYS PROC "
    "T169 T080 T081 T079 T082 "  # CONC: functional, qualitative, quantitative, temporal, spatial
    "T004 T005 T007 T194 T016 T096 T097 T098 T099 T100 T101 "  # LIVB: microbes and people
    "T053 T054 T055 T167 T168 T091 T093"  # behaviour, substance, food, discipline, health care
).split()


@dataclass
class Data:
    """`data.py build`: the sources, the sizes of Table 1 and how to cut and tokenise them."""

    lang: str = setting("", "en, fr, es ... (or a UMLS LAT code such as FRE), or multi = en+fr+es")
    umls: str = setting("", "folder of a UMLS release; default $UMLS or ./umls")
    e3c: str = setting("", "folder of the E3C corpus; default $E3C or ./E3C-Corpus; 'none': no documents")
    text: str = setting(
        "", "other documents: a file with one a line, a .jsonl file, or a folder of .txt ({lang}: the language)"
    )
    exclude: str = setting("", "leave out documents that are in these corpora: folders or files, ':' between them")
    out: str = setting("", "where the data set goes; default datasets/<lang>[-<tokenizer>]")
    seed: int = setting(0, "seed of every random choice of the build", most=2**32)
    classification: int = setting(200_000, "triple-classification examples per language (Table 1)", most=10**9)
    prediction: int = setting(100_000, "entity-prediction examples per language (Table 1)", most=10**9)
    paths: int = setting(100_000, "link-prediction paths per language (Table 1)", most=2 * 10**6)
    valid: float = setting(0.05, "share of concept pairs and documents held out for validation", least=1e-6, most=0.5)
    seq_len: int = setting(256, "tokens of the longest sequence (Table 8)", least=16, most=LONGEST)
    max_relations: int = setting(10, "relations of the longest path", least=2, most=50)
    semantic_types: list[str] = setting(SEMANTIC_TYPES, "TUIs or semantic groups that are kept")
    semgroups: str = setting("", "another SemGroups.txt than the one in configs/")
    e3c_layers: list[str] = setting(["3"], "E3C layers to read (Table 1 counts layer 3)")
    keep_duplicates: bool = setting(False, "count a text each time it occurs, as the paper does")
    skip_bad_rows: bool = setting(False, "leave malformed rows out, counted, instead of stopping")
    windows: str = setting("random", "document tokens to train on: random, first (paper) or all")
    tokenizer: str = setting("", "folder of a checkpoint whose tokenizer to use; none: train one")
    vocab_size: int = setting(30_522, "entries of a trained WordPiece vocabulary (DistilBERT's)", least=100, most=10**6)
    cased: bool = setting(True, "keep upper case in a trained vocabulary (accents always stay)")


@dataclass
class Train:
    """`kgi.py`: pre-training. Defaults are the paper's v1 numbers (section 4.1, Table 8)."""

    data: str = setting("", "data set folder; default: the only one in datasets/, of init's tokenizer if given")
    out: str = setting("", "run folder; default runs/kgi-<name of the data folder>")
    init: str = setting("", "start from the weights (and sizes) of this checkpoint folder")
    seed: int = setting(0, "seed of weights, order, masks and dropout", most=2**32)
    layers: int = setting(12, "encoder layers (v1 12, v2 8)", least=1, most=1000)
    heads: int = setting(12, "attention heads (v1 12, v2 8)", least=1, most=1000)
    dim: int = setting(768, "hidden size", least=1, most=2**14)
    ffn: int = setting(3072, "feed-forward size", least=1, most=2**16)
    dropout: float = setting(0.1, "dropout of embeddings, attention and both sub-layers", most=0.99)
    tasks: list[str] = setting(["mlm", "ep", "lp", "tc"], "tasks to train (Table 6 leaves one out)")
    epochs: float = setting(64.0, "passes over the training examples", least=1e-6)
    steps: int = setting(0, "optimizer steps; overrides epochs when above 0")
    budget: str = setting("", "time for the whole run, such as 24h or 90m; overrides epochs")
    batch_size: int = setting(1500, "effective batch, over all micro-batches and ranks", least=1, most=10**6)
    lr: float = setting(7.5e-4, "peak of the triangular schedule")
    warmup: float = setting(0.5, "steps up to the peak; below 1: a share of the run")
    weight_decay: float = setting(0.01, "AdamW weight decay (torch's default)")
    clip: float = setting(1.0, "largest gradient norm; 0 = no clipping")
    mlm_probability: float = setting(0.15, "share of document tokens to predict (Table 8)", most=1)
    alphas: list[float] = setting([], "weights of EP, LP, TC in equation (2); default: section 4.1")
    micro_tokens: int = setting(0, "padded tokens of a micro-batch; 0: what fits into the GPU, 2048 on CPU", most=10**7)
    precision: str = setting("auto", "auto, bf16, fp16 or fp32")
    device: str = setting("auto", "auto, cuda or cpu")
    valid_every: int = setting(0, "steps between validations; 0: once an epoch")
    save_every: int = setting(0, "steps between checkpoints; 0: at each validation")
    log_every: int = setting(10, "steps between lines of metrics.jsonl", least=1)


@dataclass
class Finetune:
    """`finetune.py`: the one-shot protocol of section 4.2."""

    corpus: str = setting("custom", "one of --list; custom: your own, in CoNLL columns or brat")
    data: str = setting("", "folder of the corpus")
    out: str = setting("", "results folder; default results/<checkpoint>/<corpus>")
    runs: int = setting(1, "seeds, each from the same checkpoint", least=1, most=10**4)
    seed: int = setting(0, "first seed", most=2**32)
    epochs: int = setting(1, "passes over the training part (1 = one-shot)", least=1)
    batch_size: int = setting(4, "sequences per update", least=1, most=10**6)
    lr: float = setting(2e-5, "learning rate")
    weight_decay: float = setting(0.01, "AdamW weight decay")
    max_len: int = setting(0, "tokens of a window; 0: as many as the checkpoint has positions")
    check: str = setting("", "instead: read this corpus and say what it holds and what is lost; no checkpoint")
    dataset: str = setting("", "with --check: what of the corpus the documents of this data set hold")
    untrained: bool = setting(False, "forget the checkpoint's weights: the baseline of no training")
    precision: str = setting("auto", "auto, bf16 or fp32")
    device: str = setting("auto", "auto, cuda or cpu")


@dataclass
class Evaluate:
    """`kgi.py --evaluate` and `--map`: what a checkpoint knows of the graph."""

    data: str = setting("", "data set folder; default: the only one in datasets/ of the checkpoint's tokenizer")
    out: str = setting("", "results go to <out>/<checkpoint>; default results")
    seed: int = setting(0, "seed of the masks and of the choice of concepts", most=2**32)
    terms: int = setting(20_000, "terms per language among which synonyms are sought; 0: all, for a small graph")
    pooling: str = setting("mean", "--map: mean (over all tokens) or cls (the vector at [CLS])")
    precision: str = setting("auto", "auto, bf16, fp16 or fp32")
    device: str = setting("auto", "auto, cuda or cpu")


@dataclass
class Embed:
    """`model.py embed`: one vector for each line of text."""

    pooling: str = setting(
        "", "cls (the vector at [CLS]) or mean (over all tokens); default: the checkpoint's, else cls"
    )
    max_len: int = setting(0, "longer lines are cut to so many tokens; 0: the checkpoint's limit, else its positions")
    precision: str = setting("auto", "auto, bf16, fp16 or fp32")
    device: str = setting("auto", "auto, cuda or cpu")


TABLES = {"data": Data, "train": Train, "finetune": Finetune, "evaluate": Evaluate, "embed": Embed}


def load(table, argv, usage, positionals=0):
    """Settings of one command from `[config.toml] [POSITIONAL ...] [--key value ...]`.

    Args:
        table: a key of TABLES. argv: the arguments. usage: first lines of --help.
        positionals: how many arguments other than options and a .toml file there must be; None: one or more.

    Returns:
        (settings, positional arguments), the settings an instance of TABLES[table].

    Raises:
        UserError: unreadable file, unknown table or key, wrong type, too few or many arguments.
    """
    cls = TABLES[table]
    if "-h" in argv or "--help" in argv:
        print(usage.strip() + "\n\nsettings:")
        for f in dataclasses.fields(cls):
            default = f.default if f.default is not dataclasses.MISSING else f.default_factory()
            default = f" [{default}]" if default not in ("", []) and f.name != "semantic_types" else ""
            print(f"  --{f.name:<17} {f.metadata['help']}{default}")
        sys.exit(0)
    from_file, values, rest, argv = {}, {}, [], list(argv)
    while argv:
        arg = argv.pop(0)
        if arg.startswith("--"):
            key, equals, text = arg[2:].partition("=")
            key = key.replace("-", "_")
            kind = _field(cls, key, f"--{key}").type
            if not equals:
                if kind is bool and (not argv or argv[0].lower() not in ("true", "false")):
                    text = "true"
                elif not argv or argv[0].startswith("--"):
                    raise UserError(f"--{key} needs a value")
                else:
                    text = argv.pop(0)
            values[key] = _parse(text, kind, f"--{key}")
        elif arg.endswith(".toml"):
            from_file |= _read_toml(arg, table)
        else:
            rest.append(arg)
    if len(rest) != positionals and (positionals is not None or not rest):
        positionals = positionals or 0
        what = f"unexpected argument '{rest[positionals]}'" if len(rest) > positionals else "too few arguments"
        raise UserError(f"{what}; usage: {usage.strip().splitlines()[0]} (--help lists the settings)")
    settings = cls(**(from_file | values))
    for f in dataclasses.fields(cls):
        value, least, most = getattr(settings, f.name), f.metadata["least"], f.metadata["most"]
        numbers = [x for x in (value if isinstance(value, list) else [value]) if type(x) in (int, float)]
        if not all(least <= x <= most for x in numbers):
            limit = f"{most:,}" if type(most) is int else f"{most:g}"
            raise UserError(f"{f.name} = {value} must be between {least} and {limit}")
    return settings, rest


def _field(cls, key, where):
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if key not in fields:
        near = difflib.get_close_matches(key, fields, 1)
        hint = f"did you mean '{near[0]}'?" if near else "--help lists the settings"
        raise UserError(f"{where}: unknown setting '{key}'; {hint}")
    return fields[key]


def _parse(text, kind, where):
    """One command-line value as the type of its setting."""
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (int, float, str):
            return kind(text)
        return [kind.__args__[0](part) for part in text.replace(",", " ").split()]
    except (ValueError, KeyError):
        raise UserError(f"{where}: '{text}' is not a {_name(kind)}") from None


def _name(kind):
    names = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    return names.get(kind) or f"list of {_name(kind.__args__[0])}s"


def _read_toml(path, table):
    """The command's table of a TOML file; the other tables are checked too."""
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not a TOML file: {e}") from None
    for name, content in tables.items():
        if name not in TABLES or not isinstance(content, dict):
            raise UserError(f"{path}: '{name}' is not one of the tables {', '.join(TABLES)}")
        for key, value in content.items():
            where = f"{path}, [{name}]"
            kind = _field(TABLES[name], key, where).type
            if kind is float and type(value) is int:
                content[key] = value = float(value)
            item = getattr(kind, "__args__", [None])[0]
            good = all(type(v) is item for v in value) if item and type(value) is list else type(value) is kind
            if not good:
                raise UserError(f"{where}: {key} = {value!r} is not a {_name(kind)}")
    return tables.get(table, {})


def read_utf8(path, mark=""):
    """The text of a file, line ends as they are. Raises: UserError naming the row of bad UTF-8.

    mark: what to have in the place of a byte order mark; offsets of brat count it.
    """
    content = Path(path).read_bytes()
    try:
        text = content.decode("utf-8")
        return mark + text[1:] if text[:1] == "\ufeff" else text
    except UnicodeDecodeError as e:
        row = content[: e.start].count(b"\n") + 1
        raise UserError(f"{path}, row {row}: not UTF-8; convert the file") from None


def write_atomic(path, write):
    """Calls write(file) on a file beside `path`, flushes it to disk, then renames it to `path`."""
    path = Path(path)
    beside = path.with_name(path.name + ".tmp")
    try:
        with open(beside, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, path)
    except (OSError, RuntimeError) as e:  # torch.save wraps a full disk in a RuntimeError
        beside.unlink(missing_ok=True)
        why = getattr(e, "strerror", None) or f"is the disk full? ({e})"
        raise UserError(f"{path}: cannot be written: {why}") from None
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def progress(what, total, unit=""):
    """A tqdm bar on a terminal, nothing elsewhere. total: a number, or something to iterate over."""
    options = {"desc": what, "disable": None, "leave": False, "dynamic_ncols": True}
    if isinstance(total, int):
        return tqdm(total=total, unit=unit or "it", unit_scale=True, **options)
    return tqdm(total, **options)


def run(main):
    """Runs a command: a UserError becomes one line on stderr (from the first rank of each node) and exit status 1.

    torchrun ends with a long report of its own; each rank leaves the line in a file that this report shows last.
    """
    if sys.stdout:  # a terminal or locale that lacks a letter, or a file name that is not UTF-8, ends no command
        sys.stdout.reconfigure(errors="replace")
    name = Path(sys.argv[0]).name
    try:
        main(sys.argv[1:])
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (UserError, OSError, SystemExit) as e:  # OSError: a disk that is full, a folder that may not be written to
        line = e.code if isinstance(e, SystemExit) else f"{name}: error: {e}"
        report = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if report and isinstance(line, str):
            message = {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}
            with contextlib.suppress(OSError):
                Path(report).write_text(json.dumps({"message": message}))
        sys.exit(1 if isinstance(e, UserError | OSError) and os.environ.get("LOCAL_RANK", "0") != "0" else line)
    except KeyboardInterrupt:
        sys.exit(130)
