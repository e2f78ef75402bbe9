"""Pre-training: one encoder on several tasks with one mixed cross-entropy (paper, sections 3.1 and 4.1).

    python kgi.py                                            the only data set under datasets/
    python kgi.py configs/v1-fr.toml
    torchrun --nproc_per_node 4 kgi.py configs/v1-fr.toml --precision fp16
    torchrun --nproc_per_node 4 kgi.py configs/drbert-fr.toml --init DrBERT-4GB
    torchrun --nproc_per_node 2 kgi.py --data datasets/es --layers 6 --heads 6 --dim 384 --ffn 1536
    python kgi.py configs/v1-fr.toml --time_budget 24h --tasks mlm ep lp --out runs/no-triples
    sbatch configs/slurm.sh configs/v1-fr.toml               several nodes, requeued until the run is done

Each step takes one effective batch: the same examples with the same masks, whatever the number of ranks and the size of
the micro-batches. These two change speed, dropout masks and rounding only. The same command run again resumes from the
last checkpoint. On SIGTERM, SIGUSR1 or Ctrl-C the program drops the unfinished step, saves the last finished one, and
exits with status 75. A run folder holds metrics.jsonl, the last two checkpoints, and the model.
"""

import configs  # isort: split

import math
import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import data
import model as models
from configs import UserError, check_schedule, warmup_steps
from data import TASK_NAMES, TASKS
from support import checkpoints, distributed, hardware, layouts, reports, runs, tokenizers
from support.arrays import ceil_div, splitmix64
from support.datasets import find_data, read_tokenizer, relation_names
from support.files import folder_lock, name_of, progress
from support.pooling import Pooling, inherit_pooling
from support.programs import run_command
from support.tensors import weight_files

VALID_EPOCH = 2**32 - 1  # validation always uses the masks of this epoch, which training never reaches
MAX_OVERFLOWS = 20  # a run ends after so many fp16 overflows in a row, each of which halves the loss scale


# ---------------------------------------------------------------- the objective and its schedule (section 4.1)


def alphas(n):
    """Weights of the tasks after MLM: alpha_i = sum_{j != i} n_j / (2 sum_k n_k), n_k examples of each task.

    A task with more examples has a smaller weight, though not one "inversely proportional" to its examples, as the
    paper says of this formula. Its sums run from 0 to 3 but speak of "each UMLS-based task". We sum over these three
    only: their alphas then add up to 1, the weight of MLM, as "the same weighting" asks. The 2 is the number of tasks
    less one, so that an ablation with two tasks works too. A task alone has the weight 1, one without examples 0.
    """
    total, n_tasks = sum(n), sum(x > 0 for x in n)
    if n_tasks < 2:
        return [float(x > 0) for x in n]
    return [(total - x) / ((n_tasks - 1) * total) if x else 0.0 for x in n]


def coefficients(s, manifest, objectives):
    """(names,) float32: the coefficients of equation (2), 1 for MLM and the alphas; 0 for a task that is left out."""
    counts = {name: sum(c["train"][name] for c in manifest["counts"].values()) for name in s.tasks}
    counts |= {objective.name: objective.count for objective in objectives}
    after_mlm = [name for name in counts if name != "mlm"]
    if s.alphas and len(s.alphas) != len(after_mlm):
        raise UserError(f"alphas = {s.alphas}: there must be {len(after_mlm)}, for {', '.join(after_mlm).upper()}")
    weights = dict(zip(after_mlm, s.alphas or alphas([counts[name] for name in after_mlm]))) | {"mlm": 1.0}
    if not any(weights[name] for name, n in counts.items() if n):
        raise UserError(f"alphas = {s.alphas}: no task has a weight, so nothing would be trained")
    return torch.tensor([weights.get(x.name, 0.0) for x in (*TASKS, *objectives)])


