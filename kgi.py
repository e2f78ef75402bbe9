"""Pre-training: one encoder on several tasks with one mixed cross-entropy (paper, sections 3.1 and 4.1).

    python kgi.py                                            the only data set under datasets/
    python kgi.py configs/v1-fr.toml
    torchrun --nproc_per_node 4 kgi.py configs/v1-fr.toml --precision fp16
    torchrun --nproc_per_node 4 kgi.py configs/drbert-fr.toml --init DrBERT-4GB
    torchrun --nproc_per_node 2 kgi.py --data datasets/es --layers 6 --heads 6 --dim 384 --ffn 1536
    python kgi.py configs/v1-fr.toml --time_budget 24h --tasks mlm ep lp --out runs/no-triples
    sbatch configs/slurm.sh configs/v1-fr.toml               several nodes, requeued until the run is done
    python kgi.py evaluate runs/kgi-fr [OTHER ...]           what they know of held-out pairs, and of synonyms
    python kgi.py map runs/kgi-fr                            a picture of its terms by semantic group
    python kgi.py link runs/kgi-en < mentions.txt            the concepts that mentions are nearest to
    python kgi.py link runs/kgi-en --corpus NCBI-Disease --ids ids.tsv    how often these are the right ones
    python kgi.py plot runs/kgi-fr runs/kgi-es               their curves as one picture

Each step takes one effective batch: the same examples with the same masks, whatever the number of ranks and the size of
the micro-batches. These decide the speed, and which units dropout drops. The same command run again resumes from the
last checkpoint. At SIGTERM, SIGUSR1 or Ctrl-C it drops the unfinished step, saves the last finished one, and exits with
status 75. A run folder holds metrics.jsonl, the last two checkpoints, and the model.
"""

import configs  # isort: split

import json
import math
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import data
import model as models
from configs import UserError, check_schedule, warmup_steps
from data import PAPER_TASKS, TASK_NAMES, TASKS
from support import checkpoints, hardware, linking, reports, retrieval, runs, tokenizers, umls
from support.arrays import splitmix64
from support.datasets import (
    RUN_FILE,
    data_of_run,
    find_data,
    has_tokenizer_of,
    how_to_build,
    read_manifest,
    read_tokenizer,
    tokenizer_of,
    write_run,
)  # fmt: skip
from support.files import (
    append_line,
    folder_lock,
    is_out_of_memory,
    made_folder,
    name_of,
    progress,
    run_command,
    write_atomic,
    write_json,
)  # fmt: skip
from support.results import check_results_file

VALID_EPOCH = 2**32 - 1  # validation always uses the masks of this epoch, which training never reaches
VALID_MFU = 0.3  # what a validation makes of the speed of matrix products, to say beforehand how long it may take
VALID_SHARE = 0.03  # of the time between validations that one may take, unless valid_examples says otherwise
MIN_VALID_EXAMPLES = 1000  # whatever they cost: fewer say too little
MAY_CHANGE_ON_RESUME = (
    "data", "out", "init", "micro_tokens", "device", "layout", "compile", "valid_every", "valid_examples", "save_every",
    "save_minutes", "log_every",
)  # fmt: skip
VALID_PAIRS = 128  # pairs of names in a batch of a validation
MAX_PADDING = {"cpu": 64, "cuda": 1024}  # tokens of padding in a rectangle (docs/measurements.md)
ROW_MULTIPLE = {"cpu": 8, "cuda": 1}  # of packed rows: a CPU compiles its products for each new shape
MAX_OVERFLOWS = 20  # a run ends after so many fp16 overflows in a row, each of which halves the loss scale
EXIT_REQUEUE = 75  # exit status after a signal: "try again later" (EX_TEMPFAIL of sysexits.h)
MAX_SPELLED = 50_000  # terms that are also compared by their trigrams of letters: it takes 16 kB each


# ---------------------------------------------------------------- the objective and its schedule (section 4.1)


def alphas(n):
    """Weights of the tasks after MLM: alpha_i = sum_{j != i} n_j / (2 sum_k n_k), n_k examples of each task.

    The more examples a task has, the less each counts. The paper's sums run from 0 to 3 but speak of "each UMLS-based
    task": over those three alone the alphas sum to 1, the weight of MLM, as "the same weighting" asks. The 2 is the
    number of tasks less one. So it also holds for an ablation, which has two tasks; a task alone has the weight 1.

    Args: n: training examples of each task, 0 for a task that is left out.
    """
    total, n_other_tasks = sum(n), sum(x > 0 for x in n) - 1
    return [(total - x) / (n_other_tasks * total) if n_other_tasks > 0 and x else float(x > 0) for x in n]


def coefficients(s, manifest):
    """(tasks,) float32: the coefficients of equation (2), 1 for MLM and the alphas; 0 for a task that is left out."""
    counts, after_mlm = [c["train"] for c in manifest["counts"].values()], [x for x in s.tasks if x != "mlm"]
    n = [sum(c.get(name, 0) for c in counts) for name in after_mlm]
    if s.alphas and len(s.alphas) != len(n):
        raise UserError(f"alphas = {s.alphas}: there must be {len(n)}, for {', '.join(after_mlm).upper()}")
    weights = dict(zip(after_mlm, s.alphas or alphas(n))) | {"mlm": 1.0}
    if not any(weights[name] for name in s.tasks if any(c.get(name) for c in counts)):
        raise UserError(f"alphas = {s.alphas}: no task has a weight, so nothing would be trained")
    return torch.tensor([weights.get(name, 0.0) for name in TASK_NAMES])


def learning_rate(step, steps, warmup, peak):
    """The triangle of appendix B: "increases from zero over the warmup period ... before decaying linearly".

    Neither end is 0, or its step would do nothing: the first has peak / warmup, the last peak / (steps - warmup).

    Args: step: 0 to steps - 1. warmup: steps up to the peak.
    """
    return peak * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def check_targets(s, steps, train):
    """Raises UserError if a run of MLM alone is to have no target. Other tasks have one or more in each example."""
    tokens = np.minimum(np.diff(train.offsets)[train.rows], train.seq_len - 2).mean()
    expected = s.mlm_probability * tokens * s.batch_size * steps
    if s.tasks == ["mlm"] and expected < 1:
        raise UserError(
            f"mlm_probability = {s.mlm_probability:g}: only {expected:.2g} targets are to be expected in {steps:,} "
            "steps of MLM alone; give a larger one"
        )


# ---------------------------------------------------------------- the parts of a run


