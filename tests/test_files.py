"""support/files.py: atomic writes, UTF-8, locks, streams, and errors for users."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import configs
from configs import UserError
from support import arrays, files, programs
from tests.conftest import ROOT

# ---------------------------------------------------------------- read


def test_bad_utf_8_is_named_by_its_row(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes("é\n\nab".encode() + b"\xe9\n")
    with pytest.raises(UserError, match="x.txt, row 3: not UTF-8; convert the file"):
        files.read_utf8(path)


def test_text_is_read_as_it_is_without_its_byte_order_mark(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\rc\xef\xbb\xbf")
    assert files.read_utf8(path) == "a\r\nb\rc\ufeff"
    assert files.read_utf8(path, bom=" ") == " a\r\nb\rc\ufeff"  # where offsets count it
    path.write_bytes(b"")
    assert files.read_utf8(path, bom=" ") == ""


@pytest.mark.parametrize("content", [b"{", b"[]", b"3", b"\xff", b"", b'{"a": ' + b"[" * 10**5], ids=range(6))
def test_what_is_no_json_object(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match="x.json: cannot be read as JSON"):
        files.read_json(tmp_path / "x.json")


def test_json_there_and_back(tmp_path):
    content = {"é": [1, 2.5, None], "b": {"c": "肝"}}
    files.write_json(tmp_path / "x.json", content)
    assert files.read_json(tmp_path / "x.json") == content
    assert files.read_json(tmp_path / "none.json") == {}
    with pytest.raises(UserError, match="cannot be read as JSON"):  # a file in the place of a folder
        files.read_json(tmp_path / "x.json" / "y.json")


def test_json_has_no_number_that_is_not_finite(tmp_path):
    """Such as the loss of a diverged model, in scores.json and in what evaluate writes."""
    files.write_json(tmp_path / "x.json", {"runs": [{"f1": float("nan"), "loss": float("inf"), "n": 1}], 2: "NaN"})
    assert json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail) == {
        "runs": [{"f1": None, "loss": None, "n": 1}], "2": "NaN"
    }  # fmt: skip


def test_json_that_is_nested_too_deep_leaves_no_file(tmp_path):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(UserError, match="nested too deep"):
        files.write_json(tmp_path / "x.json", deep)
    assert not [*tmp_path.iterdir()]


def test_a_pointer_of_git_lfs_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(UserError, match="model.safetensors is a pointer of Git LFS, not the file: run 'git lfs pull'"):
        files.reject_lfs_pointer(path)
    path.write_bytes(b"version https://git-lfs" + bytes(1000))  # too long for a pointer
    files.reject_lfs_pointer(path)


@pytest.mark.parametrize("read", [files.read_bytes, files.read_utf8, files.read_json], ids=["bytes", "utf8", "json"])
def test_a_reader_waits_for_no_device_and_no_pipe(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, what in (("pipe", "a pipe"), ("zero", "a device")):
        with pytest.raises(UserError, match=f"{name} is {what}, not a file$"):
            read(tmp_path / name)
    reader, writer = os.pipe()  # as <(echo {}) of a shell gives it
    os.write(writer, b"{}")
    os.close(writer)
    assert read(f"/dev/fd/{reader}") in (b"{}", "{}", {})
    os.close(reader)


def test_a_mapped_file_may_have_any_name(tmp_path):
    path = tmp_path / os.fsdecode(b"donn\xe9es")
    path.write_bytes(b"abc")
    assert arrays.memory_map(path).read() == b"abc"


# ---------------------------------------------------------------- write


def test_write_atomic_replaces_a_file(tmp_path):
    for content in (b"old", b"new"):
        files.write_atomic(tmp_path / "x", lambda f, content=content: f.write(content))
        assert (tmp_path / "x").read_bytes() == content and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error, message", [
    (RuntimeError("unexpected pos"), "x: cannot be written: is the disk full.*unexpected pos"),  # of torch.save
    (OSError(28, "No space left on device"), "x: cannot be written: No space left on device$"),
    (KeyboardInterrupt(), None),
    (ValueError("a fault of ours"), None),
])  # fmt: skip
def test_write_atomic_keeps_the_old_file(tmp_path, error, message):
    file = tmp_path / "x"
    file.write_text("old")

    def fail(f):
        f.write(b"half")
        raise error

    with pytest.raises(UserError if message else type(error), match=message):
        files.write_atomic(file, fail)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_torch_on_a_full_disk_is_one_clear_error(tmp_path, full_disk):
    with full_disk(1000), pytest.raises(UserError, match="x: cannot be written: .*(File too large|disk full)"):
        files.write_atomic(tmp_path / "x", lambda f: torch.save({"a": torch.zeros(10**5)}, f))
    assert not list(tmp_path.iterdir())


def test_another_error_of_torch_is_not_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        files.write_atomic(tmp_path / "x", lambda _: (_ for _ in ()).throw(RuntimeError("CUDA out of memory")))


def test_write_atomic_names_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="none/x: cannot be written: No such file or directory"):
        files.write_atomic(tmp_path / "none" / "x", lambda f: None)


def test_an_input_that_is_gone_is_named_and_not_the_output(tmp_path, monkeypatch):
    """Where it is read while the output is written, as the tagger does."""
    monkeypatch.chdir(tmp_path)
    for gone in ("gone", "in/gone"):
        with pytest.raises(FileNotFoundError, match=f"'{gone}'"):
            files.write_atomic("x", lambda f, gone=gone: open(gone))
        with pytest.raises(FileNotFoundError, match=f"'{gone}'"), files.atomic_directory("out", FORM):
            open(gone)
    for inner in ("a/b", "c"):
        with pytest.raises(UserError, match="^out: cannot be written: "), files.atomic_directory("out", FORM) as new:
            (new / inner).mkdir() if inner == "a/b" else os.rmdir(new / inner)
    assert not list(tmp_path.iterdir())


def test_two_writers_of_a_file_do_not_mix(tmp_path):
    """The second begins and ends while the first writes. The one that ends last is there, whole."""
    path = tmp_path / "x"

    def write(f):
        f.write(b"1" * 5)
        files.write_atomic(path, lambda g: g.write(b"2" * 7))
        assert path.read_bytes() == b"2" * 7
        f.write(b"1" * 5)

    files.write_atomic(path, write)
    assert path.read_bytes() == b"1" * 10 and list(tmp_path.iterdir()) == [path]


def test_files_of_a_user_beside_an_output_stay(tmp_path):
    """Those that once had the names of temporary ones, and any other."""
    theirs = [
        tmp_path / name for name in ("x.tmp", ".x.tmp", ".x.building", ".x.old", ".x.12345678.tmp.md", ".x.1.tmp")
    ]
    for path in theirs:
        path.write_text("mine")
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.building").mkdir()
    files.write_atomic(tmp_path / "x", lambda f: f.write(b"new"))
    with files.atomic_directory(tmp_path / "out", FORM) as new:
        (new / "x").write_text("1")
    assert {p.read_text() for p in theirs} == {"mine"}
    assert {p.name for p in tmp_path.iterdir()} == {"x", "out", ".out.old", ".out.building", *(p.name for p in theirs)}


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_permissions_are_those_of_the_umask(tmp_path, mask):
    before = os.umask(mask)
    files.write_atomic(tmp_path / "x", lambda f: f.write(b"new"))
    with files.atomic_directory(tmp_path / "out", FORM):
        pass
    os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("x", "out")] == [0o666 & ~mask, 0o777 & ~mask]


FORM = {"x": b"\\d", "y": None}  # of a folder of ours: what it may hold, and how x is recognised


def test_a_folder_appears_as_a_whole_or_not_at_all(tmp_path):
    out = tmp_path / "a" / "out"
    with files.atomic_directory(out, FORM) as new:
        (new / "x").write_text("1")
        assert not out.exists() and new.parent == out.parent
    with pytest.raises(KeyboardInterrupt), files.atomic_directory(out, FORM) as new:
        (new / "y").write_text("2")
        raise KeyboardInterrupt
    assert [f.name for f in out.iterdir()] == ["x"] and list(out.parent.iterdir()) == [out]
    with files.atomic_directory(out, FORM) as new:
        (new / "y").write_text("3")
    assert [f.name for f in out.iterdir()] == ["y"] and list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("locks", [True, False])
def test_what_killed_processes_left_behind_is_put_right(tmp_path, monkeypatch, locks):
    """One was killed between the two renames: the folder is only there under another name. Two others before that.

    Without locks nobody knows whether these still live, and they stay.
    """
    if not locks:
        monkeypatch.setattr(files.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(38, "not implemented")))
    out, old, dead = (tmp_path / name for name in ("out", ".out.0123abcd.old", ".out.89abcdef.tmp"))
    for folder, name, text in ((old, "x", "1"), (dead, "half", "2")):
        folder.mkdir()
        (folder / name).write_text(text)
    (tmp_path / ".file.89abcdef.tmp").write_text("half")
    with pytest.raises(ValueError), files.atomic_directory(out, FORM) as beside:
        assert not list(beside.iterdir())
        raise ValueError
    files.write_atomic(tmp_path / "file", lambda f: f.write(b"new"))
    assert [f.name for f in out.iterdir()] == ["x"]
    left = set() if locks else {dead.name, ".file.89abcdef.tmp"}
    assert {f.name for f in tmp_path.iterdir()} == {"out", "file"} | left


def test_a_link_in_the_place_of_a_folder_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    with files.atomic_directory(tmp_path / "out", FORM) as new:
        (new / "x").write_text("1")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "real" / "x").read_text() == "1"


def test_two_writers_of_a_folder_do_not_mix(tmp_path):
    """The second begins and ends while the first writes; then one comes between the two renames of another."""
    out = tmp_path / "out"
    with files.atomic_directory(out, FORM) as first:
        (first / "x").write_text("1")
        with files.atomic_directory(out, FORM) as second:
            (second / "x").write_text("2")
        assert (out / "x").read_text() == "2"
        (first / "y").write_text("1")
    assert [(p.name, p.read_text()) for p in sorted(out.iterdir())] == [("x", "1"), ("y", "1")]
    new, faster, rename = tmp_path / "new", tmp_path / "faster", Path.rename
    for folder in (new, faster):
        folder.mkdir()
        (folder / "x").write_text(folder.name)

    class Slow(type(new)):
        def rename(self, target):
            if faster.exists():
                rename(faster, out)
            return rename(self, target)

    files.exchange(Slow(new), out)
    files.put_right(out)
    assert (out / "x").read_text() == "new" and list(tmp_path.iterdir()) == [out]


def test_folders_that_were_made_for_an_output_that_failed_do_not_stay(tmp_path):
    for make in (
        lambda p: files.atomic_directory(p / "out", FORM),
        files.made_folder,
        lambda p: files.folder_lock(p, ""),
    ):
        with pytest.raises(KeyboardInterrupt), make(tmp_path / "a" / "b"):
            assert (tmp_path / "a" / "b").is_dir()
            raise KeyboardInterrupt
        assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError), files.made_folder(tmp_path / "a" / "b" / "c"):
        (tmp_path / "a" / "b" / "mine").touch()
        raise ValueError
    assert [p.name for p in (tmp_path / "a").rglob("*")] == ["b", "mine"]


def test_a_line_is_added_as_a_whole_or_not_at_all(tmp_path, full_disk):
    path = tmp_path / "x"
    for n in (0, 4):
        with full_disk(n + 2), pytest.raises(UserError, match="x: cannot be written: File too large"):
            files.append_line(path, b"long\n")
        assert path.read_bytes() == b"1234" if n else not path.exists()
        path.write_bytes(b"1234")
    files.append_line(path, b"long\n")
    assert path.read_bytes() == b"1234long\n"


# ---------------------------------------------------------------- what an output may replace


@pytest.mark.parametrize("name, message", [
    ("new", ""), ("ours", ""), ("empty", ""), ("link", ""),
    ("theirs", "theirs is not an output of this command; move it away, or choose another name"),
    ("link to theirs", "link to theirs is not an output of this command"),
    ("input", "input is the input, which would be replaced"),
    ("hard link to the input", "hard link to the input is the input, which would be replaced"),
    ("link to the input", "link to the input is the input, which would be replaced"),
    ("folder/new", "new is in the input folder; choose another place"),
    ("folder/../folder/old", "old is in the input folder; choose another place"),
    ("folder", "folder is a folder; give the name of a file"),
    ("theirs/new", "theirs is not a folder"), ("nowhere/new", "nowhere is not a folder"),
])  # fmt: skip
def test_what_a_file_may_replace(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    for path, text in (("ours", "1 a"), ("empty", ""), ("theirs", "a"), ("input", "1 b"), ("folder/old", "1 c")):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(text)
    for link, target in (("link", "ours"), ("link to theirs", "theirs"), ("link to the input", "input")):
        Path(link).symlink_to(target)
    os.link("input", "hard link to the input")
    with pytest.raises(UserError, match=message) if message else nullcontext():
        files.check_output_file(name, rb"\d", "input", "folder")


@pytest.mark.parametrize("held, message", [
    ({}, ""), ({"x": "1"}, ""), ({"x": "1", "y": "?"}, ""),
    ({"x": "1", "mine": ""}, "out holds mine, which this command did not write; move it away, or choose another place"),
    ({"x": "a", "y": ""}, "out holds x, which this command did not write"),  # another program's
    ({"y": "1"}, "out holds y, which this command did not write"), ({"x": "", "y": "1"}, "out holds x, which"),
    ({"x": "1", "y/mine": ""}, "out holds y, which this command did not write"),
])  # fmt: skip
def test_what_a_folder_may_replace(tmp_path, held, message):
    """It is checked before the work, and again before the old folder goes."""

    def fill():
        for name, text in held.items():
            (tmp_path / "out" / name).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / "out" / name).write_text(text)

    if not message:
        fill()
    with pytest.raises(UserError, match=message) if message else nullcontext():
        with files.atomic_directory(tmp_path / "out", FORM) as new:
            (new / "x").write_text("2")
            fill()  # meanwhile
    if message:
        with pytest.raises(UserError, match=message):
            files.check_output(tmp_path / "out", FORM)
        found = {p.relative_to(tmp_path / "out").as_posix(): p for p in (tmp_path / "out").rglob("*") if p.is_file()}
        assert {name: p.read_text() for name, p in found.items()} == held
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_folders_that_cannot_be_replaced(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path / "a" / "b")
    for out, message in ((".", r"^\. cannot be replaced as a whole; name a folder in it"), ("..", "cannot be replaced"),
                         (tmp_path / "a", "cannot be replaced"), (tmp_path / "file", "not an output of this command"),
                         ("/proc", "cannot be replaced")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            files.check_output(out, {})
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "x").write_text("1")
    for source, message in ((".", "is the input"), ("x", "holds the input")):
        with pytest.raises(UserError, match=message):
            files.check_output(tmp_path / "ours", FORM, tmp_path / "ours" / source)
    files.check_output(tmp_path / "ours", FORM, tmp_path)


def test_standard_input_is_an_input_too(tmp_path, monkeypatch):
    (tmp_path / "x").write_text("1")
    stdin = os.dup(0)
    with open(tmp_path / "x") as f:
        os.dup2(f.fileno(), 0)
    try:
        with pytest.raises(UserError, match="x is the input"):
            files.check_output(tmp_path / "x", rb"\d", 0)
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)


def test_a_locked_folder_is_refused_until_it_is_free(tmp_path):
    folder = tmp_path / "new" / "run"
    with files.folder_lock(folder, "in use"):
        with pytest.raises(UserError, match="run: in use"), files.folder_lock(folder, "in use"):
            pass
    with pytest.raises(ValueError), files.folder_lock(folder, "in use"):
        raise ValueError
    with files.folder_lock(folder, "in use"):
        assert folder.is_dir()


class Narrow(io.RawIOBase):
    """A raw stream that takes `most` bytes at a time, until it holds `size`."""

    def __init__(self, most, size):
        self.most, self.size, self.content = most, size, b""

    def writable(self):
        return True

    def write(self, content):
        taken = bytes(content[: min(self.most, self.size - len(self.content))])
        self.content += taken
        return len(taken)


def test_write_all_writes_all_or_says_why_not():
    content = bytes(range(256)) * 10
    for most in (1, 7, 10**6):
        stream = Narrow(most, 10**6)
        files.write_all(stream, content)
        files.write_all(stream, torch.arange(3).numpy())  # anything with a buffer
        assert stream.content == content + torch.arange(3).numpy().tobytes()
    with pytest.raises(UserError, match="standard output cannot be written: it takes no more"):
        files.write_all(Narrow(100, 1000), content)


# ---------------------------------------------------------------- errors for users

PROGRAM = """if True:
    import os, sys
    from dataclasses import dataclass
    from configs import UserError
    from support.programs import run_command

    @dataclass
    class Nothing:
        'Nothing.'

    def fail(s):
        {}

    run_command("doc", {{"fail": (fail, Nothing)}}, "fail")