def mixed_loss(run, sums):
    """Equation (2) over a step or a validation: the mean loss of each task, weighted by its coefficient.

    A task without targets is left out; without any target there is no loss.

    Args: sums: (names, 3), over all ranks: summed loss, correct predictions, targets.
    Returns: {"loss": equation (2), "mlm_loss": .., "mlm_accuracy": .., ...}, or {}.
    """
    out = {"loss": 0.0}
    for name, weight, (loss, n_correct, n) in zip(run.names, run.coefficients.tolist(), np.asarray(sums).tolist()):
        if n:
            out |= {f"{name}_loss": loss / n, f"{name}_accuracy": n_correct / n}
            out["loss"] += weight * loss / n
    return out if len(out) > 1 else {}


def learning_rate(step, steps, warmup, peak):
    """The triangle of appendix B: "increases from zero over the warmup period ... before decaying linearly".

    Neither end is 0, or its step would do nothing: the first has peak / warmup, the last peak / (steps - warmup).

    Args: step: 0 to steps - 1. warmup: steps up to the peak.
    """
    return peak * min(1.0, (step + 1) / warmup, (steps - step) / max(1, steps - warmup))


# ---------------------------------------------------------------- the parts of a run


class Batches:
    """Effective batches, masked and laid out for this rank; a thread assembles the next one ahead of its step.

    EpochSampler chooses the examples of a step, whatever their task. PretrainingDataset.masked_batch masks them, and
    lay_out cuts this rank's share into micro-batches.
    """

    def __init__(self, s, dataset, ranks, max_tokens):
        self.dataset, self.ranks, self.s, self.max_tokens = dataset, ranks, s, max_tokens
        self.sampler = data.EpochSampler(len(dataset), s.batch_size, s.seed)
        self.on_gpu = ranks.device.type == "cuda"
        self.is_packed = s.layout == "packed" or (s.layout == "auto" and self.on_gpu)
        self.get = distributed.Prefetcher(self.assemble, ranks.device)

    def assemble(self, step):
        """(this rank's MicroBatches, the whole MaskedBatch) of effective batch `step`."""
        index, epochs = self.sampler(step)
        batch = self.mask(self.dataset, self.dataset.rows[index], epochs)
        return self.lay_out(batch), batch

    def mask(self, dataset, rows, epochs):
        return dataset.masked_batch(rows, epochs, self.s.seed, self.s.mlm_probability)

    def lay_out(self, batch):
        """This rank's share of a MaskedBatch, as layouts.MicroBatches of the layout that suits the device."""
        share, device = (self.ranks.rank, self.ranks.world_size), self.ranks.device.type
        if self.is_packed:
            row_length = ceil_div(self.dataset.seq_len, 8) * 8  # attention kernels like multiples of 8
            found = layouts.packed(batch, self.max_tokens, row_length, layouts.ROW_MULTIPLE[device], *share)
        else:
            found = layouts.padded(batch, self.max_tokens, layouts.MAX_PADDING[device], *share)
        return [micro_batch.to("cpu", pin=self.on_gpu) for micro_batch in found]


