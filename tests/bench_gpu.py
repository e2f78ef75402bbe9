"""Ten minutes on one GPU: is it correct there, how fast is it, and how far is the count from the truth?

    python tests/gpu_counts.py --gpu h200 --out predicted.json                     beforehand, where no GPU is needed
    python tests/bench_gpu.py --out gpu.json --predicted predicted.json            (make bench, where torch sees a GPU)
    python tests/bench_gpu.py --family modernbert --size 22x768                    another encoder

A stage measures several ways. After each way its figures are printed beside their predictions, and the file is written.
A way that fails leaves its error there, so that the others are not lost. So does one that is not over at the end of its
stage, of which each has one on the clock (STAGES). What is wanted most comes first. Everything takes the paper's mix of
lengths, as make bench does.

    machine      versions, matrix rate, memory bandwidth
    packed       tokens a second, MFU and peak memory of packed rows: compiled (with its seconds), eager, fp16
    attention    forward and backward of one layer's attention over packed rows, by the kernel that is named
    correct      bf16 and fp16 beside fp32, layouts beside each other, resume, an fp16 overflow
    profile      time by class of kernel, and the number of launches, of packed rows
    padded       as packed, of rows of one example
    losses       losses of a run in fp32 and of the fastest ones

Before compute capability 8.0 nothing is compiled, and nothing measured in bf16.
"""

import argparse
import copy
import gc
import json
import shutil
import signal
import statistics
import sys
import tempfile
import time
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import configs  # noqa: E402
import kgi  # noqa: E402
from support import hardware, runs  # noqa: E402
from support.files import write_json  # noqa: E402
from tests import bench  # noqa: E402

CORRECT_STEPS = 5  # enough for the losses to depend on the gradients


class OutOfTime(Exception):
    """The stage is at its end."""


class Bench:
    """What the stages share."""

    def __init__(self, args, folder):
        self.args, self.folder, self.n_runs = args, folder, 0
        self.device, _ = hardware.choose_device("auto", "auto")
        self.half, self.compile = ["bf16"], "on"
        if self.device.type == "cuda":
            is_recent = torch.cuda.get_device_capability()[0] >= 8
            self.half, self.compile = (["bf16", "fp16"], "on") if is_recent else (["fp16"], "off")
        cases = args.predicted["cases"] if args.predicted else ()
        fitting = (case["ways"] for case in cases if case["ranks"] == 1 and case["gpu"] in self.name().lower())
        self.predicted = next(fitting, {})
        if not self.predicted:
            print(f"no predictions for {self.name()}: tests/gpu_counts.py makes them, and --predicted reads them")

    def name(self):
        return torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"

    def set_up(self, **settings):
        """A Run of its own folder, before its first step."""
        self.n_runs += 1
        defaults = dict(
            data=str(self.folder), out=f"{self.folder}/run-{self.n_runs}", steps=200, precision=self.half[0],
            warmup=0.1, batch_size=self.args.batch, compile="off", layout="packed",
            **bench.encoder_size(*self.args.size, self.args.family),
        )  # fmt: skip
        return kgi.set_up(configs.Train(**defaults | settings))

    def beside(self, way, measured, *keys):
        """The figures of a way, with the predictions of those in `keys`: pairs are ranges."""
        predicted = self.predicted.get(way, {})
        return measured | ({"predicted": {key: predicted[key] for key in keys}} if predicted else {})

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, function, repeat=5):
        """Median seconds of a call, after one that warms up."""
        took = []
        for _ in range(repeat + 1):
            self.wait()
            began = time.perf_counter()
            function()
            self.wait()
            took.append(time.perf_counter() - began)
        return statistics.median(took[1:])


def train_steps(run, n):
    """n steps of the training loop. Returns: the loss of each."""
    losses = []
    for _ in range(n):
        before = np.array(run.state.sums)
        lr = kgi.learning_rate(run.state.step, run.state.steps, kgi.warmup_steps(run.s, run.state.steps), run.s.lr)
        kgi.training_step(run, lr)
        losses.append(kgi.mixed_loss(run, np.array(run.state.sums) - before)["loss"])
    return losses


