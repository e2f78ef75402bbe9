"""What a GPU would do, tried without one: half precision, ranks that compile, memory that ends, work that overlaps."""

import io
import os
import shutil
import subprocess
import sys

import pytest
import torch

import finetune
import kgi
import model as models
from beyond import embed, evaluate, link, synonyms, tag
from support import layouts, programs, runs
from tests.conftest import ROOT, command, run_command
from tests.training import args, free_ports, lines, set_up, train

pytestmark = pytest.mark.usefixtures("known_machine")

HALF = """
import functools, torch
from support import hardware
from tests.training import train_in_ranks

class Scaler(torch.amp.GradScaler):
    def __init__(self, device, enabled):
        super().__init__(device, init_scale=scale, enabled=enabled)

def half():
    hardware.choose_device = lambda *_: (torch.device("cpu"), torch.float16)
    torch.amp.GradScaler = Scaler

for n, argv, port, scale in {runs!r}:
    assert train_in_ranks(n, argv, port, half) == [0] * n
"""


def test_fp16_has_the_losses_of_float32(dataset, tmp_path):
    """In both layouts, with one rank and two. A gradient that overflows costs its step, which is counted."""
    few = {"steps": 6, "max_tokens": 600}
    train(dataset, tmp_path / "whole", **few)
    ways = [(1, "packed", 2.0**12), (2, "padded", 2.0**12), (2, "padded", 2.0**18)]
    folders = [tmp_path / f"{n}-{layout}-{scale:g}" for n, layout, scale in ways]
    half = [
        (n, args(dataset, out, layout=layout, **few), port, scale)
        for (n, layout, scale), out, port in zip(ways, folders, free_ports(len(ways)))
    ]
    p = command("-c", HALF.format(runs=half))
    assert p.returncode == 0, p.stderr
    moment = sum_of_moments(runs.read_checkpoint(tmp_path / "whole" / "checkpoint.pt"))
    for (_, _, scale), out in zip(ways, folders):
        content = runs.read_checkpoint(out / "checkpoint.pt")
        n_skipped = content["state"]["skipped"]
        assert (n_skipped > 0) == (scale > 2**15) and content["scaler"]["scale"] == scale / 2**n_skipped
        assert {int(x["step"]) for x in content["optimizer"]["state"].values()} == {6 - n_skipped}
        assert all(x.dtype == torch.float32 for x in content["model"].values())
        assert lines(tmp_path / "whole")[0] != lines(out)[0]
        # They are unscaled before they are clipped.
        assert n_skipped or sum_of_moments(content) == pytest.approx(moment, rel=0.02)
        same_losses(tmp_path / "whole", out, rel=0.02 if n_skipped else 1e-3)


def sum_of_moments(content):
    return sum(x["exp_avg"].abs().sum().item() for x in content["optimizer"]["state"].values())


COMPILING = """
import torch
import torch._dynamo
import kgi
from support import distributed, layouts
from tests.training import train_in_ranks

def compile_with_faults():
    compile, set_up, training_step = torch.nn.Module.compile, kgi.set_up, kgi.training_step
    exit, found, graphs = distributed.Ranks.exit, [], []
    def backend(graph, _):
        graphs.append(graph)
        if fails(found[0].ranks.rank, len(graphs)):
            raise RuntimeError("no space left")
        return graph.forward
    def set_up_compiled(*arguments):
        found.append(set_up(*arguments))
        found[0].s.compile = "auto"  # which compiles nothing on a CPU
        return found[0]
    def step(run, lr):
        if run.state.step == 4 and fails(run.ranks.rank, 3):
            torch._dynamo.reset()  # as if another graph were needed
        return training_step(run, lr)
    def ends(ranks, status):
        print(f"rank {{ranks.rank}}: {{len(graphs)}} graphs", flush=True)
        exit(ranks, status)
    torch.nn.Module.compile = lambda encoder: compile(encoder, backend=backend)
    kgi.set_up, kgi.training_step, distributed.Ranks.exit = set_up_compiled, step, ends
    layouts.ROW_MULTIPLE["cpu"] = 1

for fails, argv, port, is_good in {runs!r}:
    print("begin", flush=True)
    fails = eval("lambda rank, n: " + fails)
    assert (train_in_ranks(2, argv, port, compile_with_faults) == [0, 0]) == is_good
"""


def test_two_ranks_compile_together(dataset, tmp_path):
    """Both, or neither; where one fails later, it says what to do, and the run ends as one that was never compiled."""
    few = {"layout": "packed", "layers": 1, "max_tokens": 10**6}
    train(dataset, tmp_path / "whole", **few)
    plan = [  # (when a graph fails, folder, compile, whether the run ends well)
        ("False", "both", "on", True), ("rank == 1 and n == 1", "neither", "on", True),
        ("rank == 1 and n == 3", "later", "on", False), ("False", "later", "off", True),
    ]  # fmt: skip
    trainings = [
        (fails, args(dataset, tmp_path / name, compile=on, **few), port, is_good)
        for (fails, name, on, is_good), port in zip(plan, free_ports(len(plan)))
    ]
    p = command("-c", COMPILING.format(runs=trainings))
    assert p.returncode == 0, p.stderr
    both, neither, later, resumed = p.stdout.split("begin\n")[1:]
    assert "encoder compiled in" in both and all(f"rank {k}: 2 graphs" in both for k in (0, 1))
    line = "the encoder runs uncompiled, as torch.compile failed: not all ranks can."  # rank 0 knows no more
    assert neither.count("uncompiled") == 1 and line in neither
    line = "error: rank 1: torch.compile failed after step 4: no space left; retry with --compile off; the run will"
    assert p.stderr.count(line) == 1 and "encoder compiled in" in later
    assert "training steps 3 to 6" in resumed and "the encoder is no longer compiled, and was" in resumed
    for name in ("both", "neither", "later"):
        same_losses(tmp_path / "whole", tmp_path / name)