@dataclass
class Run:
    """What the functions below share."""

    s: configs.Train
    ranks: distributed.Ranks
    out: Path
    train: data.PretrainingDataset
    valid: data.PretrainingDataset
    objectives: tuple  # that are trained beside the tasks: beyond the paper
    titles: dict  # {name: title} of all losses: tasks, then objectives
    names: tuple  # of all losses: the order of all sums below
    trained: list  # of them, those that there are examples of
    coefficients: torch.Tensor  # (names,), equation (2)
    model: models.KGIBert
    ddp: torch.nn.Module  # the model, or the model in DistributedDataParallel
    batches: Batches
    compiled: bool  # whether the encoder is
    init: str | None  # a hash of the checkpoint that it started from
    pooling: Pooling  # of texts, as its files say to other libraries
    tokenizer: bytes  # of the data set as it is now: it may be built again while the run goes on
    stop_signal: runs.StopSignal
    began: float
    valid_every: int
    save_every: int
    state: runs.TrainState = field(default_factory=runs.TrainState)
    optimizer: torch.optim.Optimizer = None
    scaler: torch.amp.GradScaler = None
    saved: int = -1  # the step of the last checkpoint of this process
    saved_at: float = field(default_factory=time.monotonic)  # when, or when the run began
    matmul_flops: float = 0.0  # operations a second of all ranks at most, for the MFU
    fell_back: bool = False  # the last checkpoint on disk is damaged: not to be kept as the previous one

    def start_over(self):
        """A new optimizer and scaler, and step 0; the number of steps stays."""
        s, ranks = self.s, self.ranks
        self.optimizer = torch.optim.AdamW(self.model.parameters(), s.lr, weight_decay=s.weight_decay, fused=True)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=ranks.dtype == torch.float16)
        self.state = runs.TrainState(steps=self.state.steps, compiled=self.compiled)
        self.state.begin_interval(len(self.names))


def set_up(s, objectives=()):
    """The Run of settings `s`, before its first step. Raises: UserError."""
    began, stop_signal = time.monotonic(), runs.StopSignal()
    ranks = distributed.Ranks(s)
    check_settings(s)
    folder = find_data(s.data, s.init)
    train, valid = (data.PretrainingDataset(folder, split, s.tasks) for split in data.SPLITS)
    if not len(train):
        raise UserError(f"{folder} has no examples of {', '.join(s.tasks)}")
    tokenizer = read_tokenizer(folder)
    out, weights = Path(s.out or Path("runs", f"kgi-{name_of(folder)}")), coefficients(s, train.manifest, objectives)
    torch.manual_seed(s.seed)
    model, init = load_initial_model(s, train, out, ranks) if s.init else (new_model(s, train, ranks), None)
    pooling = inherit_pooling(s.init, ranks.print)
    for objective in objectives:
        pooling = pooling._replace(mode=objective.pooling)
    model.to(ranks.device)
    compiled = hardware.configure_encoder(s, model.encoder, ranks)
    c = model.encoder.config
    max_tokens = s.max_tokens or hardware.auto_max_tokens(c, models.count_parameters(c), ranks.device)
    epoch = max(1, round(len(train) / s.batch_size))
    titles = {x.name: x.title for x in (*TASKS, *objectives)}
    trained = [TASK_NAMES[index] for index in np.unique(train.task[train.rows])] + [x.name for x in objectives]
    known = [*trained, *c.extra_config.get("kgi_tasks", ())]  # that the heads were trained on, here or in --init
    c.extra_config["kgi_tasks"] = [name for name in dict.fromkeys([*titles, *known]) if name in known]
    run = Run(
        s, ranks, out, train, valid, tuple(objectives), titles, tuple(titles), trained, weights, model,
        ranks.wrap(model), Batches(s, train, ranks, max_tokens), compiled, init, pooling, tokenizer, stop_signal, began,
        valid_every=s.valid_every or epoch, save_every=s.save_every or s.valid_every or epoch,
    )  # fmt: skip
    if not s.time_budget:
        run.state.steps = configs.count_steps(s, len(train))
        check_schedule(s, run.state.steps, len(train))
    run.start_over()
    return run


def check_settings(s):
    """Raises UserError for settings that exclude one another; puts the tasks into their order."""
    if not set(s.tasks) <= set(TASK_NAMES):
        raise UserError(f"tasks = {' '.join(s.tasks)}: choose some of {' '.join(TASK_NAMES)}")
    s.tasks = [name for name in TASK_NAMES if name in (s.tasks or TASK_NAMES)]
    if s.time_budget and s.steps:
        both = f"time_budget = {s.time_budget} and steps = {s.steps}"
        raise UserError(f"{both}: give one of them (--steps 0 if a file has it)")
    if s.time_budget:
        configs.budget_seconds(s.time_budget)  # refuses what is no length of time
    if "mlm" in s.tasks and s.mlm_probability < 0.005:
        raise UserError(f"mlm_probability = {s.mlm_probability:g} leaves hardly a target; leave mlm out of --tasks")