"""


def run_program(action, tmp_path, **env):
    """Runs a program whose command does `action`."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.format(action))
    env = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK")} | {"PYTHONPATH": str(ROOT)} | env
    return subprocess.run([sys.executable, path], env=env, capture_output=True, text=True)


MEMORY = (
    "out of memory: end other programs that use this memory, or give a smaller batch, a smaller model or --device cpu"
)


@pytest.mark.parametrize("action, status, message", [
    ("raise UserError('x.txt, row 3: bad')", 1, "program.py: error: x.txt, row 3: bad\n"),
    ("open('/nowhere/x')", 1, "program.py: error: /nowhere/x: No such file or directory\n"),
    ("raise OSError(28, 'No space left on device')", 1,
     "program.py: error: standard output cannot be written: No space left on device\n"),
    ("raise MemoryError", 1, f"program.py: error: {MEMORY}\n"),
    ("raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 11 GiB')", 1,
     f"program.py: error: {MEMORY} (CUDA out of memory. Tried to allocate 2.00 GiB)\n"),
    ("sys.exit('as it is')", 1, "as it is\n"),
    ("sys.exit(75)", 75, ""),
    ("sys.exit(0)", 0, ""),
    ("raise KeyboardInterrupt", 130, ""),
    ("raise BrokenPipeError", 1, ""),
    ("pass", 0, ""),
])  # fmt: skip
def test_how_a_command_ends(tmp_path, action, status, message):
    p = run_program(action, tmp_path)
    assert (p.returncode, p.stderr, p.stdout) == (status, message, "")