class Batches:
    """Effective batches, masked and laid out for this rank; a thread assembles the next one meanwhile.

    EpochSampler chooses the examples of a step, whatever their task. PretrainingDataset.masked_batch masks them.
    micro_batches lays out this rank's share, and tensors makes the arguments of the model.
    """

    def __init__(self, s, dataset, ranks, micro_tokens):
        self.dataset, self.ranks, self.s = dataset, ranks, s
        self.sampler = data.EpochSampler(len(dataset), s.batch_size, s.seed)
        on_gpu = ranks.device.type == "cuda"
        self.packed = s.layout == "packed" or (s.layout == "auto" and on_gpu)
        self.micro_tokens, self.max_padding = micro_tokens, MAX_PADDING[ranks.device.type]
        self.row_multiple = ROW_MULTIPLE[ranks.device.type]
        # A thread begins on the first GPU, where pinned memory would open a context for every rank.
        gpu = {"initializer": torch.cuda.set_device, "initargs": (torch.cuda.current_device(),)} if on_gpu else {}
        self.thread, self.prefetched = ThreadPoolExecutor(1, **gpu), {}

    def get(self, step):
        """(micro-batches as arguments of KGIBert.forward, the whole MaskedBatch) of effective batch `step`."""
        now = self.prefetched.pop(step, None) or self.thread.submit(self.assemble, step)
        self.prefetched = {step + 1: self.thread.submit(self.assemble, step + 1)}
        return now.result()

    def assemble(self, step):
        positions, epochs = self.sampler(step)
        batch = self.mask(self.dataset, self.dataset.rows[positions], epochs)
        return self.lay_out(batch), batch

    def mask(self, dataset, rows, epochs):
        return dataset.masked_batch(rows, epochs, self.s.seed, self.s.mlm_probability)

    def micro_batches(self, batch):
        """This rank's share of a MaskedBatch, as data.MicroBatches of the layout that suits the device."""
        share = self.ranks.rank, self.ranks.world
        if not self.packed:
            return data.rectangles(batch, self.micro_tokens, self.max_padding, *share)
        row_length = -(-self.dataset.seq_len // 8) * 8  # what attention kernels like
        return data.packed_rows(batch, self.micro_tokens, row_length, self.row_multiple, *share)

    def lay_out(self, batch):
        """Arguments of KGIBert.forward. Names to be aligned have micro-batches of their own, for align_names."""
        pin, parts = self.ranks.device.type == "cuda", [batch]
        if len(batch.concepts_of_names):
            is_name = np.isin(np.arange(len(batch.length)), batch.target_example[batch.target_task == data.SA])
            parts = [batch.select(examples) for examples in (is_name, ~is_name) if examples.any()]
        return [tensors(micro, pin) for part in parts for micro in self.micro_batches(part)]


def tensors(micro, pin):
    """A data.MicroBatch as the arguments of KGIBert.forward. pin: a GPU copies pinned memory meanwhile."""
    segment = torch.from_numpy(micro.segment)
    is_packed = micro.position is not None
    mask = segment if is_packed else None if (segment > 0).all() else segment > 0
    position = torch.from_numpy(micro.position) if is_packed else None
    n_targets = np.bincount(micro.task, minlength=len(TASKS)).tolist()
    targets_per_task = [(task.head, n) for task, n in zip(TASKS, n_targets)]
    of_targets = torch.from_numpy(micro.target_index), torch.from_numpy(micro.label)
    out = torch.from_numpy(micro.ids), mask, *of_targets, targets_per_task, position
    return [x.pin_memory() if pin and isinstance(x, torch.Tensor) else x for x in out]


def to_device(arguments, device, compiled=False):
    """The arguments of KGIBert.forward there. compiled: of packed rows, so that one graph serves any number of them."""
    out = [x.to(device, non_blocking=True) if isinstance(x, torch.Tensor) else x for x in arguments]
    ids, mask, *_, position = out
    for x in (ids, mask, position) if compiled and position is not None else ():
        torch._dynamo.maybe_mark_dynamic(x, 0)
    return out


@dataclass
class TrainState:
    """Where a run is. A checkpoint holds this beside model, optimizer and scaler, and no more.

    The order, the masks and the dropout are functions of (seed, step, micro-batch, rank).
    """

    step: int = 0
    steps: int = 0  # of the whole run; 0: not yet known, with a time budget
    validated: int = 0  # the step of the last validation: one that a signal interrupted is made up for on resume
    skipped: int = 0  # fp16 steps whose gradients overflowed
    overflows: int = 0  # of them in a row, up to now
    compiled: bool = False  # whether the encoder was
    statistics: list = field(default_factory=list)  # since the last line of the log: sum of losses, correct, targets
    work: dict = field(default_factory=dict)  # since the last line of the log

    def begin_interval(self):
        """A line of the log was written: the next one counts from here."""
        self.statistics = np.zeros((len(TASKS), 3)).tolist()
        self.work = dict.fromkeys(("seconds", "tokens", "computed", "flops"), 0.0)


@dataclass
class Run:
    """What the functions below share."""

    s: configs.Train
    ranks: runs.Ranks
    out: Path
    train: data.PretrainingDataset
    valid: data.PretrainingDataset
    folder: Path  # of the data set
    tokenizer: bytes  # of the data set as it is now: it may be built again while the run goes on
    coefficients: torch.Tensor  # (tasks,), equation (2)
    model: models.KGIBert
    ddp: torch.nn.Module  # the model, or the model in DistributedDataParallel
    batches: Batches
    stop_signal: runs.StopSignal
    init: str | None  # a hash of the checkpoint that it started from
    pooling: checkpoints.Pooling  # of texts, as its files say to other libraries
    began: float
    present: list  # names of the tasks that the data set has examples of
    valid_every: int
    save_every: int
    budget: int | None  # seconds of --time_budget
    compiled: bool  # whether the encoder is
    state: TrainState = field(default_factory=TrainState)
    optimizer: torch.optim.Optimizer = None
    scaler: torch.amp.GradScaler = None
    saved: int = -1  # the step of the last checkpoint of this process
    saved_at: float = field(default_factory=time.monotonic)  # when, or when the run began
    matmul_flops: float = 0.0  # the best operations a second of all ranks so far, for the MFU
    matmul_measured: float = 0.0  # when
    fell_back: bool = False  # the last checkpoint on disk is damaged: not to be kept as the previous one

    def start_over(self):
        """A new optimizer and scaler, and step 0; the number of steps stays."""
        s, ranks = self.s, self.ranks
        self.optimizer = torch.optim.AdamW(self.model.parameters(), s.lr, weight_decay=s.weight_decay, fused=True)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=ranks.dtype == torch.float16)
        self.state = TrainState(steps=self.state.steps, compiled=self.compiled)
        self.state.begin_interval()


def set_up(s):
    """The Run of settings `s`, before its first step. Raises: UserError."""
    began, stop_signal = time.monotonic(), runs.StopSignal()
    ranks = runs.Ranks(s)
    folder = find_data(s.data, s.init, data.NEW_TOKENS)
    if not set(s.tasks) <= set(TASK_NAMES):
        raise UserError(f"tasks = {' '.join(s.tasks)}: choose some of {' '.join(TASK_NAMES)}")
    s.tasks = [name for name in TASK_NAMES if name in (s.tasks or PAPER_TASKS)]
    if s.time_budget and s.steps:
        raise UserError(
            f"time_budget = {s.time_budget} and steps = {s.steps}: give one of them (--steps 0 if a file has it)"
        )
    if "mlm" in s.tasks and not s.mlm_probability:
        raise UserError("mlm_probability = 0 leaves no target to MLM; leave mlm out of --tasks")
    budget = runs.budget_seconds(s.time_budget) if s.time_budget else None
    train, valid = (data.PretrainingDataset(folder, split, s.tasks) for split in data.SPLITS)
    tokenizer = read_tokenizer(folder)
    present = trained_tasks(train)
    absent = [name for name in s.tasks if name not in present]
    if not len(train) or "sa" in absent:
        hint = "; build it with --sa_pairs" if "sa" in absent else ""
        raise UserError(f"{folder} has no examples of {', '.join(absent)}{hint}")
    out = Path(s.out or Path("runs", f"kgi-{name_of(folder)}"))
    weights = coefficients(s, train.manifest)
    torch.manual_seed(s.seed)
    model, init = load_initial_model(s, train, folder, out, ranks) if s.init else (new_model(s, train, ranks), None)
    pooling = checkpoints.inherit_pooling(s.init, "sa" in s.tasks, ranks.print)
    model.to(ranks.device)
    compiled = configure_encoder(s, model.encoder, ranks)
    n_parameters = sum(p.numel() for p in model.parameters())
    micro_tokens = s.micro_tokens or hardware.auto_micro_tokens(model.encoder.config, n_parameters, ranks.device)
    epoch = max(1, round(len(train) / s.batch_size))
    run = Run(
        s, ranks, out, train, valid, folder, tokenizer, weights, model, ranks.wrap(model),
        Batches(s, train, ranks, micro_tokens), stop_signal, init, pooling, began, present,
        valid_every=s.valid_every or epoch, save_every=s.save_every or s.valid_every or epoch, budget=budget,
        compiled=compiled,
    )  # fmt: skip
    if not s.time_budget:
        run.state.steps = configs.count_steps(s, len(train))
        check_schedule(s, run.state.steps, len(train))
        check_targets(s, run.state.steps, train)
    run.start_over()
    return run


def configure_encoder(s, encoder, ranks):
    """Sets what makes the encoder faster on a GPU. Returns: whether it is compiled."""
    if s.bf16_stream:
        if ranks.dtype != torch.bfloat16:
            raise UserError("bf16_stream needs --precision bf16")
        encoder.stream_dtype = torch.bfloat16
    if not s.attention_dropout:
        encoder.config.attention_dropout = 0.0
        for layer in encoder.layers:
            layer.attention_dropout = 0.0
    on_gpu = ranks.device.type == "cuda"
    is_recent = on_gpu and torch.cuda.get_device_capability()[0] >= 8  # before, Triton falls back to slow code
    compiled = s.compile == "on" or (s.compile == "auto" and is_recent and s.layout != "rectangles")
    if compiled:
        encoder.compile()
    return compiled


def new_model(s, train, ranks):
    """A model initialised randomly, in the sizes of the settings."""
    pad = train.special["pad"]
    c = models.Config(train.manifest["vocab_size"], train.seq_len, s.dim, s.layers, s.heads, s.ffn, s.dropout, pad)
    check_size(c, ranks)
    model = models.KGIBert(c)
    c.extra_config["kgi_tasks"] = trained_tasks(train)
    return model