def new_model(s, train, ranks):
    """A model initialised randomly, in the sizes of the settings."""
    set_dropout(s, s.family)
    sizes = train.manifest["vocab_size"], train.seq_len, s.dim, s.layers, s.heads, s.ffn, s.dropout
    c = models.Config(*sizes, train.special["pad"], family=s.family, relation_classes=relation_names(train.folder)[:-1])
    hardware.check_model_fits(models.count_parameters(c), ranks.device)
    return models.KGIBert(c)


def set_dropout(s, family):
    """ModernBERT is pre-trained without dropout, unless the setting is given."""
    if family == "modernbert" and "dropout" not in s.given:
        s.dropout = 0.0


def load_initial_model(s, train, out, ranks):
    """Supplementary training (section 4.1): the model of --init, with room for the tokens that it lacks.

    Returns: (model, a hash of its files). Raises: UserError if it does not fit the data set or the settings.
    """
    c = models.load_config(s.init)
    set_dropout(s, c.family)
    checkpoints.check_initial(s, c, train, out)
    hardware.check_model_fits(models.count_parameters(c), ranks.device)
    model = models.load(s.init, s.dropout, log=ranks.print, relation_classes=relation_names(train.folder)[:-1])
    own, special = tokenizers.load(s.init), train.special
    new_ids = [i for i in (*special["relations"], special["hrel"]) if own.id_to_token(i) is None]
    models.resize_token_embeddings(model, new_ids, train.manifest["vocab_size"])
    return model, runs.digest([Path(s.init, "config.json"), *weight_files(s.init)])


# ---------------------------------------------------------------- the training loop


def train(s, objectives=()):
    """Trains to the end, or until a signal asks to stop.

    Args: objectives: losses beside those of the tasks, as CONTRIBUTING.md describes them.
    """
    run = set_up(s, objectives)
    lock = folder_lock(run.out, "another process is training into it; wait for it, or end it")
    with runs.failure_named(run), lock if run.ranks.is_main_process else nullcontext():
        runs.resume(run)
        try:
            if not is_done(run):
                runs.check_exported(run.out)
                begin(run)
            training_loop(run)
        except runs.Interrupted:  # on all ranks at once
            if run.state.steps and run.saved != run.state.step:
                runs.save_checkpoint(run)
        finish(run)


def training_loop(run):
    """One step after another, until the last one. Raises: runs.Interrupted, on all ranks, if a signal asks to stop."""
    s, state = run.s, run.state
    with reports.progress_bar(run) as bar:
        first_step, loop_began = state.step, time.monotonic()
        while state.step < state.steps:
            lr = learning_rate(state.step, state.steps, warmup_steps(s, state.steps), s.lr)
            stop, save_now = training_step(run, lr)
            bar.update()

            # Log, validate and save, each at its interval and at the end.
            validate_now = validation_is_due(run)
            save_at_step = state.step == state.steps or state.step % run.save_every == 0
            if validate_now or save_at_step or state.step % s.log_every == 0:
                seconds_per_step = (time.monotonic() - loop_began) / (state.step - first_step)
                eta = (state.steps - state.step) * seconds_per_step
                reports.log_training(run, mixed_loss(run, state.sums), lr, eta)
            if stop:
                raise runs.Interrupted
            if validate_now:
                reports.log_validation(run, validate(run))
            if save_at_step or save_now:
                runs.save_checkpoint(run)


