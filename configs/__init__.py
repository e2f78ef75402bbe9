"""The settings of the paper's programs.

    python kgi.py configs/v1-fr.toml --epochs 2 --lr 1e-4
    python data.py build --lang fr --umls 2022AB --e3c E3C-Corpus

Every setting has a default here, which is the paper's number if there is one. The command's table in a TOML file
overrides it, a later file overrides an earlier one, and the command line overrides all. Each value is checked against
its type, range and choices. After the command, arguments and settings may come in any order. Programs of beyond/ keep
their settings themselves, and read them from the command line alone.
"""

import dataclasses
import os
import re
import signal
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


class UserError(Exception):
    """An error that the user can correct: shown as a short message, without a traceback."""


ROOT, CALLED = Path(__file__).resolve().parents[1], Path(sys.argv[0]).resolve()


def end_quietly(*_):
    """Ends a program at Ctrl-C, as programs.run_command does."""
    os._exit(130)


def program_name():
    """The program as it was called, for usage and errors: kgi.py, or python -m beyond.link."""
    path = Path(sys.argv[0])
    return f"python -m beyond.{path.stem}" if path.parent.name == "beyond" else path.name


def missing_environment():
    """What this Python lacks to run the programs, and what to do about it; "" if nothing."""
    setup = "make setup; " * (not Path(ROOT, ".venv", ".ready").exists()) + "source .venv/bin/activate"
    if sys.version_info < (3, 11):  # noqa: UP036
        return f"Python 3.11 or later is needed, and this is {sys.version.split()[0]}; first: {setup}"
    packages = ("torch", "tokenizers", "numpy", "pyarrow", "seqeval", "sklearn", "tqdm")
    missing = [name for name in packages if not find_spec(name)]
    return f"{sys.executable} has no {', '.join(missing)}; first: {setup}" if missing else ""


# The programs import this module first. What they import after it takes seconds, and Ctrl-C ended in a traceback there;
# so did a Python without the packages.
is_program = CALLED.suffix == ".py" and CALLED.parent in (ROOT, ROOT / "beyond")
if is_program and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end_quietly)
# Commands of the four files that are programs of their own since: {program: {command: the new one}}.
MOVED = {
    "data.py": {"dictionary": "export dictionary", "ids": "export ids"},
    "kgi.py": {"evaluate": "evaluate", "map": "evaluate map", "link": "link", "plot": "plot"},
    "finetune.py": {"tag": "tag", "check": "check"},
    "model.py": {"embed": "embed"},
}

if is_program and (fault := missing_environment()):
    sys.exit(f"{program_name()}: error: {fault}")
if is_program and (program := MOVED.get(CALLED.name, {}).get("".join(sys.argv[1:2]))):
    line = f"this is a program of its own now: python -m beyond.{program} {' '.join(sys.argv[2:])}".rstrip()
    sys.exit(f"{program_name()}: error: {line}")

# OpenMP reads it as torch is imported. Its threads wait in a loop, which beside another program costs most of the speed
# (docs/measurements.md, "A busy machine").
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# PyTorch reads it with the first memory of a GPU. Micro-batches differ in size, and fixed segments would leave gaps.
if "PYTORCH_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def setting(default, help, group="", least=0, most=10**15, choices=()):
    """A field: its default, its line of --help and the topic it is grouped under, its range or its choices."""
    metadata = {"help": help, "group": group, "least": least, "most": most, "choices": choices}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def argument(name, help, many=False, optional=False):
    """A field that is given by its place on the command line, not by --key; an optional one is "" by default."""
    metadata = {"help": help, "argument": name, "many": many, "optional": optional}
    return dataclasses.field(metadata=metadata, **{"default": ""} if optional else {})


# "Semantic types related to human biology and medicine" (appendix A.1). The paper does not list them; this is our
# reading: whole groups, then single types of the mixed groups. Concepts such as qualifiers (T169, T079, T080 ...) stay,
# or the AQ and QB relations would have nothing to point to.
SEMANTIC_TYPES = (
    "ANAT CHEM DEVI DISO GENE PHEN PHYS PROC "
    "T169 T080 T081 T079 T082 "  # CONC: functional, qualitative, quantitative, temporal, spatial
    "T004 T005 T007 T194 T016 T096 T097 T098 T099 T100 T101 "  # LIVB: microbes and people
    "T053 T054 T055 T167 T168 T091 T093"  # behaviour, substance, food, discipline, health care
).split()
MAX_SEQ_LEN = 16_384  # beyond what any BERT has positions for
PRECISIONS, DEVICES, POOLINGS = ("auto", "bf16", "fp16", "fp32"), ("auto", "cuda", "cpu"), ("cls", "mean")
ARCHITECTURES = ("distilbert", "modernbert")  # of encoders from scratch: families of checkpoints
RELATIONS = ("paper", "rela")  # of a graph
WINDOWS, LAYOUTS, SWITCHES = ("random", "first"), ("auto", "padded", "packed"), ("auto", "on", "off")