def load_initial_model(s, train, folder, out, ranks):
    """Supplementary training (section 4.1): the model of --init, with room for the tokens that it lacks.

    Returns: (model, a hash of its files). Raises: UserError if it does not fit the data set or the settings.
    """
    if Path(s.init).resolve() == out.resolve():
        raise UserError(f"--init and --out are both {s.init}; to resume that run leave --init as it was")
    c = models.load_config(s.init)
    # A size that equals the default passes as not given: the checkpoint's counts.
    for size in ("layers", "heads", "dim", "ffn"):
        if getattr(s, size) not in (getattr(configs.Train, size), getattr(c, size)):
            raise UserError(f"{size} = {getattr(s, size)}, but {s.init} has {getattr(c, size)}; leave it out")
    tokenizer = tokenizers.load(s.init, max_entries=c.vocab_size)
    if not has_tokenizer_of(s.init, folder, data.NEW_TOKENS):
        raise UserError(f"{folder} has another tokenizer than {s.init}; {how_to_build(s.init)}")
    if c.pad_token_id != train.special["pad"]:
        raise UserError(
            f"{s.init}: its config.json pads with token {c.pad_token_id}, its tokenizer with {train.special['pad']}"
        )
    if c.max_positions < train.seq_len:
        raise UserError(
            f"{s.init} has {c.max_positions} positions and {folder} sequences of up to {train.seq_len} tokens; "
            "build it with a smaller --seq_len"
        )
    check_size(c, ranks)
    model = models.load(s.init, s.dropout, log=ranks.print)
    new_ids = [i for i in (*train.special["relations"], train.special["hrel"]) if tokenizer.id_to_token(i) is None]
    models.resize_token_embeddings(model, new_ids, train.manifest["vocab_size"])
    extra, known = model.encoder.config.extra_config, c.extra_config.get("kgi_tasks", ())
    extra["kgi_tasks"] = [name for name in TASK_NAMES if name in trained_tasks(train) or name in known]
    return model, runs.digest([Path(s.init, "config.json"), *checkpoints.weight_files(s.init)])


def check_size(c, ranks):
    hardware.check_model_fits(sum(math.prod(shape) for shape in models.parameter_shapes(c).values()), ranks.device)


def trained_tasks(train):
    """Names of the tasks that a data set has examples of."""
    return [TASK_NAMES[index] for index in np.unique(train.task[train.rows]).tolist()]


# ---------------------------------------------------------------- the training loop


def train(s):
    """Trains to the end, or until a signal asks to stop."""
    run = set_up(s)
    lock = folder_lock(run.out, "another process is training into it; wait for it, or end it")
    try:
        with lock if run.ranks.is_first else nullcontext():
            resume(run)
            at_end = run.state.steps and run.state.step == run.state.steps  # steps is 0 if a time budget decides
            try:
                if not at_end or validation_is_due(run):
                    runs.check_exported(run.out)
                    begin(run)
                training_loop(run)
            except runs.Interrupted:  # on all ranks at once
                if run.state.steps and run.saved != run.state.step:
                    save_checkpoint(run)
            finish(run)
    except (RuntimeError, MemoryError) as e:
        if not is_out_of_memory(e):
            raise
        message = runs.out_of_memory_message(run.ranks.rank, run.batches.micro_tokens, run.train.seq_len)
        sys.exit(f"kgi.py: error: {message}")  # from whatever rank it is: the others do not know


def training_loop(run):
    """One step after another, until the last one. Raises: runs.Interrupted, on all ranks, if a signal asks to stop."""
    s, state, bar = run.s, run.state, progress_bar(run)
    first_step, loop_began = state.step, time.monotonic()
    if validation_is_due(run):  # a signal interrupted it
        log_validation(run, validate(run, validation_rows(run)))
        save_checkpoint(run)
    while state.step < state.steps:
        # Batch: the same examples whatever the layout, each masked by (seed, epoch, example).
        step_began = time.monotonic()
        micro_batches, batch = run.batches.get(state.step)

        # Forward and backward: equation (2), summed over micro-batches and ranks. A signal drops the step.
        sums = forward_backward(run, micro_batches, batch)

        # Update: AdamW at the learning rate of the triangle.
        lr = learning_rate(state.step, state.steps, warmup_steps(s, state.steps), s.lr)
        state.step += 1
        update(run, lr)
        stop, save_now = collect(run, sums, micro_batches, batch)
        state.work["seconds"] += time.monotonic() - step_began  # only now has a GPU done what it was given
        bar.update()

        # Log, validate and save, each at its interval and at the end.
        validate_now = validation_is_due(run)
        save_at_step = state.step == state.steps or state.step % run.save_every == 0
        if validate_now or save_at_step or state.step % s.log_every == 0:
            seconds_per_step = (time.monotonic() - loop_began) / (state.step - first_step)
            log_training(run, lr, eta=(state.steps - state.step) * seconds_per_step)
        if stop:
            raise runs.Interrupted
        if validate_now:
            log_validation(run, validate(run, validation_rows(run)))
        if save_at_step or save_now:
            save_checkpoint(run)
    bar.close()


def validation_is_due(run):
    """Whether a validation belongs to this step, at its interval and at the end, and has not been made."""
    state = run.state
    at_interval = state.step == state.steps or state.step % run.valid_every == 0
    return state.step > 0 and at_interval and state.validated != state.step


def stop_if_asked(run, is_last):
    """Raises runs.Interrupted on all ranks, if a signal came to any; called before each micro-batch of a pass.

    A rank that has its signal votes at once, the others before their last micro-batch. So each rank votes once a pass,
    and gradients are exchanged by all ranks or by none.
    """
    asked = run.stop_signal.number > 0
    if (asked or is_last) and run.ranks.all_reduce_sum([float(asked)])[0]:
        raise runs.Interrupted


def forward_backward(run, micro_batches, batch):
    """Gradients of equation (2) on one effective batch: L = L_MLM + a1 L_EP + a2 L_LP + a3 L_TC.

    The paper does not say over what it averages. Here the loss of a task is the sum over its targets, divided by their
    number in the whole effective batch. So a long sequence counts more than a short one, and it does not matter how the
    batch was cut into micro-batches and dealt to the ranks.

    Args: micro_batches: of this rank. batch: the whole MaskedBatch.
    Returns: (tasks, 2) float32, of this rank: summed loss and correct predictions.
    """
    ranks = run.ranks
    # DDP averages over the ranks; times world makes it the sum.
    scale = run.coefficients * ranks.world / torch.from_numpy(batch.targets_per_task).clamp(min=1)
    scale = scale.to(ranks.device, torch.float32)
    sums = torch.zeros(len(TASKS), 2, device=ranks.device)
    name_gradient = None
    if len(batch.concepts_of_names):
        name_gradient, sums[data.SA] = align_names(run, micro_batches, batch)
    for i, micro_batch in enumerate(micro_batches):
        is_last = i == len(micro_batches) - 1
        stop_if_asked(run, is_last)
        seed_dropout(run, i)
        exchange = nullcontext() if ranks.world == 1 or is_last else run.ddp.no_sync()
        with exchange:
            with hardware.autocast(ranks.device, ranks.dtype):
                loss_and_correct = run.ddp(*to_device(micro_batch, ranks.device, run.compiled), name_gradient)
            loss = (loss_and_correct[:, 0] * scale).sum()
            run.scaler.scale(loss).backward()
        sums += without_alignment(loss_and_correct.detach())
    return sums


def seed_dropout(run, i):
    """Before micro-batch i: its dropout is a function of (seed, step, micro-batch, rank)."""
    torch.manual_seed(int(splitmix64(run.s.seed, run.state.step, i, run.ranks.rank)) >> 1)


def without_alignment(loss_and_correct):
    """The results of KGIBert.forward without those of synonym alignment, which are not its loss."""
    loss_and_correct[data.SA] = 0
    return loss_and_correct


