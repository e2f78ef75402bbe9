"""The machine: which device and number format to use, how fast its matrix products are, and what its memory holds."""

import ctypes
import math
import os
import re
import resource
import subprocess
import time
from contextlib import nullcontext

import numpy as np
import torch

from configs import UserError
from support.modernbert import SLIDING, layer_types
from support.programs import is_out_of_memory, read_launch

MAX_MICRO_TOKENS = 81_920  # on a GPU: a quarter above the mean batch of the paper, so that none is cut in two
# What torch.compile, Triton and the C compiler raise; torch's own exceptions are RuntimeErrors.
COMPILER_ERRORS = (RuntimeError, OSError, ImportError, subprocess.SubprocessError)
CPU_MICRO_TOKENS = 2048  # as fast as more, with less memory (docs/measurements.md)


def choose_device(name, precision):
    """(device, autocast dtype or None). bf16 from compute capability 8.0 on, fp16 before, fp32 on CPU.

    Args: name: auto, cuda or cpu. precision: auto, bf16, fp16 or fp32. Raises: UserError.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device = 'cuda', but torch sees no GPU here")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu" and precision == "fp16":
        raise UserError("precision = 'fp16' needs a GPU; on the CPU give bf16 or fp32")
    if name == "cpu":
        tune_malloc()
        # oneDNN keeps the compiled products of the last 1,024 shapes. Nearly every micro-batch has new shapes, so only
        # those of the current one are used again. A smaller cache takes less memory and time (docs/measurements.md).
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    else:
        launch = read_launch()
        if launch.local_world_size > torch.cuda.device_count():
            raise UserError(f"more ranks than GPUs: --nproc_per_node must be {torch.cuda.device_count()} at most")
        torch.cuda.set_device(launch.local_rank)
        check_kernels()
        # From capability 9.0 on attention would go to cuDNN. It plans again for every shape, and with a mask its
        # backward pass has been reported to give NaN.
        torch.backends.cuda.enable_cudnn_sdp(False)
    if precision == "auto":
        precision = "fp32" if name == "cpu" else "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
    return torch.device(name), {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[precision]


def check_kernels():
    """Raises UserError if this build of torch has no kernels for the GPU, which the first of them would find out."""
    (major, minor), built_for = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    # Kernels run on later GPUs of the same major version; PTX (compute_..) is compiled for any later one.
    numbers = [(a.split("_")[0], int(re.sub(r"\D", "", a))) for a in built_for]
    capability = 10 * major + minor
    has_kernels = any(kind == "sm" and n // 10 == major and n <= capability for kind, n in numbers)
    if built_for and not has_kernels and not any(kind == "compute" and n <= capability for kind, n in numbers):
        raise UserError(
            f"torch {torch.__version__} has no kernels for {torch.cuda.get_device_name()} (sm_{major}{minor}), only "
            f"for {' '.join(built_for)}; install a build that has them (for a V100 see Install in the README)"
        )


def compiler_message(error):
    """One line about an error of COMPILER_ERRORS."""
    inner = getattr(error, "inner_exception", error)  # what torch's own exception is about
    line = (str(inner).splitlines() or [type(inner).__name__])[0].rstrip(".")
    return line if len(line) <= 200 else f"{line[:120]} ... {line[-60:]}"


def autocast(device, dtype):
    """Mixed precision in `dtype`; with None, nothing."""
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def tune_malloc():
    """Has glibc keep freed memory, which it would otherwise map and zero again for each large tensor of a step.

    Without this setting the training of `make demo` took 109 s instead of 30, measured on one machine.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no maps of their own for large blocks
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink
    except (OSError, AttributeError):  # another system's
        pass


def measure_matmul_flops(device, dtype):
    """Floating-point operations a second of a product of two square matrices: what the machine can do at most."""
    n = 8192 if device.type == "cuda" else 2048
    generator = torch.Generator(device).manual_seed(0)  # not the global one, which a run has seeded
    a = torch.randn(n, n, device=device, dtype=dtype or torch.float32, generator=generator)
    best = math.inf
    for _ in range(3):
        began = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the GPU
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / max(best, 1e-9)


