"""Run folders, memory and ranks: what a run resumes from, what it refuses, and what it tells the user to do."""

import contextlib
import io
import re
import shutil
import socket
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch

import configs
import kgi
import model as models
from configs import UserError
from support import distributed, hardware, programs, runs
from support.files import folder_lock
from tests.training import args, one_step, same_end, set_up, settings, train

pytestmark = pytest.mark.usefixtures("known_machine")


@pytest.fixture(scope="module")
def baseline(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "one"
    train(dataset, out)
    return out


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(dataset, out, dropout=0.1, save_every=1)
    return out


@pytest.mark.parametrize("damage", ["cut", "one bit", "empty", "other", "no model"])
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_used(dataset, undisturbed, tmp_path, damage, capsys):
    out, few = tmp_path / "run", {"dropout": 0.1, "save_every": 1}
    train(dataset, out, **few)
    last, previous = out / "checkpoint.pt", out / "checkpoint.prev.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    fault = f"{last}: damaged"
    if damage == "no model":
        fault = f"{last} is not a checkpoint of this program: no model in it"
        whole = torch.load(last, weights_only=True)
        torch.save({key: whole[key] for key in whole if key != "model"}, last)
    else:
        last.write_bytes({"cut": content[:3000], "one bit": content, "empty": b"", "other": b"hello" * 100}[damage])
    capsys.readouterr()
    train(dataset, out, **few)
    assert f"{fault}; resuming from the previous checkpoint, of step 5" in capsys.readouterr().out
    same_end(out, undisturbed)
    assert runs.read_checkpoint(previous)["state"]["step"] == 5  # the good one, not the damaged
    for path in (last, previous):
        path.write_bytes(content[:3000])
    with pytest.raises(UserError, match="checkpoint.prev.pt: damaged; no checkpoint is left to resume from"):
        train(dataset, out, **few)


def without(d, *keys):
    return {k: v for k, v in d.items() if k not in keys}


def with_tensor(content, part, change):
    """A checkpoint in which the first tensor of the model, or of the optimizer, is another."""
    if part == "model":
        name, tensor = next(iter(content["model"].items()))
        return content | {"model": content["model"] | {name: change(tensor)}}
    moments = content["optimizer"]["state"][0]
    state = content["optimizer"]["state"] | {0: moments | {"exp_avg": change(moments["exp_avg"])}}
    return content | {"optimizer": content["optimizer"] | {"state": state}}


FAULTS = {
    "no optimizer in it": lambda c: without(c, "optimizer"), "no scaler in it": lambda c: without(c, "scaler"),
    "no signature in it": lambda c: without(c, "signature"), "it is no object": lambda c: [c],
    "more in it is unknown": lambda c: c | {"more": 1},
    "state is no object": lambda c: c | {"state": 3}, "model is no object": lambda c: c | {"model": torch.ones(2)},
    "signature does not hold the settings of a run": lambda c: c | {"signature": [1]},
    "signature does not hold": lambda c: c | {"signature": c["signature"] | {"lr": torch.ones(2)}},
    "signature does": lambda c: c | {"signature": c["signature"] | {"tasks": [torch.ones(2)]}},
    "no step in state": lambda c: c | {"state": without(c["state"], "step")},
    "moment in state is unknown": lambda c: c | {"state": c["state"] | {"moment": 1}},
    "step in state is '3'": lambda c: c | {"state": c["state"] | {"step": "3"}},
    "step in state is -1": lambda c: c | {"state": c["state"] | {"step": -1}},
    "steps in state is 1000": lambda c: c | {"state": c["state"] | {"steps": 10**400}},
    "skipped in state is True": lambda c: c | {"state": c["state"] | {"skipped": True}},
    "state is at step 7 of 6": lambda c: c | {"state": c["state"] | {"step": 7}},
    "sums in state is no list of 4": lambda c: c | {"state": c["state"] | {"sums": [[1.0] * 3]}},
    "sums in state is None": lambda c: c | {"state": c["state"] | {"sums": [[None] * 3] * 4}},
    "seconds in work in state is nan": lambda c: c | {
        "state": c["state"] | {"work": c["state"]["work"] | {"seconds": float("nan")}}
    },
    "no mlm_bias in model": lambda c: c | {"model": without(c["model"], "mlm_bias")},
    "mlm_bias in model has shape [2], not [": lambda c: with_tensor(c, "model", lambda t: t[:2]),
    "mlm_bias in model is no tensor of numbers": lambda c: with_tensor(c, "model", torch.Tensor.tolist),
    "mlm_bias in model is no tensor": lambda c: with_tensor(c, "model", torch.Tensor.to_sparse),
    "state of the optimizer is no object": lambda c: c | {"optimizer": {}},
    "state of the optimizer is no": lambda c: c | {"optimizer": 5},
    "no 0 in state of the optimizer": lambda c: c | {"optimizer": c["optimizer"] | {"state": {}}},
    "exp_avg in 0 in state of the optimizer has shape [2]": lambda c: with_tensor(c, "optimizer", lambda t: t[:2]),
    "no scale in scaler": lambda c: c | {"scaler": {"growth": 1}}, "scaler is no object": lambda c: c | {"scaler": [1]},
}  # fmt: skip


def test_a_checkpoint_of_another_form_is_as_a_damaged_one(dataset, baseline, tmp_path, capsys):
    """One line names the file and what is wrong in it, and the previous one is used; then there is none left."""
    out = shutil.copytree(baseline, tmp_path / "run")
    whole, run = torch.load(out / "checkpoint.pt", weights_only=True), set_up(dataset, out)
    for fault, change in FAULTS.items():
        torch.save(change(whole), out / "checkpoint.pt")
        capsys.readouterr()
        runs.resume(run)
        (line, *_), state = capsys.readouterr().out.splitlines(), run.state
        assert line.startswith(f"{out / 'checkpoint.pt'} is not a checkpoint of this program: {fault}"), fault
        assert line.endswith("; resuming from the previous checkpoint, of step 3") and state.step == 3 and run.fell_back
    torch.save(without(whole, "model"), out / "checkpoint.prev.pt")
    with pytest.raises(UserError, match="prev.pt is not .*: no model in it; no checkpoint is left to resume from"):
        runs.resume(run)
    for good in (whole, whole | {"scaler": torch.amp.GradScaler("cpu").state_dict()}):
        torch.save(good, out / "checkpoint.pt")
        runs.resume(run)
        assert run.state.step == run.state.validated == 6 and not run.fell_back  # its last validation is not made twice
    (out / "checkpoint.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="no checkpoint is left"):
        runs.resume(run)


def test_what_a_run_cannot_resume(dataset, baseline, tmp_path):
    for more, change in (({"lr": 5e-4}, "lr was 0.001, now 0.0005"), ({"seed": 1}, "seed was 0, now 1"),
                         ({"steps": 9}, "steps was 6, now 9")):  # fmt: skip
        with pytest.raises(UserError, match=f"cannot resume .*checkpoint.pt: {change}; use the same settings, another"):
            train(dataset, baseline, **more)
    models.load(baseline).save(tmp_path / "model")
    with pytest.raises(UserError, match="holds a config.json, but no checkpoint.pt"):
        train(dataset, tmp_path / "model")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    with pytest.raises(UserError, match="holds a README.md, but no checkpoint.pt"):
        train(dataset, tmp_path / "mine")
    assert [(p.name, p.read_text()) for p in (tmp_path / "mine").iterdir()] == [("README.md", "mine")]
    for text in ('{"step": 3, "reward": 0.5}\n', "a diary\n", '{"step": 0, "valid": {}}\n[1]\n'):
        (tmp_path / "theirs").mkdir(exist_ok=True)
        (tmp_path / "theirs" / "metrics.jsonl").write_text(text)
        with pytest.raises(UserError, match="holds a metrics.jsonl, but no checkpoint.pt"):
            train(dataset, tmp_path / "theirs")
        assert (tmp_path / "theirs" / "metrics.jsonl").read_text() == text
    torch.save([1], tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="not a checkpoint of this program"):
        train(dataset, tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes((baseline / "checkpoint.pt").read_bytes()[:1000])
    with pytest.raises(UserError, match="checkpoint.pt: damaged; no checkpoint is left to resume from"):
        train(dataset, tmp_path)


def test_a_run_of_an_earlier_version_is_resumed(dataset, baseline, tmp_path):
    """If its settings that are gone, and those of now that it lacks, are at their defaults; else it ends in a line."""
    out = shutil.copytree(baseline, tmp_path / "run")
    whole, run = torch.load(out / "checkpoint.pt", weights_only=True), set_up(dataset, out)
    gone, signature = {"bf16_stream": False, "attention_dropout": True}, dict(whole["signature"])
    assert signature.pop("family") == "distilbert"
    torch.save(whole | {"signature": signature | gone}, out / "checkpoint.pt")
    runs.resume(run)
    assert run.state.step == 6 and not run.fell_back
    with pytest.raises(UserError, match="family was distilbert, now modernbert; use the same settings"):
        runs.resume(set_up(dataset, out, family="modernbert"))
    for name, default in gone.items():
        torch.save(whole | {"signature": signature | gone | {name: not default}}, out / "checkpoint.pt")
        with pytest.raises(UserError, match=f"cannot resume .*: {name} was {not default}, now not a setting any more;"):
            runs.resume(run)


def test_files_of_a_user_in_a_run_folder_stay(dataset, tmp_path):
    """Before the first checkpoint, and before a run is resumed."""
    one_step(set_up(dataset, tmp_path / "run"))
    runs.check_exported(tmp_path / "run")
    for name in ("README.md", "config.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_text('{"mine": 1}')
        with pytest.raises(UserError, match=f"holds a {name}, but no checkpoint.pt to resume from"):
            runs.refuse_foreign_folder(tmp_path, [], 0)
        ours = (tmp_path / "run" / name).read_bytes()
        (tmp_path / "run" / name).write_text('{"mine": 1}')
        with pytest.raises(UserError, match=f"run/{name} is not an output of this command; move it away"):
            train(dataset, tmp_path / "run")
        assert {(folder / name).read_text() for folder in (tmp_path, tmp_path / "run")} == {'{"mine": 1}'}
        (tmp_path / name).unlink()
        (tmp_path / "run" / name).write_bytes(ours)


def test_training_on_a_full_disk(dataset, tmp_path, full_disk):
    """The file is named. Neither half a line stays, nor a folder without anything in it."""
    with full_disk(0), pytest.raises(UserError, match="run/metrics.jsonl: cannot be written: File too large"):
        train(dataset, tmp_path / "runs" / "run")
    assert not list(tmp_path.iterdir())
    with full_disk(1500), pytest.raises(UserError, match="run/(metrics.jsonl|checkpoint.pt): cannot be written"):
        train(dataset, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes()[-2:] == b"}\n"
    train(dataset, tmp_path / "run")
    with contextlib.redirect_stdout(io.TextIOWrapper(open("/dev/full", "wb", buffering=0), write_through=True)):
        with pytest.raises(UserError, match="standard output: cannot be written: No space left on device"):
            distributed.Ranks(settings(dataset, tmp_path)).print("x")


def test_a_run_that_ended_before_its_first_checkpoint_begins_again(dataset, baseline, tmp_path):
    for n in (0, 1, 3):
        (tmp_path / "run").mkdir(exist_ok=True)
        first = (baseline / "metrics.jsonl").read_text().splitlines(keepends=True)[:n]
        (tmp_path / "run" / "metrics.jsonl").write_text("".join(first))
        runs.resume(set_up(dataset, tmp_path / "run"))
        assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""


def test_one_process_a_run_folder(dataset, tmp_path, monkeypatch):
    """To its very end; the folder is free again when the process has ended, however it did."""
    out = tmp_path / "run"
    with folder_lock(out, "tried"), pytest.raises(UserError, match="run: another process is training into it"):
        train(dataset, out, steps=1)

    def failing(_):
        raise TypeError

    with monkeypatch.context() as m, pytest.raises(TypeError):
        m.setattr(kgi, "begin", failing)
        train(dataset, out, steps=1)

    def is_locked(run):
        with pytest.raises(UserError, match="tried"), folder_lock(run.out, "tried"):
            pass
        return True

    monkeypatch.setattr(runs, "is_exported", is_locked)
    train(dataset, out, steps=1)


def test_ranks_that_see_different_checkpoints(dataset, tmp_path):
    run = set_up(dataset, tmp_path / "run")
    run.ranks.all_reduce_sum = lambda numbers: [n + 7 for n in numbers]  # another rank is at step 7
    with pytest.raises(UserError, match="the ranks see different checkpoints in .*; all nodes must share the folder"):
        runs.resume(run)
    assert not (tmp_path / "run").exists()


RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TWO = {"WORLD_SIZE": "2", "RANK": "1"}


@pytest.mark.parametrize("variables, message", [
    ({"RANK": "x"}, "RANK = 'x' in the environment is no number from 0 on; unset it, or use torchrun"),
    ({"WORLD_SIZE": ""}, "WORLD_SIZE = '' in the"), ({"LOCAL_RANK": "-1"}, "LOCAL_RANK = '-1' in the"),
    ({"LOCAL_WORLD_SIZE": "4(x2)"}, "LOCAL_WORLD_SIZE = '4(x2)' in the"), ({"RANK": "²"}, "RANK = '²' in the"),
    ({"RANK": "9" * 5000}, "RANK = '999"), ({"WORLD_SIZE": "0"}, "RANK = 0 in the environment is not below WORLD_SIZE"),
    ({"RANK": "1"}, "RANK = 1 in the environment is not below WORLD_SIZE = 1; start with torchrun"),
    (TWO | {"RANK": "2"}, "RANK = 2 in the environment is not below WORLD_SIZE = 2"),
    ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"}, "LOCAL_RANK = 1 in the environment is not below LOCAL_WORLD_SIZE"),
    (TWO, "WORLD_SIZE = 2, but MASTER_ADDR = '' in the environment"),
    (TWO | {"MASTER_ADDR": "node1", "MASTER_PORT": "x"}, "WORLD_SIZE = 2, but MASTER_PORT = 'x' in the environment"),
])  # fmt: skip
def test_an_environment_of_ranks_that_is_wrong_is_one_line(dataset, tmp_path, monkeypatch, variables, message):
    """And that line is printed, whatever LOCAL_RANK is."""
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=re.escape(message)):
        set_up(dataset, tmp_path / "run")
    assert programs.is_first_here() and not (tmp_path / "run").exists()


def test_ranks_as_the_launchers_set_them(monkeypatch):
    for variables, want in (
        ({}, (0, 1, 0, 1)), (TWO, (1, 2, 0, 1)), (TWO | {"LOCAL_RANK": "3"}, (1, 2, 3, 4)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, (5, 8, 1, 4)),
    ):  # fmt: skip
        for name in RANKS:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert programs.read_launch() == want and programs.is_first_here() == (want[2] == 0)
    monkeypatch.setenv("LOCAL_RANK", "9")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    for name, message in (("LOCAL_WORLD_SIZE", "LOCAL_RANK = 9 .* not below LOCAL_WORLD_SIZE = 4"), ("", "more ranks")):
        with pytest.raises(UserError, match=message):
            hardware.choose_device("cuda", "auto")
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=bool(name))


def test_lengths_of_time():
    for text in ("", "24", "1x", "h", "0m", "²h", "9" * 5000 + "h"):
        with pytest.raises(UserError, match="is not a length of time such as 24h"):
            configs.budget_seconds(text)
    assert [configs.budget_seconds(t) for t in ("24h", "1h30m", "2d", "45s")] == [86400, 5400, 172800, 45]


def test_a_run_out_of_memory_before_its_first_step_is_one_line(dataset, tmp_path, monkeypatch, capsys):
    """As in any other command; the line comes from whatever rank it is."""

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ..")

    ended = []
    monkeypatch.setattr(models.KGIBert, "to", full)
    monkeypatch.setattr(programs, "end_process", ended.append)
    monkeypatch.setattr(sys, "argv", ["kgi.py", *args(dataset, tmp_path)])
    monkeypatch.setenv("LOCAL_RANK", "1")
    programs.run_command("doc", kgi.COMMANDS, "train")
    (line,) = ended
    assert line.startswith("kgi.py: error: out of memory: end other programs") and line.endswith("2.00 GiB)")


def test_what_says_that_memory_ran_out():
    full = (
        MemoryError(), np._core._exceptions._ArrayMemoryError((2,), np.dtype(int)), pa.ArrowMemoryError("malloc"),
        torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("CUDA error: out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    )  # fmt: skip
    assert all(map(programs.is_out_of_memory, full))
    assert not any(map(programs.is_out_of_memory, (RuntimeError("size mismatch"), RecursionError(), OSError("memory"))))


def test_gradients_are_views_of_what_is_exchanged(dataset, tmp_path, monkeypatch):
    """A copy of all of them would cost as much memory again."""
    ranks = set_up(dataset, tmp_path, layers=1).ranks
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    ranks.world_size = 2  # here one, that exchanges with itself
    model = torch.nn.Linear(3, 5)
    try:
        ddp = ranks.wrap(model)
        ddp(torch.ones(2, 3)).sum().backward()
        one, two = model.weight.grad, model.bias.grad
        assert one.untyped_storage().data_ptr() == two.untyped_storage().data_ptr()
    finally:
        torch.distributed.destroy_process_group()


def test_out_of_memory_names_the_setting(dataset, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(kgi, "forward_backward", full)
    message = "rank 0: out of memory with micro-batches of 2,048 tokens; retry with --max_tokens 1024"
    with pytest.raises(SystemExit, match=message + "; the run will resume"):
        kgi.train(settings(dataset, tmp_path))
    with pytest.raises(SystemExit, match="with micro-batches of 100 tokens; give a smaller model"):
        kgi.train(settings(dataset, tmp_path, max_tokens=100))