def align_names(run, micro_batches, batch):
    """Synonym alignment over an effective batch: the gradient of its loss at the vector of each name.

    This is beyond the paper; SapBERT trains on such pairs. The loss needs the vectors of all names of the effective
    batch, while memory holds one micro-batch. So the names are embedded twice: here, where only their vectors are kept,
    and in forward_backward, where the gradient at the vectors goes on into the encoder ("gradient caching", Gao et al.
    2021). Both passes have the same dropout. Neither micro-batches nor ranks change the result.

    Returns: ((names, dim) float32, (2,): summed loss and correct predictions of the names of this rank).
    """
    ranks, n_names = run.ranks, batch.targets_per_task[data.SA]
    vectors = torch.zeros(n_names, run.model.encoder.config.dim, device=ranks.device)
    is_mine = torch.zeros(n_names, dtype=torch.bool, device=ranks.device)
    for i, micro_batch in enumerate(micro_batches):
        *_, targets_per_task, _ = micro_batch
        if not targets_per_task[data.SA][1]:
            continue
        seed_dropout(run, i)
        ids, mask, target_index, label, _, position = to_device(micro_batch, ranks.device, run.compiled)
        # With gradients on, though they are not used: the same kernels and dropout as in the second pass.
        with hardware.autocast(ranks.device, ranks.dtype):
            found = run.model.logits(ids, mask, target_index, targets_per_task, position)[data.SA].detach()
        vectors[label], is_mine[label] = found, True
    vectors = ranks.sum_tensor(vectors).requires_grad_()
    with torch.enable_grad():
        loss, correct = models.alignment_loss(vectors, batch.concepts_of_names, run.s.temperature)
        (gradient,) = torch.autograd.grad(loss.sum(), vectors)
    mine = torch.stack([loss.detach()[is_mine].sum(), correct[is_mine].sum()])
    return gradient, mine


def update(run, lr):
    """Clips the gradients and takes one step of AdamW. A step whose gradients overflow fp16 is skipped and counted."""
    state = run.state
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.scaler.unscale_(run.optimizer)
    if run.s.clip:
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.s.clip)
    scale_before = run.scaler.get_scale()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    overflow = run.scaler.get_scale() < scale_before
    state.skipped += overflow
    state.overflows = state.overflows + 1 if overflow else 0
    if state.overflows == MAX_OVERFLOWS:
        stop_diverged(
            run, f"the gradients overflowed fp16 {MAX_OVERFLOWS} times, in the end scaled by {scale_before:g}"
        )


def collect(run, sums, micro_batches, batch):
    """Adds one step to the statistics of the log, the same on all ranks.

    Returns: (whether a rank was asked to stop, whether the time between checkpoints is over).
    """
    state = run.state
    computed = sum(ids.numel() for ids, *_ in micro_batches)
    stop = run.stop_signal.number > 0
    save_now = run.ranks.is_first and time.monotonic() - run.saved_at > 60 * run.s.save_minutes > 0
    *sums, computed, stop, save_now = run.ranks.all_reduce_sum([*sums.flatten().tolist(), computed, stop, save_now])
    statistics = np.column_stack([np.reshape(sums, (len(TASKS), 2)), batch.targets_per_task])
    if not math.isfinite(loss := summarise(run, statistics).get("loss", 0.0)):
        stop_diverged(run, f"the loss is {loss}")
    state.statistics = (np.array(state.statistics) + statistics).tolist()
    vocabulary_targets = sum(n for task, n in zip(TASKS, batch.targets_per_task) if task.head == "mlm_head")
    state.work["flops"] += hardware.training_flops(run.model.encoder.config, batch.length, vocabulary_targets)
    state.work["tokens"] += int(batch.length.sum())
    state.work["computed"] += computed
    return stop > 0, save_now > 0


def summarise(run, statistics):
    """(tasks, 3) sums over all ranks -> {"loss": equation (2), "mlm_loss": .., "mlm_accuracy": .., ...}.

    A task without targets is left out; without any target there is no loss.
    """
    out = {"loss": 0.0}
    for name, weight, (loss, correct, n) in zip(TASK_NAMES, run.coefficients.tolist(), np.asarray(statistics).tolist()):
        if n:
            out |= {f"{name}_loss": loss / n, f"{name}_accuracy": correct / n}
            out["loss"] += weight * loss / n
    return out if len(out) > 1 else {}


def validation_rows(run):
    """The examples of a validation: all of the split after the last step, before it always the same subset.

    The split is in the order of languages, tasks and kinds, so that every k-th example has them in their shares.
    """
    rows = run.valid.rows
    # A training step costs about three times the forward pass that a validation makes.
    interval = run.valid_every if run.budget else min(run.valid_every, run.state.steps)
    default = max(MIN_VALID_EXAMPLES, round(3 * VALID_SHARE * interval * run.s.batch_size))
    is_last = run.state.steps and run.state.step == run.state.steps
    n = len(rows) if is_last else min(len(rows), run.s.valid_examples or default)
    return rows[np.linspace(0, len(rows) - 1, n).round().astype(int)] if n else rows


def validation_batches(run, rows):
    """Rows of the validation split in batches.

    Pairs of names come in batches of their own, of one size and in a seeded order, and the rest of them is left out. So
    the loss of synonym alignment, which depends on the other names of a batch, is the same whatever the other settings.
    """
    is_pair = run.valid.task[rows] == data.SA
    pairs, others = np.random.default_rng(0).permutation(rows[is_pair]), rows[~is_pair]
    n_pairs = len(pairs) // VALID_PAIRS * VALID_PAIRS or len(pairs)
    out = [np.split(others, range(run.s.batch_size, len(others), run.s.batch_size))] if len(others) else []
    out += [np.split(pairs[:n_pairs], range(VALID_PAIRS, n_pairs, VALID_PAIRS))] if n_pairs else []
    return [batch for batches in out for batch in batches]


@torch.no_grad()
def validate(run, rows=None):
    """Loss and accuracy of each task over the validation split (or some rows of it), as summarise gives them.

    Raises: runs.Interrupted, on all ranks, if a signal asks to stop.
    """
    rows = run.valid.rows if rows is None else rows
    run.model.eval()
    sums, counts = torch.zeros(len(TASKS), 2, device=run.ranks.device), np.zeros(len(TASKS))
    batches = validation_batches(run, rows)
    for some in progress("validation", batches) if run.ranks.is_first else batches:
        batch = run.batches.mask(run.valid, some, np.full(len(some), VALID_EPOCH))
        counts += batch.targets_per_task
        micro_batches = run.batches.lay_out(batch)
        if len(batch.concepts_of_names):
            sums[data.SA] += align_names(run, micro_batches, batch)[1]
        for i, micro_batch in enumerate(micro_batches):
            stop_if_asked(run, i == len(micro_batches) - 1)
            with hardware.autocast(run.ranks.device, run.ranks.dtype):
                arguments = to_device(micro_batch, run.ranks.device, run.compiled)
                sums += without_alignment(run.model(*arguments))
    run.model.train()
    sums = run.ranks.all_reduce_sum(sums.flatten().tolist())
    return summarise(run, np.column_stack([np.reshape(sums, (len(TASKS), 2)), counts]))


def stop_diverged(run, what):
    """Ends a run whose numbers are no longer finite. Its last checkpoint stays."""
    path = run.out / runs.CHECKPOINT
    kept = f"{path} is the last checkpoint" if path.exists() else "there is no checkpoint yet"
    raise UserError(
        f"step {run.state.step:,}: {what}; {kept}. Try a lower --lr or --precision fp32, with another --out"
    )


# ---------------------------------------------------------------- before and after the loop


def begin(run):
    """Prints what the run is, validates before the first step, and finds out the steps that a time budget allows."""
    s, ranks, state = run.s, run.ranks, run.state
    run.matmul_flops = ranks.world * hardware.measure_matmul_flops(ranks.device, ranks.dtype)
    run.matmul_measured = time.monotonic()
    size = sum(p.numel() for p in run.model.parameters())
    weights = " ".join(f"{name} {w:.3f}" for name, w in zip(TASK_NAMES, run.coefficients.tolist()) if name in s.tasks)
    ranks.print(f"{run.out}: {size:,} parameters, {len(run.train):,} examples, weights {weights}")
    ranks.print(
        f"{ranks.world} x {ranks.device.type} {str(ranks.dtype or torch.float32)[6:]}, "
        f"{run.matmul_flops / 1e12:.3g} TFLOP/s, micro-batches of {run.batches.micro_tokens:,} tokens"
    )
    if ranks.world > 1 or run.compiled:
        warm_up(run)
    if state.step and state.compiled != run.compiled:
        now, before = ("", "not ") if run.compiled else ("no longer ", "")
        ranks.print(f"the encoder is {now}compiled, and was {before}up to here: dropout masks differ from here on")
    state.compiled = run.compiled
    if state.step == 0:
        announce_validation(run)
        log_validation(run, validate_first(run) if state.steps else fit_steps_to_budget(run))
    steps = f"training steps {run.state.step:,} to {run.state.steps:,}, {s.batch_size:,} examples each"
    ranks.print(steps if run.state.step < run.state.steps else "the last validation is made up for")