# ---------------------------------------------------------------- the stages: {way: the function that measures it}


def machine(b):
    return {"machine": partial(measure_machine, b)}


def measure_machine(b):
    is_gpu = b.device.type == "cuda"
    n = 2**30 if is_gpu else 2**26
    x = torch.empty(n, dtype=torch.uint8, device=b.device)
    dtypes = {"fp32": None} | {name: {"bf16": torch.bfloat16, "fp16": torch.float16}[name] for name in b.half}
    return {
        "torch": torch.__version__, "cuda": torch.version.cuda, "name": b.name(),
        "cudnn_attention": torch.backends.cuda.cudnn_sdp_enabled(),
        "tflops": {name: hardware.measure_matmul_flops(b.device, dtype) / 1e12 for name, dtype in dtypes.items()},
        "bandwidth_gb_s": 2 * n / b.seconds(x.clone) / 1e9,
    }  # fmt: skip


def correct(b):
    """Differences from padded micro-batches in fp32: relative of the losses, and of the gradient of the first step.

    A wrong mask or position hardly changes the loss of an untrained encoder, but much of its gradient.
    """
    exact = dict(dropout=0.0, lr=1e-4)

    def measure(**settings):
        run = b.set_up(**exact | settings)
        kgi.forward_backward(run, *run.batches.get(0))
        gradient = torch.cat([p.grad.flatten().cpu() for p in run.model.parameters()]) / run.scaler.get_scale()
        run.optimizer.zero_grad()
        return gradient, train_steps(run, min(CORRECT_STEPS, b.args.steps))

    @cache
    def exact_measure():
        return measure(precision="fp32", layout="padded")

    def difference(**settings):
        reference, losses = exact_measure()
        gradient, found = measure(**settings)
        return {
            "losses": float(max(abs(np.array(found) / losses - 1))),
            "gradient": float((gradient - reference).norm() / reference.norm()),
        }

    out = {"packed, fp32": partial(difference, precision="fp32")}
    for precision in b.half:
        for layout in ("packed", "padded"):
            out[f"{layout}, {precision}"] = partial(difference, precision=precision, layout=layout)
    if b.compile == "on":
        out["packed, compiled"] = partial(difference, compile="on")
    return out | {
        "resume, largest difference of a weight": partial(resume_difference, b), "overflow": partial(forced_overflow, b)
    }  # fmt: skip


def resume_difference(b):
    """Between the weights of four steps, and of two, a checkpoint, and two more."""
    straight, stopped = b.set_up(), b.set_up()
    train_steps(straight, 4)
    train_steps(stopped, 2)
    stopped.out.mkdir(parents=True)
    runs.save_checkpoint(stopped)
    resumed = b.set_up(out=str(stopped.out))
    runs.resume(resumed)
    train_steps(resumed, 2)
    pairs = zip(straight.model.parameters(), resumed.model.parameters())
    return max(float((x - y).detach().abs().max()) for x, y in pairs)


def forced_overflow(b):
    """Whether fp16 skips a step whose gradients overflow, and takes a later one."""
    if "fp16" not in b.half:
        return "not measured"
    run = b.set_up(precision="fp16")
    run.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**60, backoff_factor=2.0**-50)
    before = copy.deepcopy(run.model.mlm_bias.data)
    train_steps(run, 1)
    kept = run.state.skipped == 1 and torch.equal(before, run.model.mlm_bias.data)
    train_steps(run, 2)
    return (
        "skipped" if kept and run.state.skipped == 1 and not torch.equal(before, run.model.mlm_bias.data) else "WRONG"
    )