def same_losses(one, two, rel=2e-5):
    for a, b in zip(lines(one), lines(two), strict=True):
        a, b = (x.get("valid", x)["loss"] for x in (a, b))
        assert a == pytest.approx(b, rel=rel)


@pytest.fixture(scope="module")
def places(dataset, tmp_path_factory):
    """{name: path} of a run, a corpus, its tagger, and a file of lines."""
    folder = tmp_path_factory.mktemp("places")
    shutil.copytree(dataset.parent, folder / "built")  # pairs of names come beside its files
    dataset = folder / "built" / dataset.name
    names = {name: str(folder / name) for name in ("run", "corpus", "tuned", "lines.txt", "new")} | {"data": dataset}
    train(dataset, folder / "run", steps=1, layers=1)
    (folder / "corpus").mkdir()
    for split in ("train", "test"):
        (folder / "corpus" / f"{split}.txt").write_text("foie B-x\nva O\n")
    (folder / "lines.txt").write_text("foie\nva\n")
    run_command(finetune, names["run"], "--data", names["corpus"], "--out", names["tuned"], "--device", "cpu")
    synonyms.build(synonyms.Build(dataset=str(dataset), pairs=200))
    return names


ENDED = (
    "out of memory: end other programs that use this memory, or give a smaller batch, a smaller model or --device cpu"
)
IN_A_RUN = "rank 0: out of memory with micro-batches of 2,048 tokens; retry with --max_tokens 1024; the run will resume"
SMALL = "--layers 1 --heads 2 --dim 32 --ffn 64 --steps 2 --batch_size 40 --data data --out new"
FORWARD = (models.Encoder, "forward")


@pytest.mark.parametrize("program, argv, place, message", [
    (kgi, SMALL, (models.KGIBert, "to"), ENDED), (kgi, SMALL, (kgi, "validate"), IN_A_RUN),
    (kgi, SMALL, (kgi, "update"), IN_A_RUN), (kgi, SMALL, FORWARD, IN_A_RUN),
    (kgi, SMALL, (layouts, "padded"), IN_A_RUN),  # in the thread that assembles
    (synonyms, SMALL, (models.KGIBert, "to"), ENDED), (synonyms, SMALL, FORWARD, IN_A_RUN),
    (finetune, "run --data corpus --out new", FORWARD, ENDED), (embed, "run lines.txt", FORWARD, ENDED),
    (tag, "tuned lines.txt --out new", FORWARD, ENDED),
    (link, "run lines.txt --data data --out new", FORWARD, ENDED),
    (evaluate, "run --data data --out new", FORWARD, ENDED),
    (evaluate, "map run --data data --out new", FORWARD, ENDED),
])  # fmt: skip
def test_memory_that_ends_is_one_line_of_advice(places, tmp_path, monkeypatch, program, argv, place, message):
    """Wherever it is; nothing is left half-written."""

    def full(*_, **more):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of ..")

    ended, new = [], tmp_path / "new"
    words = [str((places | {"new": new}).get(word, word)) for word in argv.split()]
    monkeypatch.setattr(*place, full)
    monkeypatch.setattr(programs, "end_process", ended.append)
    monkeypatch.setattr(sys, "argv", ["program.py", *words, "--device", "cpu"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
    programs.run_command("doc", program.COMMANDS, [*program.COMMANDS][0])
    (line,) = ended
    said = "" if message == IN_A_RUN else " (CUDA out of memory. Tried to allocate 2.00 GiB)"
    assert line.startswith(f"program.py: error: {message}") and line.endswith(said) and "\n" not in line
    assert not new.exists() or [p.name for p in new.iterdir()] in ([], ["metrics.jsonl"])


def test_the_next_batch_is_assembled_once_a_gpu_has_its_work(dataset, tmp_path, monkeypatch):
    """Before, its thread would take turns with Python's launches; later, the GPU would wait for it."""
    run, seen = set_up(dataset, tmp_path, steps=3, valid_every=3), []
    forward_backward, update, assemble = kgi.forward_backward, kgi.update, run.batches.assemble

    def launched(*arguments):
        assert [*run.batches.get.prefetched] == [run.state.step]
        return forward_backward(*arguments)

    def updated(run, lr):
        assert [*run.batches.get.prefetched] == [run.state.step]
        update(run, lr)

    monkeypatch.setattr(kgi, "forward_backward", launched)
    monkeypatch.setattr(kgi, "update", updated)
    run.batches.get.function = lambda step: seen.append(step) or assemble(step)
    kgi.training_loop(run)
    run.batches.get.thread.shutdown()
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("given, found", [
    ({}, ["expandable_segments:True", None]),
    ({"PYTORCH_CUDA_ALLOC_CONF": "x:1"}, ["x:1", None]), ({"PYTORCH_ALLOC_CONF": "y:2"}, [None, "y:2"]),
])  # fmt: skip
def test_memory_of_a_gpu_may_grow_in_place(given, found):
    """Before torch is imported, and unless the user has set the allocator."""
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    env = {name: value for name, value in os.environ.items() if name not in names} | given
    code = f"import configs, os, sys; print([*map(os.environ.get, {names})], 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True).stdout
    assert shown == f"{found} False\n"