def announce_validation(run):
    """A line before the first validation, which can take minutes: a log file shows no progress bar."""
    rows = validation_rows(run)
    length = np.minimum(np.diff(run.valid.offsets)[rows], run.valid.seq_len)
    flops = hardware.training_flops(run.model.encoder.config, length, 0.15 * length.sum()) / 3  # forward alone
    seconds = flops / (VALID_MFU * run.matmul_flops)
    of_tokens = "; the accuracy of ep is of tokens" if "ep" in run.s.tasks else ""
    what = f"{len(rows):,} held-out examples before the first step"
    run.ranks.print(f"validation: {what}, in about {max(1, seconds):.0f} s{of_tokens}")


def validate_first(run):
    """The validation before the first step. Prints what validations of this run cost."""
    rows, n, began = validation_rows(run), len(run.valid), time.monotonic()
    validation = validate(run, rows)
    seconds = time.monotonic() - began
    last = "" if len(rows) == n else f"; all {n:,} at the end, in about {seconds * n / max(1, len(rows)):.0f} s"
    run.ranks.print(f"validation: took {seconds:.1f} s, every {run.valid_every:,} steps{last}")
    return validation


def warm_up(run):
    """Compiles the encoder, and makes two passes whose gradients are thrown away, before anything is measured.

    At the beginning of its second pass DistributedDataParallel orders its buckets again, and the order decides how sums
    over three or more ranks are rounded. Without this the first step of a resumed run would differ from that of a run
    never stopped. All ranks meet there too, so that a rank that votes early (stop_if_asked) would wait without end.
    """
    micro_batches, batch = run.batches.get(run.state.step)
    compile_encoder(run, micro_batches[0])
    for _ in range(2 * (run.ranks.world > 1)):
        forward_backward(run, micro_batches[:1], batch)
    run.optimizer.zero_grad(set_to_none=True)
    run.batches.prefetched = {}


def compile_encoder(run, micro_batch):
    """Compiles the encoder for training and for validation, by a first pass of each; or all ranks run it uncompiled.

    They do where it fails on one of them, such as without a C compiler or with GPUs of two kinds. What fails for
    another reason than compilation fails again in the first step. Raises: UserError with --compile on.
    """
    ranks, began, fault = run.ranks, time.monotonic(), ""
    alone = nullcontext() if ranks.world == 1 else run.ddp.no_sync()  # the others may be without a gradient
    arguments = to_device(micro_batch, ranks.device, run.compiled)
    try:
        if run.compiled:
            with alone, hardware.autocast(ranks.device, ranks.dtype):
                loss_and_correct = run.ddp(*arguments)
            loss_and_correct[:, 0].sum().backward()
            with torch.no_grad(), hardware.autocast(ranks.device, ranks.dtype):
                run.model.eval()(*arguments)
    except hardware.COMPILER_ERRORS as e:
        if is_out_of_memory(e):
            raise
        fault = hardware.compiler_message(e)
    run.model.train()
    (n_compiled,) = ranks.all_reduce_sum([float(run.compiled and not fault)])
    if n_compiled == ranks.world:
        ranks.print(f"encoder compiled in {time.monotonic() - began:.0f} s")
    elif run.compiled or n_compiled:
        fault = f"{fault or 'not all ranks can'}. It needs a C compiler and Python's header files"
        if run.s.compile == "on":
            raise UserError(f"compile = 'on', but torch.compile failed: {fault}")
        ranks.print(f"the encoder runs uncompiled, as torch.compile failed: {fault}")
        run.compiled, run.model.encoder._compiled_call_impl = False, None  # as before Module.compile