def speed(b, way, **settings):
    """Tokens a second, MFU and memory of training steps, beside the predictions."""
    began = time.perf_counter()
    run = b.set_up(**settings)
    if b.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    train_steps(run, 3)  # they warm up and compile
    b.wait()
    first = time.perf_counter() - began
    run.state.begin_interval(len(run.names))
    took = []
    for _ in range(b.args.steps):
        began = time.perf_counter()
        train_steps(run, 1)
        b.wait()
        took.append(time.perf_counter() - began)
    work, c = run.state.work, run.model.encoder.config
    per_second = {key: work[key] / len(took) / statistics.median(took) for key in ("tokens", "flops")}
    rate = hardware.measure_matmul_flops(b.device, run.ranks.dtype)
    micro_batches, _ = run.batches.assemble(0)
    fixed, per_token = hardware.estimate_memory(c, sum(p.numel() for p in run.model.parameters()))
    estimate = fixed + per_token * max(x.ids.numel() for x in micro_batches)
    measured = {
        "micro_batches": len(micro_batches), "step_ms": 1e3 * statistics.median(took),
        "tokens_per_s": per_second["tokens"], "mfu": per_second["flops"] / rate, "tflops_of_matrices": rate / 1e12,
        "inputs_pinned": micro_batches[0].ids.is_pinned(),
        "padding": 1 - work["tokens"] / work["computed"], "first_steps_s": first,
        "peak_gb": hardware.peak_memory(b.device) / 1e9, "estimated_peak_gb": estimate / 1e9,
    }  # fmt: skip
    return b.beside(way, measured, "step_ms", "tokens_per_s", "mfu", "padding", "peak_gb")


def padded(b):
    return {"padded": partial(speed, b, "padded", layout="padded")}


def profile(b):
    ways = {"packed, compiled": "on", "packed rows": "off"}
    return {way: partial(measure_kernels, b, way, x) for way, x in ways.items() if x in ("off", b.compile)}


def measure_kernels(b, way, compile):
    """Milliseconds a step by class of kernel, and launches a step."""
    run = b.set_up(compile=compile)
    train_steps(run, 2)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if b.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        train_steps(run, 3)
        b.wait()
    wanted = torch.autograd.DeviceType.CUDA if b.device.type == "cuda" else torch.autograd.DeviceType.CPU
    # An annotation, such as that of the optimizer's step, spans the kernels that are counted themselves.
    events = [e for e in profiler.events() if e.device_type == wanted and not getattr(e, "is_user_annotation", False)]
    by_class = dict.fromkeys(("matrices", "attention", "copies", "other"), 0.0)
    for event in events:
        by_class[class_of(event.name)] += event.self_device_time_total if wanted.value else event.self_cpu_time_total
    by_class = {name: total / 3e3 for name, total in by_class.items()}
    return b.beside(way, {"by_class_ms": by_class, "launches": len(events) / 3}, "by_class_ms", "launches")


def class_of(kernel):
    """A class by the name of a kernel."""
    name = kernel.lower()
    classes = {"attention": ("attention", "fmha", "flash"), "matrices": ("gemm", "cutlass", "nvjet", "mm"),
               "copies": ("memcpy", "memset")}  # fmt: skip
    return next((c for c, parts in classes.items() if any(part in name for part in parts)), "other")


def attention(b):
    ways = {
        "efficient, float bias, dropout": (SDPBackend.EFFICIENT_ATTENTION, "bias", 0.1),
        "efficient, float bias": (SDPBackend.EFFICIENT_ATTENTION, "bias", 0.0),
        "efficient, bool mask, dropout": (SDPBackend.EFFICIENT_ATTENTION, "mask", 0.1),
        "flash, no mask, no dropout": (SDPBackend.FLASH_ATTENTION, None, 0.0),
    }  # fmt: skip
    return {way: partial(measure_attention, b, *settings) for way, settings in ways.items()}


