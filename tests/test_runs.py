"""Run folders, memory and ranks: what a run resumes from, what it refuses, and what it tells the user to do."""

import contextlib
import io

import pytest
import torch

import kgi
import model as models
from configs import UserError
from support import runs
from support.files import folder_lock
from tests.training import one_step, same_end, set_up, settings, train

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


@pytest.mark.parametrize("damage", ["cut", "one bit", "empty", "other"])
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_used(dataset, undisturbed, tmp_path, damage, capsys):
    out, few = tmp_path / "run", {"dropout": 0.1, "save_every": 1}
    train(dataset, out, **few)
    last, previous = out / "checkpoint.pt", out / "checkpoint.prev.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes({"cut": content[:3000], "one bit": content, "empty": b"", "other": b"hello" * 100}[damage])
    capsys.readouterr()
    train(dataset, out, **few)
    assert f"{last}: damaged; resuming from the previous checkpoint, of step 5" in capsys.readouterr().out
    same_end(out, undisturbed)
    assert runs.read_checkpoint(previous)["state"]["step"] == 5  # the good one, not the damaged
    for path in (last, previous):
        path.write_bytes(content[:3000])
    with pytest.raises(UserError, match="checkpoint.prev.pt: damaged; no checkpoint is left to resume from"):
        train(dataset, out, **few)


def test_what_a_run_cannot_resume(dataset, baseline, tmp_path):
    for more, change in (({"lr": 5e-4}, "lr was 0.001, now 0.0005"), ({"seed": 1}, "seed was 0, now 1"),
                         ({"steps": 9}, "steps was 6, now 9")):  # fmt: skip
        with pytest.raises(UserError, match=f"cannot resume .*checkpoint.pt: {change}; use the same settings, another"):
            train(dataset, baseline, **more)
    models.save(models.load(baseline), tmp_path / "model")
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
            runs.Ranks(settings(dataset, tmp_path)).print("x")


def test_a_run_that_ended_before_its_first_checkpoint_begins_again(dataset, baseline, tmp_path):
    for n in (0, 1, 3):
        (tmp_path / "run").mkdir(exist_ok=True)
        first = (baseline / "metrics.jsonl").read_text().splitlines(keepends=True)[:n]
        (tmp_path / "run" / "metrics.jsonl").write_text("".join(first))
        kgi.resume(set_up(dataset, tmp_path / "run"))
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

    monkeypatch.setattr(kgi, "is_exported", is_locked)
    train(dataset, out, steps=1)


def test_ranks_that_see_different_checkpoints(dataset, tmp_path):
    run = set_up(dataset, tmp_path / "run")
    run.ranks.all_reduce_sum = lambda numbers: [n + 7 for n in numbers]  # another rank is at step 7
    with pytest.raises(UserError, match="the ranks see different checkpoints in .*; all nodes must share the folder"):
        kgi.resume(run)
    assert not (tmp_path / "run").exists()


def test_lengths_of_time():
    for text in ("", "24", "1x", "h", "0m"):
        with pytest.raises(UserError, match="is not a length of time such as 24h"):
            runs.budget_seconds(text)
    assert [runs.budget_seconds(t) for t in ("24h", "1h30m", "2d", "45s")] == [86400, 5400, 172800, 45]


def test_out_of_memory_names_the_setting(dataset, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(kgi, "forward_backward", full)
    message = "rank 0: out of memory with micro-batches of 2,048 tokens; retry with --micro_tokens 1024"
    with pytest.raises(SystemExit, match=message + "; the run will resume"):
        kgi.train(settings(dataset, tmp_path))
    with pytest.raises(SystemExit, match="with micro-batches of 100 tokens; give a smaller model"):
        kgi.train(settings(dataset, tmp_path, micro_tokens=100))