def training_step(run, lr):
    """One effective batch. Returns: (whether a rank was asked to stop, whether the clock asks for a checkpoint)."""
    began = time.monotonic()
    # Batch: the same examples whatever the layout, each masked by (seed, epoch, example).
    micro_batches, batch = run.batches.get(run.state.step)

    # Forward and backward: equation (2), summed over micro-batches and ranks. A signal drops the step.
    sums = forward_backward(run, micro_batches, batch)
    run.batches.get.prefetch(run.state.step + 1)

    # Update: AdamW at the learning rate of the triangle.
    run.state.step += 1
    update(run, lr)
    flags = collect(run, sums, micro_batches, batch)
    run.state.work["seconds"] += time.monotonic() - began  # only now has a GPU done what it was given
    return flags


def forward_backward(run, micro_batches, batch):
    """Gradients of equation (2) on one effective batch: L = L_MLM + a1 L_EP + a2 L_LP + a3 L_TC.

    The paper does not say over what it averages. Here the loss of a task is the sum over its targets, divided by their
    number in the whole effective batch. So a long sequence counts more than a short one, and it does not matter how the
    batch was cut into micro-batches and dealt to the ranks.

    Args: micro_batches: of this rank. batch: the whole MaskedBatch.
    Returns: (names, 3) float32, of this rank: summed loss, correct predictions, and targets.
    """
    ranks, n_tasks = run.ranks, len(TASKS)
    sums = torch.zeros(len(run.names), 3, device=ranks.device)
    for i, objective in enumerate(run.objectives, n_tasks):
        sums[i] = objective.backward(run, run.coefficients[i])
    # DDP averages gradients over ranks; multiplying by world_size turns the mean into the sum.
    n_targets = torch.from_numpy(batch.n_targets).clamp(min=1)
    weight_per_target = run.coefficients[:n_tasks] * ranks.world_size / n_targets
    weight_per_target = weight_per_target.to(ranks.device, torch.float32)
    for i, micro_batch in enumerate(micro_batches):
        is_last = i == len(micro_batches) - 1
        runs.vote_to_stop(run, is_last)
        seed_dropout(run, i)
        # The ranks exchange gradients once, after their last micro-batch.
        is_local = ranks.world_size > 1 and not is_last
        with run.ddp.no_sync() if is_local else nullcontext():
            with hardware.autocast(ranks.device, ranks.dtype):
                loss_and_correct = run.ddp(hardware.to_device(micro_batch, ranks.device, run.compiled))
            loss = (weight_per_target * loss_and_correct[:, 0]).sum()
            run.scaler.scale(loss).backward()
        sums[:n_tasks, :2] += loss_and_correct.detach()
        sums[:n_tasks, 2] += torch.tensor(micro_batch.n_targets).to(ranks.device, non_blocking=True)
    return sums


def seed_dropout(run, stream):
    """Dropout is a function of (seed, step, stream, rank); each micro-batch is a stream, from 0 on."""
    torch.manual_seed(int(splitmix64(run.s.seed, run.state.step, stream, run.ranks.rank)) >> 1)


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
        what = f"the gradients overflowed fp16 {MAX_OVERFLOWS} times, in the end scaled by {scale_before:g}"
        runs.stop_diverged(run, what)


def collect(run, sums, micro_batches, batch):
    """Adds one step to the sums of the log, the same on all ranks.

    Returns: (whether a rank was asked to stop, whether the time between checkpoints is over).
    """
    state = run.state
    computed = sum(micro_batch.ids.numel() for micro_batch in micro_batches)
    stop = run.stop_signal.number > 0
    save_now = run.ranks.is_main_process and time.monotonic() - run.saved_at > 60 * run.s.save_minutes > 0
    *sums, computed, stop, save_now = run.ranks.all_reduce_sum([*sums.flatten().tolist(), computed, stop, save_now])
    sums = np.reshape(sums, (len(run.names), 3))
    if not math.isfinite(loss := mixed_loss(run, sums).get("loss", 0.0)):
        runs.stop_diverged(run, f"the loss is {loss}")
    state.sums = (np.array(state.sums) + sums).tolist()
    vocabulary_targets = sum(n for head, n in zip(batch.heads, batch.n_targets) if head == "mlm_head")
    state.work["flops"] += hardware.training_flops(run.model.encoder.config, batch.length, vocabulary_targets)
    state.work["tokens"] += int(batch.length.sum())
    state.work["computed"] += computed
    return stop > 0, save_now > 0