def fit_steps_to_budget(run):
    """Sets the number of steps, so that the run ends inside its time budget with validations and checkpoints.

    Whole steps are measured at a learning rate of 0, and what they counted is forgotten. The number of steps is kept in
    the first checkpoint, so that a resumed run has the same.

    Returns: the validation before the first step. Raises: UserError if the budget is too short.
    """
    ranks = run.ranks

    def seconds_of(function, *arguments):
        began = time.monotonic()
        result = function(*arguments)
        return ranks.mean(time.monotonic() - began), result

    def check_time(what, needed):
        elapsed = ranks.mean(time.monotonic() - run.began)
        if elapsed + needed > run.budget:
            enough = math.ceil(elapsed + needed) + 1
            raise UserError(f"time_budget = {run.s.time_budget} is too short for {what}: give at least {enough}s")

    probe = run.valid.rows[:: max(1, len(run.valid) // 64)]  # some of each task: the rows are in the order of tasks
    validate(run, probe[::16])  # warms up
    if run.compiled:
        validate(run, probe)  # compiles for the shapes that are measured next
    seconds, _ = seconds_of(validate, run, probe)
    rows = validation_rows(run)
    estimate = seconds * (len(rows) + len(run.valid)) / max(1, len(probe))
    check_time(f"validations before and after the training ({estimate:.1f} s)", estimate)
    validating, validation = seconds_of(validate_first, run)
    last = validating * len(run.valid) / max(1, len(rows))  # the last validation has all examples
    # A step is at least a forward and a backward pass, each as long as a validation of as many examples.
    least = 2 * validating * run.s.batch_size / max(1, len(rows))
    check_time(f"one step ({least:.1f} s or more) and a validation ({last:.1f} s) after it", least + last)
    left = run.budget - last - ranks.mean(time.monotonic() - run.began)
    a_step = time_steps(run, seconds_of, min(60, 0.02 * run.budget), left)
    saving, _ = seconds_of(save_checkpoint, run)
    check_time(
        f"one step ({a_step:.1f} s), a validation ({last:.1f} s) and a checkpoint ({saving:.1f} s) after it",
        last + saving + a_step,
    )
    left = run.budget - (time.monotonic() - run.began) - last - saving
    a_step += validating / run.valid_every + saving / run.save_every
    # The ranks' mean, that all do the same; a twentieth is kept, for no machine is equally fast all day.
    run.state.steps = max(1, int(ranks.mean(0.95 * left / max(1e-6, a_step))))
    check_schedule(run.s, run.state.steps, len(run.train))
    check_targets(run.s, run.state.steps, run.train)
    save_checkpoint(run)
    return validation


def time_steps(run, seconds_of, at_least, at_most):
    """Seconds of one training step, measured for a while at a learning rate of 0, which leaves the weights as they are.

    There are two or more, for `at_least` seconds, but none after `at_most` seconds. One slow step, such as another
    compilation, neither ends the measurement nor counts.
    """

    def step():
        micro_batches, batch = run.batches.get(run.state.step)
        sums = forward_backward(run, micro_batches, batch)
        run.state.step += 1
        update(run, lr=0.0)
        collect(run, sums, micro_batches, batch)

    took = []
    while len(took) < 10_000:  # not without end on any clock
        took.append(seconds_of(step)[0])
        measured = len(took) > 1 and len(took) * min(took) >= at_least
        if measured or sum(took) > at_most:
            break
    run.start_over()
    run.batches.prefetched = {}
    return statistics.median(took[1:] or took)  # the first warms caches up


def finish(run):
    """Prints how the run ended, and exits: with status 75 if a signal stopped it."""
    s, ranks, state = run.s, run.ranks, run.state
    if not state.steps or state.step < state.steps or validation_is_due(run):
        # Steps that only measured how long one takes do not count.
        when = f"after step {state.step:,}, saved; the same command resumes from there" if state.steps else ""
        ranks.print(f"stopped by {run.stop_signal.name} {when or 'before the first step, nothing to save'}")
        ranks.exit(EXIT_REQUEUE)
    if ranks.is_first and not is_exported(run):  # killed before the model was written
        runs.check_exported(run.out)
        export_checkpoint(run)
    records = [r for r in reports.read_metrics(run.out / "metrics.jsonl")[0] if "valid" not in r]
    had_none = bool(records) and not any("loss" in r for r in records)
    if ranks.all_reduce_sum([float(had_none and ranks.is_first)])[0]:
        raise UserError(f"{run.out}: no step had a target, so nothing was trained; give a larger --mlm_probability")
    ranks.print(f"done: {run.out}")
    if ranks.is_first:
        reports.print_after_training(s, run.out)
    ranks.exit(0)


# ---------------------------------------------------------------- log and console


def progress_bar(run):
    """A bar over the steps: on a terminal from the first rank, nothing elsewhere."""
    disable = None if run.ranks.is_first else True  # None: only where there is no terminal
    state = run.state
    return tqdm(total=state.steps, initial=state.step, unit="step", disable=disable, leave=False, dynamic_ncols=True)


def log_training(run, lr, eta):
    """A line of the console and of metrics.jsonl about the steps since the last one. eta: seconds left."""
    state = run.state
    work, seconds = state.work, state.work["seconds"] or math.inf  # no clock is fine enough for everything
    losses = summarise(run, state.statistics)
    achieved = work["flops"] / seconds
    raise_matmul_flops(run, achieved)
    speed = work["tokens"] / seconds
    record = {"step": state.step, "epoch": state.step * run.s.batch_size / len(run.train), **losses}
    record |= {
        "lr": lr, "tokens_per_s": speed, "mfu": achieved / run.matmul_flops if run.matmul_flops else 0.0,
        "padding": 1 - work["tokens"] / work["computed"], "skipped": state.skipped,
        "memory_gb": hardware.peak_memory(run.ranks.device) / 1e9, "eta_s": eta,
    }  # fmt: skip
    write_metrics(run, record)
    shown = {name: losses.get(f"{name}_loss") for name in run.s.tasks if name in run.present}
    # A sum over some of the tasks cannot be compared with one over all.
    shown = {"loss": None if None in shown.values() else losses["loss"]} | shown
    parts = [f"step {state.step:>6}/{state.steps}"] + ["no targets"] * (not losses)
    parts += [f"{name} -" if loss is None else f"{name} {loss:.3f}" for name, loss in shown.items() if losses]
    parts += [f"{speed:,.0f} tokens/s", f"left {timedelta(seconds=round(eta))}"]
    run.ranks.print("  ".join(parts))
    state.begin_interval()


def raise_matmul_flops(run, achieved):
    """Keeps the best rate seen so far, so that the MFU is not above 1: it may have been measured on a busy machine.

    It is measured again once a minute. achieved: operations a second of the run itself.
    """
    if run.ranks.mean(time.monotonic() - run.matmul_measured) > 60:  # all ranks at once, as they share the machine
        run.matmul_measured = time.monotonic()
        with suppress(torch.OutOfMemoryError):  # the run may need all there is
            again = hardware.measure_matmul_flops(run.ranks.device, run.ranks.dtype, repeat=1)
            run.matmul_flops = max(run.matmul_flops, run.ranks.world * again)
    run.matmul_flops = max(run.matmul_flops, achieved)


def log_validation(run, losses):
    """A line of the console and of metrics.jsonl about a validation: loss and accuracy of each task."""
    loss = losses.get("loss", 0.0)
    if not math.isfinite(loss):
        stop_diverged(run, f"the validation loss is {loss}")
    run.state.validated = run.state.step
    write_metrics(run, {"step": run.state.step, "valid": losses})
    parts = [f"step {run.state.step:>6}/{run.state.steps}", f"valid {loss:.3f}" if losses else "valid: no targets"]
    for name in TASK_NAMES:
        if f"{name}_loss" in losses:
            parts.append(f"{name} {losses[f'{name}_loss']:.3f} ({100 * losses[f'{name}_accuracy']:.1f} %)")
    run.ranks.print("  ".join(parts))


def write_metrics(run, record):
    if run.ranks.is_first:
        append_line(run.out / "metrics.jsonl", (json.dumps(record) + "\n").encode())


# ---------------------------------------------------------------- checkpoints and resume


def run_signature(run):
    """What must be the same for a checkpoint to be resumed."""
    settings = {k: v for k, v in asdict(run.s).items() if k not in MAY_CHANGE_ON_RESUME}
    return settings | {"data": run.train.manifest["sha256"], "init": run.init}


def checkpoint_content(run):
    """What a checkpoint holds."""
    return {
        "signature": run_signature(run), "state": asdict(run.state), "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(), "scaler": run.scaler.state_dict(),
    }  # fmt: skip


def save_checkpoint(run):
    """Writes checkpoint.pt, to resume from, and the model as other programs open it.

    A model that has diverged is not written: the checkpoint before it stays.
    """
    began = time.monotonic()
    if not all(p.isfinite().all() for p in run.model.parameters()):
        stop_diverged(run, "the weights are not finite")
    if run.ranks.is_first:
        runs.write_checkpoint(run.out, checkpoint_content(run), keep_previous=not run.fell_back)
        run.fell_back = False
        export_checkpoint(run)
    run.ranks.all_reduce_sum([0.0])  # the other ranks wait for the first, which writes
    if run.saved < 0:
        at_latest = f", at the latest after {run.s.save_minutes:g} minutes" if run.s.save_minutes else ""
        run.ranks.print(
            f"checkpoint: saved in {time.monotonic() - began:.1f} s, every {run.save_every:,} steps{at_latest}"
        )
    run.saved, run.saved_at = run.state.step, time.monotonic()


def resume(run):
    """Resumes from the last checkpoint that is whole, if there is one; lines of metrics.jsonl after it are dropped."""
    path, content, faults = runs.find_checkpoint(run.out, checkpoint_content(run))
    metrics = run.out / "metrics.jsonl"
    records, n_damaged = reports.read_metrics(metrics)
    if content:
        runs.check_signature(path, content, run_signature(run))
        run.model.load_state_dict(content["model"])
        # Its settings are those of this run, the learning rate that of each step.
        run.optimizer.load_state_dict(run.optimizer.state_dict() | {"state": content["optimizer"]["state"]})
        if content["scaler"]:  # empty if that run had none
            run.scaler.load_state_dict(content["scaler"])
        step = content["state"]["step"]
        older = {"validated": step, "compiled": run.compiled}  # an older version validated before it saved
        run.state, run.fell_back = TrainState(**older | content["state"]), bool(faults)
        if faults:
            run.ranks.print(f"{faults[0]}; resuming from the previous checkpoint, of step {step:,}")
        if n_damaged:
            run.ranks.print(f"{metrics}: {n_damaged:,} damaged lines are dropped")
        elif not records and step:
            run.ranks.print(f"{metrics} is missing: what it held up to step {step:,} is lost")
        known = {True: run.state.validated, False: step}
        records = [record for record in records if step and record["step"] <= known["valid" in record]]
    else:
        runs.refuse_foreign_folder(run.out, records, n_damaged)
        records = []  # of a run that ended before its first checkpoint
    if run.ranks.mean(run.state.step) != run.state.step:
        raise UserError(f"the ranks see different checkpoints in {run.out}; all nodes must share the folder")
    if run.ranks.is_first:
        run.out.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        if metrics.exists():
            write_atomic(metrics, lambda f: f.write(lines.encode()))


def export_checkpoint(run):
    """Writes the model as a folder that finetune.py, and AutoModel of other libraries, open; with a model card."""
    s, state, c, folder = run.s, run.state, run.model.encoder.config, run.out
    tokenizers.save(run.tokenizer, folder, c.max_positions, c.type_vocab_size)
    weights = dict(zip(TASK_NAMES, run.coefficients.tolist()))
    values = {
        "steps": f"{state.step:,} of {state.steps:,}", "effective batch": s.batch_size, "peak learning rate": s.lr,
        "warm-up steps": f"{warmup_steps(s, state.steps):,.0f}", "dropout": s.dropout,
        "MLM probability": s.mlm_probability, "seed": s.seed,
    }  # fmt: skip
    card = reports.model_card(folder, s.init, c, run.train.manifest, weights, values, TASKS, trained_tasks(run.train))
    write_atomic(folder / "README.md", lambda f: f.write(card.encode()))
    write_run(folder, run.folder, run.train.manifest, s.tables.get("finetune", {}))
    checkpoints.write_pooling(folder, run.pooling, c.dim, c.max_positions)
    models.save(run.model, folder)


def is_exported(run):
    """Whether the run folder holds the model as it is now."""
    try:
        saved = models.load(run.out, log=lambda _: None).state_dict()
    except UserError:
        return False
    same = all(torch.equal(x.cpu(), saved[name]) for name, x in run.model.state_dict().items())
    return same and all((run.out / name).exists() for name in ("README.md", "tokenizer.json", "modules.json", RUN_FILE))


# ---------------------------------------------------------------- what was learnt ("intrinsic evaluation", section 5)


@torch.no_grad()
def predict_targets(model, dataset, seed, dtype):
    """The model's predictions for all targets of a validation split.

    The masks follow from this seed and Table 8's probability, so that all checkpoints are compared on the same ones.

    Returns: arrays (targets,): example (row of the split), task, label, prediction (the class with the best score), and
    score (the cross-entropy; of triples the log odds of "true" instead).
    """
    out, device = [], model.mlm_bias.device
    for rows in np.array_split(dataset.rows, -(-len(dataset) // 1024)):
        epochs = np.full(len(rows), VALID_EPOCH)
        batch = dataset.masked_batch(rows, epochs, seed, configs.Train.mlm_probability)
        for micro in data.rectangles(batch, 4096, 64):
            ids, mask, target_index, label, targets_per_task, _ = to_device(tensors(micro, False), device)
            with hardware.autocast(device, dtype):
                logits = [x.float() for x in model.logits(ids, mask, target_index, targets_per_task)]
            labels = label.split([n for _, n in targets_per_task])
            score = [F.cross_entropy(x, gold, reduction="none") for x, gold in zip(logits, labels)]
            score[data.TC] = logits[data.TC][:, 1] - logits[data.TC][:, 0]
            prediction = torch.cat([x.argmax(-1) for x in logits]).cpu().numpy()
            out.append((rows[micro.example], micro.task, micro.label, prediction, torch.cat(score).cpu().numpy()))
    return [np.concatenate(column) for column in zip(*out)]


def evaluate_tasks(model, folder, seed, dtype):
    """What a model knows of the held-out pairs and documents of a data set, in per cent but the loss.

    Returns: {"mlm": {language: {"loss", "accuracy"}}, "ep": {"tokens", "entities"} (accuracies; an entity is correct if
    all its tokens are), "lp": {"accuracy", "macro_f1", "confusion" (gold in rows, as RELATIONS)}, "tc": {"accuracy",
    and for each kind of negative "accuracy" of the negatives and "auc": of them against all true triples}}.
    """
    from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score  # a second that training need not wait

    dataset = data.PretrainingDataset(folder, "valid")
    if not len(dataset):  # of pairs of names alone
        return {}
    example, task, label, prediction, score = predict_targets(model, dataset, seed, dtype)
    correct, out = label == prediction, {}
    for i, lang in enumerate(dataset.manifest["languages"]):
        if (at := (task == data.MLM) & (dataset.lang[example] == i)).any():
            out.setdefault("mlm", {})[lang] = {"loss": score[at].mean(), "accuracy": 100 * correct[at].mean()}
    if (at := task == data.EP).any():
        n_wrong = np.bincount(example[at], ~correct[at])[np.unique(example[at])]
        out["ep"] = {"tokens": 100 * correct[at].mean(), "entities": 100 * (n_wrong == 0).mean()}
    if (at := task == data.LP).any():
        confusion = confusion_matrix(label[at], prediction[at], labels=range(models.RELATION_CLASSES))
        present = np.unique(label[at])  # a relation that the held-out pairs lack has no F1
        macro_f1 = f1_score(label[at], prediction[at], labels=present, average="macro", zero_division=0)
        accuracy = 100 * correct[at].mean()
        out["lp"] = {"accuracy": accuracy, "macro_f1": 100 * macro_f1, "confusion": confusion.tolist()}
    if (at := task == data.TC).any():
        kind = dataset.kind[example]
        out["tc"] = {"accuracy": 100 * correct[at].mean()}
        negatives = {"corrupted_entities": data.CORRUPTED_ENTITIES, "corrupted_relation": data.CORRUPTED_RELATION}
        for name, k in negatives.items():
            these = at & ((kind == data.TRUE) | (kind == k))
            if (kind[these] == k).any() and label[these].any():
                auc = 100 * roc_auc_score(label[these], score[these])
                out["tc"][name] = {"accuracy": 100 * correct[these & (kind == k)].mean(), "auc": auc}
    for index, name in enumerate(TASK_NAMES):  # a task that is measured in no other way
        if name not in out and (at := task == index).any():
            out[name] = {"accuracy": 100 * correct[at].mean()}
    return json.loads(json.dumps(out, default=float))


def evaluate(s):
    """Measures what checkpoints know of the four tasks and of synonyms; printed, and kept in results/."""
    device, dtype = hardware.choose_device(s.device, s.precision)
    names = [name_of(checkpoint) for checkpoint in s.checkpoints]
    if len({*names}) < len(names):
        raise UserError(f"results are named by checkpoint, and two of {', '.join(names)} are the same")
    for checkpoint, name in zip(s.checkpoints, names):
        began, folder = time.monotonic(), data_of(s, checkpoint)
        print(f"{checkpoint} on {folder}", flush=True)
        path = Path(s.out, name, f"knowledge-{name_of(folder)}.json")
        with made_folder(path.parent):
            record = evaluate_checkpoint(s, checkpoint, folder, path, device, dtype)
            reports.print_evaluation(record, TASKS, data.RELATIONS)
            write_json(path, record)
        print(f"  -> {path} ({time.monotonic() - began:.0f} s)", flush=True)
    reports.print_next(("python finetune.py tables --results {}", s.out), ("python kgi.py map {}", s.checkpoints[-1]))


def data_of(s, checkpoint):
    """The data set of a command: the one that was asked for, the run's own, or the only one of its tokenizer."""
    return find_data(s.data or data_of_run(checkpoint), checkpoint, data.NEW_TOKENS)


def evaluate_checkpoint(s, checkpoint, folder, path, device, dtype):
    """The record of one checkpoint: its tasks (evaluate_tasks), and the retrieval of synonyms (evaluate_synonyms).

    path: where it is going to be. Raises: UserError, before it takes long, if results of another checkpoint are there.
    """
    c = models.load_config(checkpoint)
    tokenizer = tokenizers.load(checkpoint, max_entries=c.vocab_size)
    # The model may have more rows than its tokenizer has entries.
    has_heads = tokenizer.to_str() == tokenizer_of(folder)
    model = models.load(checkpoint, heads=has_heads).to(device).eval()
    settings = {key: value for key, value in asdict(s).items() if key != "checkpoints"}
    of_data = {"data": str(folder.resolve()), "data sha256": read_manifest(folder)["sha256"]["valid.arrow"]}
    signature = runs.signature_of(checkpoint) | of_data | {key: settings[key] for key in ("seed", "terms", "precision")}
    check_results_file(path, signature)
    record = {"checkpoint": str(checkpoint), "data": name_of(folder), "settings": settings, "signature": signature}
    if "kgi_tasks" in c.extra_config:
        record["tasks"] = c.extra_config["kgi_tasks"]  # of the heads of others nothing can be expected
    seq_len = read_manifest(folder)["settings"]["seq_len"]
    if has_heads and c.max_positions < seq_len:
        raise UserError(
            f"{checkpoint} has {c.max_positions} positions and {folder} sequences of up to {seq_len} tokens"
        )
    if has_heads:
        record |= evaluate_tasks(model, folder, s.seed, dtype)
    else:
        print(f"  not a model of the tokens of {folder}: synonyms alone")
    max_tokens = models.longest_text(checkpoints.read_pooling(checkpoint), c)
    record |= evaluate_synonyms(s, folder, model.encoder, tokenizer, dtype, max_tokens)
    return record | {"scores": flat_scores(record)}


def evaluate_synonyms(s, folder, encoder, tokenizer, dtype, max_tokens=None):
    """Retrieval of synonyms in each language of a data set, and of English names from those of another language.

    Queries are all names of some concepts, and those of held-out concepts alone ("_held_out").
    Returns: {"synonyms": {language: {"terms", vectors: metrics}}, "translations": {language: {vectors: metrics}}}.
    """
    out, names = {"synonyms": {}, "translations": {}}, {}
    build = read_manifest(folder)["settings"]
    for lang in read_manifest(folder)["languages"]:
        tables, strings, term, concept = retrieval.sample_terms(folder, lang, s.terms, s.seed)
        cui = tables.cui[concept]
        held_out = data.in_validation(cui, cui, build["seed"], build["valid_fraction"])
        vectors = {"spelling": retrieval.trigram_vectors(strings)} if len(strings) <= MAX_SPELLED else {}
        vectors |= models.embed_terms(encoder, tokenizer, strings, configs.POOLINGS, dtype, max_tokens)
        out["synonyms"][lang] = {"terms": len(strings)}
        for how, x in vectors.items():
            metrics = retrieval.retrieval_metrics(x, term, concept, held_out)
            out["synonyms"][lang] |= dict(zip((how, f"{how}_held_out"), metrics))
        names[lang] = vectors, term, cui, held_out
    english = names.pop("en", None)
    for lang, (vectors, term, cui, held_out) in names.items() if english else ():
        out["translations"][lang] = {}
        for how in (how for how in vectors if how in english[0]):
            of_english = english[0][how], *english[1:3]
            for suffix, queries in (("", np.ones(len(term), bool)), ("_held_out", held_out)):
                of_lang = vectors[how], term[queries], cui[queries]
                out["translations"][lang][how + suffix] = retrieval.translation_metrics(*of_lang, *of_english)
    return out


def flat_scores(record):
    """The numbers of a record under one key each, the mean over the languages: what tables show."""
    out = {}
    if losses := [x["loss"] for x in record.get("mlm", {}).values()]:
        out["mlm_loss"] = statistics.mean(losses)
    for name in TASK_NAMES:
        keys = ("tokens", "entities", "accuracy", "macro_f1")
        out |= {f"{name}_{key}": record[name][key] for key in keys if key in record.get(name, ())}
    for kind in ("corrupted_entities", "corrupted_relation"):
        if kind in record.get("tc", {}):
            out[f"tc_auc_{kind}"] = record["tc"][kind]["auc"]
    for suffix, how in (("", "mean"), ("_cls", "cls"), ("_spelling", "spelling")):
        for queries in ("", "_held_out"):
            found = [x[how + queries] for x in record["synonyms"].values() if x.get(how + queries)]
            for key in ("at_1", "at_5", "mrr") if found else ():
                out[f"synonyms_{key}{suffix}{queries}"] = statistics.mean(x[key] for x in found)
            if found := [x[how + queries] for x in record.get("translations", {}).values() if x.get(how + queries)]:
                out[f"translations_at_1{suffix}{queries}"] = statistics.mean(x["at_1"] for x in found)
    return out


def draw_map(s):
    """Draws the preferred terms of some concepts on a plane, by semantic group; each language on a map of its own."""
    device, dtype = hardware.choose_device(s.device, s.precision)
    folder = data_of(s, s.checkpoint)
    encoder = models.load(s.checkpoint, heads=False).encoder.to(device).eval()
    tokenizer = tokenizers.load(s.checkpoint, max_entries=encoder.config.vocab_size)
    pooling, max_tokens, _ = models.choose_pooling(s, encoder.config, print)
    name, signature = name_of(s.checkpoint), runs.signature_of(s.checkpoint)["checkpoint sha256"]
    _, group_names = umls.read_semantic_groups(Path(configs.__file__).with_name("SemGroups.txt"))
    for lang in read_manifest(folder)["languages"]:
        path = Path(s.out, name, f"map-{lang}.png")
        reports.check_picture(path, signature)
        tables, _, _, concept = retrieval.sample_terms(folder, lang, s.terms, s.seed)
        concept = np.unique(concept)
        strings = tables.terms.take(tables.first_term[concept]).to_pylist()
        vectors = models.embed_terms(encoder, tokenizer, strings, [pooling], dtype, max_tokens)[pooling]
        rows, points, axes = retrieval.map_of_groups(vectors, tables.group[concept], s.seed)
        group = tables.group[concept[rows]]
        shares, by_chance = retrieval.same_group_shares(points, group)
        of_axes = ", ".join(f"{x:.1f} %" for x in axes[:3]) + ", ..." * (len(axes) > 3)
        title = (
            f"{name}: {len(rows):,} terms, {lang}, {pooling}\n"
            f"t-SNE of discriminant axes between groups, fitted on {len(strings) - len(rows):,} other terms\n"
            f"{len(axes)} axes with {of_axes} of the variance between groups\n"
            f"10 nearest neighbours: {shares.mean():.1f} % of the same group, by chance {by_chance:.1f} %"
        )
        groups = [group_names.get(tables.groups[g], tables.groups[g]) for g in group]
        reports.draw_map(path, points, groups, [strings[i] for i in rows], shares, title, signature)
        print(path)


def link(s):
    """Links mentions to the concepts of a dictionary: scores those of a corpus, or writes the links of others."""
    linking.check_settings(s)
    if s.dictionary:
        dictionary = linking.read_dictionary(s.dictionary)
    else:
        dictionary = linking.dictionary_of_dataset(data_of(s, s.checkpoint), s.lang)
    if s.corpus:
        link_corpus(s, dictionary)
    else:
        link_mentions(s, dictionary)


def link_corpus(s, dictionary):
    """Scores the links of the mentions of a corpus; printed, and kept in results/."""
    began, task, path = time.monotonic(), linking.read_task(s, dictionary), linking.results_file(s)
    check_results_file(path, signature := linking.results_signature(s, task) | runs.signature_of(s.checkpoint))
    with made_folder(path.parent):
        record = {"checkpoint": s.checkpoint, "settings": asdict(s), "signature": signature} | score_links(s, task)
        reports.print_linking(record)
        write_json(path, record)
    print(f"  -> {path} ({time.monotonic() - began:.0f} s)")


def score_links(s, task):
    """The linking_record of a LinkingTask, whose mentions are looked up by several methods."""
    poolings = [s.pooling] if s.pooling else configs.POOLINGS
    queries, names = embed_mentions_and_names(s, task.queries, task.dictionary.names, poolings)
    is_equal = linking.exact_matches(task.dictionary.names, task.queries)
    trigrams = linking.trigram_similarities(task.dictionary.names, task.queries)

    def similarities(block):
        """Those of a block of mentions to all names, one method after the other."""
        yield "exact match", is_equal(block)
        spelling = trigrams(block)
        yield "trigrams", spelling
        for i, pooling in enumerate(poolings):
            cosine = queries[pooling][block] @ names[:, i].T
            yield pooling, cosine
            yield f"{pooling} + trigrams", cosine + spelling

    return linking.linking_record(task, linking.rank_mentions(task, similarities))


def link_mentions(s, dictionary):
    """Writes the nearest concepts of the mentions of a file, as JSON Lines."""
    began, records = time.monotonic(), linking.read_records(s.mentions)
    mentions = linking.mentions_of_records(records)
    texts, log = [text for _, text in mentions if text], partial(print, file=sys.stderr)
    pooling, *_ = models.choose_pooling(s, models.load_config(s.checkpoint), log)
    queries, nearest = list(dict.fromkeys(texts)), []
    if queries:
        vectors, names = embed_mentions_and_names(s, queries, dictionary.names, [pooling])
        nearest = linking.nearest_concepts(dictionary, len(queries), lambda x: vectors[pooling][x] @ names[:, 0].T)
    found = {"": []} | dict(zip(queries, nearest))
    for mention, text in mentions:
        mention["concepts"] = found[text]
    linking.write_records(records, s.out)
    print(
        f"{len(texts):,} mentions, {len(queries):,} of them distinct; {len(dictionary.ids):,} concepts with "
        f"{len(dictionary.names):,} names ({time.monotonic() - began:.0f} s)",
        file=sys.stderr,
    )


def embed_mentions_and_names(s, mentions, names, poolings):
    """Vectors of length 1: ({pooling: (mentions, dim)}, (names, poolings, dim)), float32 arrays."""
    device, dtype = hardware.choose_device(s.device, s.precision)
    encoder = models.load(s.checkpoint, heads=False, log=partial(print, file=sys.stderr)).encoder.to(device).eval()
    tokenizer = tokenizers.load(s.checkpoint, max_entries=encoder.config.vocab_size)
    max_tokens = models.longest_text(checkpoints.read_pooling(s.checkpoint), encoder.config)
    queries = models.embed_terms(encoder, tokenizer, mentions, poolings, dtype, max_tokens)
    queries = {pooling: F.normalize(x, dim=-1).cpu().numpy() for pooling, x in queries.items()}
    return queries, embed_names(s, encoder, tokenizer, names, poolings, dtype, max_tokens)


def embed_names(s, encoder, tokenizer, names, poolings, dtype, max_tokens):
    """(names, poolings, dim) float32: vectors of length 1. A name is embedded once, or read from --keep_vectors."""
    path = None
    if s.keep_vectors:
        parts = ["\n".join(names), *poolings, str(max_tokens), str(dtype), tokenizer.to_str(), repr(encoder.config)]
        parts += [x.cpu().contiguous().numpy().tobytes() for x in encoder.state_dict().values()]
        path = linking.vectors_file(s.keep_vectors, name_of(s.checkpoint), parts)

    def blocks():
        ids, length = tokenizers.encode(tokenizer, [" " + name for name in names], "tokens")
        special = tokenizers.special_ids(tokenizer)
        with progress("names", len(names)) as bar:
            for block in models.embed(encoder, special, ids, length, poolings, max_tokens, dtype):
                yield F.normalize(torch.from_numpy(block), dim=-1).numpy()
                bar.update(len(block))

    return linking.name_vectors(path, (len(names), len(poolings), encoder.config.dim), blocks())


def plot(s):
    """Draws the curves of runs."""
    print(reports.draw_curves([Path(run) for run in s.runs], s.out, TASKS))


COMMANDS = {
    "train": (train, configs.Train),
    "evaluate": (evaluate, configs.Evaluate),
    "map": (draw_map, configs.Map),
    "link": (link, configs.Link),
    "plot": (plot, configs.Plot),
}

if __name__ == "__main__":
    run_command(__doc__, COMMANDS, default="train")