def test_a_fault_of_ours_keeps_its_traceback(tmp_path):
    p = run_program("raise ValueError('a fault')", tmp_path)
    assert p.returncode == 1 and p.stderr.startswith("Traceback") and p.stderr.endswith("ValueError: a fault\n")


def test_of_several_ranks_the_first_speaks_and_all_report(tmp_path):
    """torchrun shows the file of a rank last."""
    for rank, shown in (("0", "program.py: error: bad\n"), ("1", "")):
        report = tmp_path / f"error-{rank}.json"
        env = {"LOCAL_RANK": rank, "TORCHELASTIC_ERROR_FILE": str(report)}
        p = run_program("raise UserError('bad')", tmp_path, **env)
        assert (p.returncode, p.stderr) == (1, shown)
        assert json.loads(report.read_text())["message"]["message"] == "program.py: error: bad"
    p = run_program("sys.exit('program.py: error: out of memory')", tmp_path, LOCAL_RANK="1")
    assert p.stderr == "program.py: error: out of memory\n"  # the other ranks do not know


def test_a_terminal_that_lacks_a_letter_ends_no_command(tmp_path):
    p = run_program(r"print('caf\xe9 \udce9')", tmp_path, PYTHONIOENCODING="ascii")
    assert (p.returncode, p.stdout, p.stderr) == (0, "caf? ?\n", "")