# ---------------------------------------------------------------- validation


def validation_is_due(run):
    """Whether a validation belongs to this step, at its interval and at the end, and has not been made."""
    state = run.state
    at_interval = state.step == state.steps or state.step % run.valid_every == 0
    return state.step > 0 and at_interval and state.validated != state.step


def is_done(run):
    """Whether the last step was made, and the last validation. The steps are 0 until a time budget decides on them."""
    return 0 < run.state.steps == run.state.step and not validation_is_due(run)


def validation_rows(run):
    """The examples of a validation: all of the split after the last step, before it always the same subset.

    The split is in the order of languages, tasks and kinds, so that every k-th example has them in their shares.
    """
    rows, state = run.valid.rows, run.state
    n = len(rows) if state.steps and state.step == state.steps else min(len(rows), run.s.valid_examples)
    return rows[np.linspace(0, len(rows) - 1, n).round().astype(int)] if n else rows


@torch.no_grad()
def validate(run, rows=None):
    """Loss and accuracy of each task over the rows of a validation, or over others, as mixed_loss gives them.

    Raises: runs.Interrupted, on all ranks, if a signal asks to stop.
    """
    rows, ranks, n_tasks = validation_rows(run) if rows is None else rows, run.ranks, len(TASKS)
    run.model.eval()
    sums = torch.zeros(len(run.names), 3, device=ranks.device)
    for i, objective in enumerate(run.objectives, n_tasks):
        sums[i] = objective.validate(run)
    batches = np.split(rows, range(run.s.batch_size, len(rows), run.s.batch_size)) if len(rows) else []
    for batch_rows in progress("validation", batches) if ranks.is_main_process else batches:
        batch = run.batches.mask(run.valid, batch_rows, np.full(len(batch_rows), VALID_EPOCH))
        micro_batches = run.batches.lay_out(batch)
        for i, micro_batch in enumerate(micro_batches):
            runs.vote_to_stop(run, is_last=i == len(micro_batches) - 1)
            with hardware.autocast(ranks.device, ranks.dtype):
                sums[:n_tasks, :2] += run.model(hardware.to_device(micro_batch, ranks.device, run.compiled))
            sums[:n_tasks, 2] += torch.tensor(micro_batch.n_targets).to(ranks.device, non_blocking=True)
    run.model.train()
    losses = mixed_loss(run, np.reshape(ranks.all_reduce_sum(sums.flatten().tolist()), sums.shape))
    if not math.isfinite(loss := losses.get("loss", 0.0)):
        runs.stop_diverged(run, f"the validation loss is {loss}")
    return losses


# ---------------------------------------------------------------- before and after the loop


def begin(run):
    """Prints what the run is, validates before the first step, and finds out the steps that a time budget allows."""
    ranks, state = run.ranks, run.state
    run.matmul_flops = ranks.world_size * hardware.measure_matmul_flops(ranks.device, ranks.dtype)
    reports.print_run(run)
    if ranks.world_size > 1 or run.compiled:
        warm_up(run)
    if state.step and state.compiled != run.compiled:
        how = "compiled, and was not" if run.compiled else "no longer compiled, and was"
        ranks.print(f"the encoder is {how} up to here: dropout masks differ from here on")
    state.compiled = run.compiled
    if state.step == 0:
        rows = validation_rows(run)
        reports.announce_validation(run, rows)
        validation, seconds = timed(run, validate, run)
        last = seconds * len(run.valid) / max(1, len(rows))  # all of the split
        at_end = f"; all {len(run.valid):,} at the end, in about {last:.0f} s" if len(rows) < len(run.valid) else ""
        ranks.print(f"validation: took {seconds:.1f} s, every {run.valid_every:,} steps{at_end}")
        if not state.steps:
            fit_steps_to_budget(run, seconds, last)
        reports.log_validation(run, validation)
    if validation_is_due(run):  # a signal interrupted it
        ranks.print("first, the validation that a signal interrupted")
        reports.log_validation(run, validate(run))
        runs.save_checkpoint(run)
    steps = f"training steps {run.state.step:,} to {run.state.steps:,}, {run.s.batch_size:,} examples each"
    ranks.print(steps if run.state.step < run.state.steps else "the last validation is made up for")