class Settings:
    """What command_line.parse also says of the settings of a command."""

    files = ()  # the TOML files that were given
    given = frozenset()  # the names of the settings that they or the command line set
    tables = {}  # {name of a table: {setting: value}} of these files, those of other commands too


@dataclass
class Data(Settings):
    """Build a data set from a UMLS release and clinical text."""

    lang: str = setting("", "en, fr ... (or a UMLS code such as FRE), several (en,it), or multi (en,fr,es)", "sources")
    umls: str = setting("", "folder or zip of a UMLS release; default $UMLS or ./umls", "sources")
    e3c: str = setting("", "folder of the E3C corpus; default $E3C or ./E3C-Corpus; none: no documents", "sources")
    text: str = setting("", "other documents: a file with one a line, a .jsonl, or a folder of .txt files", "sources")
    exclude: str = setting("", "leave out documents of these corpora: folders or files, ':' between", "sources")
    e3c_layers: list[str] = setting(["3"], "E3C layers to read (Table 1 counts layer 3)", "sources")
    semantic_types: list[str] = setting(SEMANTIC_TYPES, "TUIs or semantic groups that are kept", "sources")
    sources: list[str] = setting([], "read only these sources of the release (SAB: SNOMEDCT_US MSH ...)", "sources")
    exclude_sources: list[str] = setting([], "read the release without these sources", "sources")
    semgroups: str = setting("", "another SemGroups.txt than the one in configs/", "sources")
    keep_duplicates: bool = setting(False, "count a text each time it occurs, as Table 1 seems to", "sources")
    skip_bad_rows: bool = setting(False, "count malformed and missing rows instead of stopping", "sources")
    out: str = setting("", "where the data set goes; default datasets/<lang>[-rela][-<tokenizer>]", "output")
    relations: str = setting("paper", "the paper's seven, or rela: RO too, and finer names", "graph", choices=RELATIONS)
    n_rela: int = setting(32, "with rela: number of finer names (REL:RELA), most frequent first", "graph", most=10_000)
    seed: int = setting(0, "seed of every random choice of the build", "output", most=2**32)
    tc_examples: int = setting(200_000, "triple-classification examples a language (Table 1)", "sizes", most=10**9)
    ep_examples: int = setting(100_000, "entity-prediction examples a language (Table 1)", "sizes", most=10**9)
    lp_paths: int = setting(100_000, "link-prediction paths a language (Table 1)", "sizes", most=10**6)
    valid_fraction: float = setting(0.05, "share of concept pairs and documents held out", "sizes", 1e-6, most=0.5)
    max_relations: int = setting(10, "relations of the longest path", "sizes", least=2, most=50)
    seq_len: int = setting(256, "tokens of the longest sequence (Table 8)", "tokens", least=16, most=MAX_SEQ_LEN)
    windows: str = setting("random", "part of a long document: new each epoch, or first", "tokens", choices=WINDOWS)
    tokenizer: str = setting("", "folder of a checkpoint whose tokenizer to use; default: train one", "tokens")
    vocab_size: int = setting(30_522, "entries of a trained vocabulary (DistilBERT's)", "tokens", 100, most=10**6)
    cased: bool = setting(True, "keep upper case in a trained vocabulary (accents always stay)", "tokens")


@dataclass
class Show:
    """Print the tables of a data set, and examples of each task as the model sees them."""

    dataset: str = argument("DATASET", "a folder that 'data.py build' wrote")


@dataclass
class Train(Settings):
    """Pre-train an encoder; defaults are the paper's v1 numbers (Table 8) but for warmup and clip."""

    data: str = setting("", "data set folder; default: the only one in datasets/ (with init: of its tokenizer)", "run")
    out: str = setting("", "run folder; default runs/kgi-<name of the data folder>", "run")
    init: str = setting("", "start from the weights (and sizes) of this checkpoint folder", "run")
    seed: int = setting(0, "seed of weights, order, masks and dropout", "run", most=2**32)
    family: str = setting("distilbert", "architecture of a new encoder", "encoder", choices=ARCHITECTURES)
    layers: int = setting(12, "encoder layers (v1 12, v2 8)", "encoder", least=1, most=1000)
    heads: int = setting(12, "attention heads (v1 12, v2 8)", "encoder", least=1, most=1000)
    dim: int = setting(768, "hidden size", "encoder", least=1, most=2**14)
    ffn: int = setting(3072, "feed-forward size", "encoder", least=1, most=2**16)
    dropout: float = setting(
        0.1, "dropout of embeddings, attention and both sub-layers; default of modernbert: 0", "encoder", most=0.99
    )
    tasks: list[str] = setting([], "tasks to train (Table 6 leaves one out); default: mlm ep lp tc", "objective")
    alphas: list[float] = setting([], "weights of the tasks after MLM; default: as in section 4.1", "objective")
    mlm_probability: float = setting(0.15, "share of document tokens to predict (Table 8)", "objective", most=1)
    epochs: float = setting(64.0, "passes over the training examples", "schedule", least=1e-6)
    steps: int = setting(0, "optimizer steps; overrides epochs when above 0", "schedule")
    time_budget: str = setting("", "time for the whole run, such as 24h or 90m; overrides epochs", "schedule")
    batch_size: int = setting(1500, "effective batch, over all micro-batches and ranks", "schedule", 1, most=10**6)
    lr: float = setting(7.5e-4, "peak of the triangular schedule", "schedule")
    warmup: float = setting(0.5, "steps up to the peak (Table 8: 10,770); below 1: a share of the run", "schedule")
    weight_decay: float = setting(0.01, "AdamW weight decay (torch's default)", "schedule")
    clip: float = setting(1.0, "largest gradient norm (not in the paper); 0: no clipping", "schedule")
    max_tokens: int = setting(0, "tokens of a micro-batch; 0: what fits the GPU, 2048 on CPU", "machine", most=10**7)
    precision: str = setting("auto", "number format of the matrix products", "machine", choices=PRECISIONS)
    device: str = setting("auto", "where to run", "machine", choices=DEVICES)
    layout: str = setting("auto", "one example a row, or several; auto: packed on a GPU", "machine", choices=LAYOUTS)
    compile: str = setting("auto", "torch.compile; auto: if packed, on capability 8.0+", "machine", choices=SWITCHES)
    valid_every: int = setting(0, "steps between validations; 0: once an epoch", "output")
    valid_examples: int = setting(2000, "examples of validations before the last, which has all", "output", least=1)
    save_every: int = setting(0, "steps between checkpoints; 0: at each validation", "output")
    save_minutes: float = setting(10.0, "minutes after which a checkpoint is written in any case; 0: never", "output")
    log_every: int = setting(10, "steps between lines of metrics.jsonl", "output", least=1)