def measure_attention(b, kernel, what, p):
    """Milliseconds of forward and backward of one layer's attention over an effective batch, by this kernel."""
    layers, dim = b.args.size
    heads, dtype = dim // 64, torch.float16 if b.half == ["fp16"] else torch.bfloat16
    micro_batches, _ = b.set_up().batches.assemble(0)
    segment = micro_batches[0].mask.to(b.device)
    n, length = segment.shape
    apart = segment[:, None, :, None] != segment[:, None, None, :]
    bias = torch.zeros(apart.shape, dtype=dtype, device=b.device).masked_fill_(apart, float("-inf"))
    mask = {"bias": bias, "mask": ~apart, None: None}[what]
    q, k, v = (torch.randn(n, heads, length, 64, device=b.device, dtype=dtype, requires_grad=True) for _ in range(3))

    def both():
        with sdpa_kernel(kernel):
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p).sum().backward()

    return 1e3 * b.seconds(both)


def packed(b):
    compiled = {"packed, compiled": partial(speed, b, "packed, compiled", compile="on")} if b.compile == "on" else {}
    out = compiled | {"packed rows": partial(speed, b, "packed rows")}
    if len(b.half) == 2:
        out["packed, compiled, fp16"] = partial(speed, b, "packed, compiled", compile="on", precision="fp16")
    return out


def losses(b):
    """The loss after a few more steps: with dropout, so equal only within its noise."""
    ways = {"fp32, padded": dict(precision="fp32", layout="padded")}
    ways |= {f"{precision}, packed": dict(precision=precision, compile=b.compile) for precision in b.half}

    def last_losses(settings):
        return train_steps(b.set_up(**settings), b.args.steps)[-3:]

    return {way: partial(last_losses, settings) for way, settings in ways.items()}


# Seconds on the clock at which each stage ends. Time that one leaves is for the next.
STAGES = {machine: 20, packed: 210, attention: 250, correct: 370, profile: 440, padded: 480, losses: 600}


def measure_all(b):
    """Every way of every stage; the file is written after each."""
    results, began = {}, time.monotonic()
    signal.signal(signal.SIGALRM, end_stage)
    for stage, end in STAGES.items():
        figures = results[stage.__name__] = {}
        for way, measure in stage(b).items():
            since = time.monotonic()
            figures[way] = attempt(measure, began + end - since)
            if b.device.type == "cuda":
                gc.collect()  # the weights of the run
                torch.cuda.empty_cache()
                torch.compiler.reset()  # it compiles the same code only a few times
            write_json(b.args.out, results)
            took = time.monotonic() - since
            print(f"{stage.__name__}: {json.dumps({way: figures[way]})} ({took:.0f} s)", flush=True)


def attempt(function, seconds):
    """Calls a function that may take so many seconds. Returns: its result, or {"error": why there is none}."""
    if seconds <= 0:
        return {"error": "not begun: its stage is at its end"}
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return function()
    except Exception as e:  # whatever it is: the minutes on the GPU are for the other ways too
        return {"error": f"{type(e).__name__}: {e}"[:1000]}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def end_stage(*_):
    raise OutOfTime("stopped at the end of its stage")


def predictions(path):
    """The argument of --predicted, as argparse takes it."""
    if not Path(path).is_file():
        raise ValueError
    return json.loads(Path(path).read_text())


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--size", type=bench.layers_and_dim, default=(12, 768), metavar="12x768")
    parser.add_argument("--batch", type=int, default=configs.Train.batch_size, help="examples of an effective batch")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--family", choices=configs.ARCHITECTURES, default="distilbert")
    parser.add_argument("--predicted", type=predictions, help="what tests/gpu_counts.py --out wrote")
    args = parser.parse_args(argv)
    of = args.predicted and (args.predicted.get("size"), args.predicted.get("family"))
    if of not in (None, ([*args.size], args.family)):
        parser.error("--predicted is of another --size or --family")
    folder = Path(tempfile.mkdtemp())
    try:
        bench.write_mix(folder)
        measure_all(Bench(args, folder))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