def warm_up(run):
    """Compiles the encoder, and makes two passes whose gradients are thrown away, before anything is measured.

    At the beginning of its second pass DistributedDataParallel orders its buckets again, and the order decides how sums
    over three or more ranks are rounded. Without this the first step of a resumed run would differ from that of a run
    never stopped. All ranks meet there too, so that a rank that votes early (runs.vote_to_stop) would wait without end.
    """
    micro_batches, batch = run.batches.get(run.state.step)
    hardware.compile_encoder(run, micro_batches[0])
    for _ in range(2 * (run.ranks.world_size > 1)):
        forward_backward(run, micro_batches[:1], batch)
    run.optimizer.zero_grad(set_to_none=True)


def fit_steps_to_budget(run, validating, last):
    """Sets the number of steps, so that the run ends inside its time budget with validations and checkpoints.

    Whole steps are measured at a learning rate of 0, then all counters are reset. One slow step, such as another
    compilation, neither ends the measurement nor counts. A tenth of the time is held back because speed varies, and so
    are the last validation and checkpoint. The number of steps is kept in the first checkpoint, so that a resumed run
    has the same.

    Args: validating, last: seconds of a validation and of the last one. Raises: UserError if the budget is too short.
    """
    budget, took = configs.budget_seconds(run.s.time_budget), []
    while len(took) < 2 or (len(took) * min(took) < min(60, 0.02 * budget) and sum(took) < budget):
        took.append(max(1e-3, timed(run, training_step, run, 0.0)[1]))  # not without end on any clock
    run.start_over()
    a_step = statistics.median(took[1:])  # the first warms caches up
    saving = timed(run, runs.save_checkpoint, run)[1]
    left = 0.9 * budget - run.ranks.mean(time.monotonic() - run.began) - last - saving
    run.state.steps = steps = int(left / (a_step + validating / run.valid_every + saving / run.save_every))
    if steps < 1:
        enough = math.ceil((0.9 * budget - left + a_step + validating + saving) / 0.9) + 1
        raise UserError(f"time_budget = {run.s.time_budget} is too short for one step: give at least {enough}s")
    check_schedule(run.s, steps, len(run.train))
    runs.save_checkpoint(run)


def timed(run, function, *arguments):
    """(what a function returns, its seconds: the mean of all ranks)."""
    began = time.monotonic()
    result = function(*arguments)
    return result, run.ranks.mean(time.monotonic() - began)


def finish(run):
    """Prints how the run ended, and exits: with status 75 if a signal stopped it."""
    s, ranks, state = run.s, run.ranks, run.state
    if not is_done(run):
        # Steps that only measured how long one takes do not count.
        when = f"after step {state.step:,}, saved; the same command resumes from there" if state.steps else ""
        ranks.print(f"stopped by {run.stop_signal.name} {when or 'before the first step, nothing to save'}")
        ranks.exit(runs.EXIT_REQUEUE)
    if ranks.is_main_process and not runs.is_exported(run):  # killed before the model was written
        runs.check_exported(run.out)
        runs.export_checkpoint(run)
    ranks.print(f"done: {run.out}")
    if ranks.is_main_process:
        reports.print_after_training(s, run.out)
    ranks.exit(0)


COMMANDS = {"train": (train, configs.Train)}

if __name__ == "__main__":
    run_command(__doc__, COMMANDS, default="train")