@pytest.mark.skipif(not shutil.which("sh"), reason="no sh here")
def test_head_ends_a_command_in_silence(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.format("[print(i) for i in range(10**5)]"))
    p = subprocess.run(
        ["sh", "-c", '"$0" "$1" | head -n 1', sys.executable, path],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (p.stdout, p.stderr) == ("0\n", "")


@pytest.mark.parametrize("program", ["data.py", "model.py", "kgi.py", "finetune.py"])
def test_ctrl_c_while_a_program_imports_ends_it_quietly(tmp_path, program):
    (tmp_path / "numpy.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    p = subprocess.run([sys.executable, program, "--help"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert (p.returncode, p.stdout, p.stderr) == (130, "", "")


def test_ctrl_c_reaches_a_command_as_ever(monkeypatch):
    seen, before = [], signal.signal(signal.SIGINT, configs.end_quietly)
    monkeypatch.setattr(sys, "argv", ["program.py", "one"])
    try:
        programs.run_command("doc", {"one": (lambda _: seen.append(signal.getsignal(signal.SIGINT)), Nothing)})
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.default_int_handler]


@dataclass
class Nothing:
    """Nothing."""


def test_the_command_and_its_settings_are_found(monkeypatch):
    called = []
    monkeypatch.setattr(sys, "argv", ["program.py", "one"])
    programs.run_command("doc", {"one": (called.append, Nothing)})
    assert called == [Nothing()]


def test_a_device_is_written_to_and_stays(tmp_path):
    """A pipe here, as a test must not touch /dev/null."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.write_atomic(tmp_path / "pipe", lambda f: f.write(b"text"))
    assert os.read(reader, 9) == b"text" and (tmp_path / "pipe").is_fifo()
    os.close(reader)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "file"])
@pytest.mark.parametrize("where", ["pipe", "file"])
def test_standard_output_by_another_name(tmp_path, name, where):
    """A pipe has no place where a file could be renamed to, and what `>> file` has before must stay."""
    (tmp_path / "file").write_text("before ")
    reader, writer = os.pipe()
    if where == "file":
        os.dup2(os.open(tmp_path / "file", os.O_WRONLY | os.O_APPEND), writer)
    elif name == "file":
        return
    stdout = os.dup(1)
    os.dup2(writer, 1)
    try:
        files.check_output_file(tmp_path / name, rb"\\d")
        files.write_atomic(tmp_path / name, lambda f: f.write(b"text"))
    finally:
        os.dup2(stdout, 1)
        os.close(writer)
    assert (os.read(reader, 99) or (tmp_path / "file").read_bytes()) == (b"text" if where == "pipe" else b"before text")
    for number in (reader, stdout):
        os.close(number)


def test_a_link_stays_and_the_file_that_it_names_is_replaced(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    files.write_atomic(tmp_path / "link", lambda f: f.write(b"new"))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