@dataclass
class Finetune(Settings):
    """Fine-tune a checkpoint on a corpus in one pass and score it (section 4.2).

    For a run folder, the training settings that are not given are those of [finetune] in the run's config.
    """

    checkpoint: str = argument("CHECKPOINT", "run folder, or folder of another checkpoint")
    corpus: str = setting("custom", "a name of 'finetune.py list'; custom: your own (CoNLL, brat, parquet)", "corpus")
    data: str = setting("", "folder of the corpus", "corpus")
    labels: str = setting("", "column of tags, if the corpus is from the hub and has several", "corpus")
    out: str = setting("", "results folder; default results/<checkpoint>/<corpus>", "run")
    runs: int = setting(1, "seeds, each from the same checkpoint", "run", least=1, most=10**4)
    seed: int = setting(0, "first seed", "run", most=2**32)
    untrained: bool = setting(False, "initialise the encoder randomly: the control without pre-training", "run")
    epochs: int = setting(1, "passes over the training split (1 is one-shot)", "training", least=1)
    batch_size: int = setting(4, "windows an update (a short sequence is one window)", "training", least=1, most=10**6)
    lr: float = setting(2e-5, "learning rate", "training")
    weight_decay: float = setting(0.01, "AdamW weight decay", "training")
    max_len: int = setting(0, "tokens of a window; 0: the checkpoint's positions, at most 512", "training")
    precision: str = setting("auto", "number format of the matrix products", "machine", choices=PRECISIONS)
    device: str = setting("auto", "where to run", "machine", choices=DEVICES)


@dataclass
class ListCorpora:
    """List the corpora, their licences, and what their folders must hold."""


@dataclass
class Tables:
    """Write all results as the paper's tables, in Markdown."""

    results: str = setting("results", "folder of the results; the tables are written there")
    paper: bool = setting(False, "show the paper's figures in brackets")


TABLES = {"data": Data, "train": Train, "finetune": Finetune}  # of a TOML file


# ---------------------------------------------------------------- how long a training is


def count_steps(s, n_examples):
    """Optimizer steps of a training without a time budget. s: Train. n_examples: of the training split."""
    return s.steps or max(1, round(s.epochs * n_examples / s.batch_size))


def budget_seconds(text):
    """Seconds of a length of time such as 24h, 1h30m, 90m or 45s. Raises: UserError."""
    match = re.fullmatch(r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", text)
    total = sum(int(n or 0) * unit for n, unit in zip(match.groups(), (86400, 3600, 60, 1))) if match else 0
    if not 0 < total < 1e8:
        raise UserError(f"time_budget = '{text}' is not a length of time such as 24h, 1h30m or 90m")
    return total


def warmup_steps(s, steps):
    """Steps up to the peak; a setting below 1 is a share of the run."""
    return s.warmup if s.warmup >= 1 else max(1.0, s.warmup * steps)


def check_schedule(s, steps, n_examples):
    """Raises UserError if a run would end before its learning rate has reached the peak."""
    if warmup_steps(s, steps) >= steps > 1:
        length = f"{s.epochs:g} epochs of {n_examples:,} examples"
        length = f"in {s.time_budget}" if s.time_budget else f"steps = {s.steps}" if s.steps else length
        what = f"warmup = {s.warmup:g} steps, but the run has only {steps} ({length})"
        raise UserError(f"{what}; give a share, such as --warmup 0.5")