def training_flops(c, length, vocabulary_targets):
    """Floating-point operations of training on examples: what the MFU counts. Padding is none of it.

    2 per weight and token forward, 4 backward, and the two products of attention, of a sliding layer in its window.

    Args: c: the encoder's Config. length: (n,) tokens of each example. vocabulary_targets: how many the MLM head has.
    """
    weights = c.layers * (4 * c.dim**2 + (3 if c.family == "modernbert" else 2) * c.dim * c.ffn)
    n_sliding, n = layer_types(c).count(SLIDING), length.astype(float)
    reach = np.minimum(c.extra_config.get("local_attention", 0) // 2, n - 1)
    pairs = (c.layers - n_sliding) * (n**2).sum() + n_sliding * (n * (2 * reach + 1) - reach * (reach + 1)).sum()
    attention = 2 * c.dim * float(pairs)
    vocabulary = (c.dim**2 + c.dim * c.vocab_size) * float(vocabulary_targets)
    return 6.0 * (weights * float(length.sum()) + attention + vocabulary)


def peak_memory(device):
    """The most bytes taken so far: of the GPU by tensors, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def estimate_memory(c, n_parameters):
    """(bytes whatever the batch, bytes a padded token of a micro-batch) of training in mixed precision on a GPU.

    By counting what autograd keeps, not by trial. Weights, gradients, two moments and the buckets of DDP in float32 and
    a half copy: 22 a parameter. Per token and layer: the inputs of both LayerNorms in float32, queries, keys and
    values, attention's result and the inputs of the matrices in half, two bytes of dropout: 22 dim + 4 ffn. ModernBERT
    also keeps turned queries and keys, and of its gated feed-forward both halves, the activation and their product,
    but no dropout: 26 dim + 8 ffn. At the vocabulary head 12 bytes an entry (logits, log-probabilities, gradients), for
    one token in eight.
    """
    of_layer = 26 * c.dim + 8 * c.ffn if c.family == "modernbert" else 22 * c.dim + 4 * c.ffn
    return 22 * n_parameters, c.layers * of_layer + 1.5 * c.vocab_size


def auto_max_tokens(c, n_parameters, device):
    """Padded tokens of a micro-batch that a GPU's memory holds with a quarter to spare; a fixed number on CPU."""
    if device.type != "cuda":
        return CPU_MICRO_TOKENS
    return max_tokens_that_fit(c, n_parameters, torch.cuda.get_device_properties(device).total_memory)


def max_tokens_that_fit(c, n_parameters, memory):
    """Padded tokens of the largest micro-batch on a GPU of `memory` bytes, a quarter of which stays free."""
    fixed, per_token = estimate_memory(c, n_parameters)
    return int(min(MAX_MICRO_TOKENS, max(1024, (0.75 * memory - fixed) / per_token // 1024 * 1024)))


def check_model_fits(n_parameters, device):
    """Raises UserError if a model is too large to be trained here, before any of it is allocated.

    Weights, gradients and two moments of AdamW in float32 take 16 bytes a parameter, on each GPU or for each rank.
    """
    needed, ranks = 16 * n_parameters, read_launch().local_world_size
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.type == "cuda":
        available, ranks = torch.cuda.get_device_properties(device).total_memory, 1
    if needed * ranks > available:
        each = f" on each of {ranks} ranks" if ranks > 1 else ""
        what = f"{n_parameters:,} parameters take {needed / 1e9:,.0f} GB to train{each}"
        advice = f"there are {available / 1e9:,.0f} GB; give fewer --layers or a smaller --dim and --ffn"
        raise UserError(f"the model is too large for the memory: {what}, and {advice}")


# ---------------------------------------------------------------- the encoder on a device


def configure_encoder(s, encoder, ranks):
    """Has torch compile the encoder where that is faster. Returns: whether it does."""
    on_gpu = ranks.device.type == "cuda"
    is_recent = on_gpu and torch.cuda.get_device_capability()[0] >= 8  # before, Triton falls back to slow code
    compiled = s.compile == "on" or (s.compile == "auto" and is_recent and s.layout != "padded")
    if compiled:
        encoder.compile()
    return compiled


def to_device(micro_batch, device, compiled=False):
    """A MicroBatch there. compiled: of packed rows, so that one graph serves any number of them."""
    micro_batch = micro_batch.to(device)
    if compiled and micro_batch.position is not None:
        for x in (micro_batch.ids, micro_batch.mask, micro_batch.position):
            torch._dynamo.maybe_mark_dynamic(x, 0)
    return micro_batch


def compile_encoder(run, micro_batch):
    """Compiles the encoder for training and for validation, by a first pass of each; or all ranks run it uncompiled.

    They do where it fails on one of them, such as without a C compiler or with GPUs of two kinds. What fails for
    another reason than compilation fails again in the first step. Raises: UserError with --compile on.
    """
    ranks, began, fault = run.ranks, time.monotonic(), ""
    alone = nullcontext() if ranks.world_size == 1 else run.ddp.no_sync()  # the others may be without a gradient
    micro_batch = to_device(micro_batch, ranks.device, run.compiled)
    try:
        if run.compiled:
            with alone, autocast(ranks.device, ranks.dtype):
                loss_and_correct = run.ddp(micro_batch)
            loss_and_correct[:, 0].sum().backward()
            with torch.no_grad(), autocast(ranks.device, ranks.dtype):
                run.model.eval()(micro_batch)
    except COMPILER_ERRORS as e:
        if is_out_of_memory(e):
            raise
        fault = compiler_message(e)
    run.model.train()
    (n_compiled,) = ranks.all_reduce_sum([float(run.compiled and not fault)])
    if n_compiled == ranks.world_size:
        ranks.print(f"encoder compiled in {time.monotonic() - began:.0f} s")
    elif run.compiled or n_compiled:
        fault = f"{fault or 'not all ranks can'}. It needs a C compiler and Python's header files"
        if run.s.compile == "on":
            raise UserError(f"compile = 'on', but torch.compile failed: {fault}")
        ranks.print(f"the encoder runs uncompiled, as torch.compile failed: {fault}")
        run.compiled, run.model.encoder._compiled_call_impl = False, None  # as before Module.compile
