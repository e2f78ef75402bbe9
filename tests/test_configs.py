"""configs/__init__.py: defaults, TOML files, the command line, --help, and the messages about mistakes."""

import ast
import dataclasses
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

import configs
from configs import UserError, command_line
from tests.conftest import ROOT

FILES = sorted(Path(configs.__file__).parent.glob("*.toml"))


def find_programs():
    """{program as it is called: (its file, module, the command that need not be named)}."""
    found = {}
    for path in [*sorted(ROOT.glob("*.py")), *sorted(ROOT.glob("beyond/*.py"))]:
        if call := re.search(r'^    run_command\(__doc__, COMMANDS(?:, default="(\w+)")?\)$', path.read_text(), re.M):
            is_beyond = path.parent.name == "beyond"
            module = importlib.import_module(f"beyond.{path.stem}" if is_beyond else path.stem)
            found[f"python -m beyond.{path.stem}" if is_beyond else path.name] = path, module, call[1]
    return found


PROGRAMS = find_programs()
EVERY_COMMAND = [(program, name) for program, (_, module, _) in PROGRAMS.items() for name in module.COMMANDS]


def parse(program, *argv):
    """The settings of a command line such as `kgi.py --lr 1`."""
    path, module, default = PROGRAMS[program]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *argv])
        return command_line.parse(list(map(str, argv)), module.__doc__, module.COMMANDS, default)[1]


def class_of(program, name):
    """The settings class of a command."""
    return PROGRAMS[program][1].COMMANDS[name][1]


def arguments_of(cls):
    """What the arguments of a command are in these tests: x for each."""
    return ["x" for f in dataclasses.fields(cls) if "argument" in f.metadata]


def without_make(**more):
    """The environment of a make that is not called by another one."""
    return {k: v for k, v in os.environ.items() if not k.startswith("MAKE")} | more


def executed(program):
    """A program as arguments of Python."""
    return program.removeprefix("python ").split()


def settings_of(table, *argv):
    """The settings of the command that reads this table of a TOML file."""
    program, name = COMMAND_OF_TABLE[table]
    return parse(program, name, *arguments_of(configs.TABLES[table]), *argv)


COMMAND_OF_TABLE = {
    table: next((program, name) for program, name in EVERY_COMMAND if class_of(program, name) is cls)
    for table, cls in configs.TABLES.items()
}


# ---------------------------------------------------------------- where a value comes from


def test_the_command_line_wins_over_files_and_files_over_defaults(tmp_path):
    one, two = tmp_path / "x.toml", tmp_path / "y.toml"
    one.write_text("[train]\nlr = 1\nepochs = 3\nalphas = [0.2, 0.3, 0.5]\n[data]\nlang = 'fr'\n")
    two.write_text("[train]\nlr = 2\nalphas = [1, 0, 0.5]\n")
    s = parse("kgi.py", one, "--epochs", "5", "--weight-decay=0", "--data", "x")
    assert (s.lr, s.epochs, s.weight_decay, s.alphas, s.layers) == (1.0, 5.0, 0.0, [0.2, 0.3, 0.5], 12)
    s = parse("kgi.py", one, two)
    assert (s.lr, s.epochs, s.alphas) == (2, 3, [1.0, 0.0, 0.5])
    assert parse("kgi.py", two, one).lr == 1
    assert all(type(x) is float for x in (s.lr, s.epochs, *s.alphas))
    assert parse("data.py", "build", one).lang == "fr"


def test_arguments_come_in_any_order(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text("[train]\nepochs = 3\n[finetune]\nruns = 4\n")
    for argv in ([file, "--epochs", 5], ["--epochs", 5, file], ["--epochs=5", file, "--tasks", "mlm", "lp"]):
        assert parse("kgi.py", *argv).epochs == 5
        assert parse("kgi.py", "train", *argv).epochs == 5
    for argv in (["a", "b", "--seed", 2], ["--seed", 2, "a", "b"], ["a", "--seed", 2, "b"]):
        for command in ([], ["evaluate"]):
            s = parse("python -m beyond.evaluate", *command, *argv)
            assert (s.checkpoints, s.seed) == (["a", "b"], 2)
    for argv in (["x", "--untrained", file], ["--untrained", "x", file], [file, "x", "--untrained", "true"]):
        s = parse("finetune.py", *argv)
        assert (s.checkpoint, s.untrained, s.runs) == ("x", True, 4)


def test_lists_flags_and_underscores():
    s = parse("data.py", "build", "--semantic_types", "DISO", "T016", "--cased", "false", "--keep-duplicates")
    assert (s.semantic_types, s.cased, s.keep_duplicates, s.skip_bad_rows) == (["DISO", "T016"], False, True, False)
    s = parse("kgi.py", "--tasks", "mlm", "ep", "lp", "--alphas", "1", "0", "0.5", "--max-tokens", "1000")
    assert (s.tasks, s.alphas, s.max_tokens) == (["mlm", "ep", "lp"], [1.0, 0.0, 0.5], 1000)
    assert parse("kgi.py", "--tasks=mlm").tasks == ["mlm"]
    s = parse("finetune.py", "x", "--untrained", "--lr", "1e-4")
    assert s.untrained and s.lr == 1e-4
    assert not parse("finetune.py", "--untrained", "False", "x").untrained
    assert parse("kgi.py", "--lr", "1", "--lr", "2").lr == 2


def test_defaults_are_not_shared():
    parse("kgi.py").tasks.append("x")
    assert parse("kgi.py").tasks == []  # all of them


def test_a_default_can_be_given():
    """Also where it is not among the choices: "" is the checkpoint's own pooling."""
    assert parse("python -m beyond.embed", "x", "--pooling=").pooling == ""


def test_a_command_by_name_or_by_default():
    for _, module, default in PROGRAMS.values():
        for name, (function, cls) in module.COMMANDS.items():
            arguments = arguments_of(cls)
            found = command_line.parse([name, *arguments], module.__doc__, module.COMMANDS, default)
            values = [["x"] if f.metadata["many"] else "x" for f in dataclasses.fields(cls) if "argument" in f.metadata]
            assert found == (function, cls(*values))
            if name == default:
                assert command_line.parse(arguments, module.__doc__, module.COMMANDS, default) == found
    with pytest.raises(UserError, match="unknown command 'bild'; it is one of build, show"):
        parse("data.py", "bild")


# ---------------------------------------------------------------- --help


def squeezed(text):
    """Without the white space, as --help breaks lines where they are full."""
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("program, name", EVERY_COMMAND)
def test_help_is_true(program, name, capsys):
    """Every setting is there with its explanation, its choices, and the default that the command then has."""
    _, module, default = PROGRAMS[program]
    cls = module.COMMANDS[name][1]
    for argv in [[name, "--help"], [name, "-h"], ["--help"] * (name == default)]:
        if argv:
            with pytest.raises(SystemExit) as end:
                parse(program, *argv)
            assert end.value.code == 0
            text = capsys.readouterr().out
    usage, squeezed_text = text.splitlines()[0], squeezed(text)
    assert squeezed(cls.__doc__) in squeezed_text
    assert f" {program} " in f"{usage} "
    assert (f" {name}" in usage) == (name != default)
    assert ("config.toml" in usage) == issubclass(cls, (*configs.TABLES.values(),))
    fields = dataclasses.fields(cls)
    found = parse(program, name, *arguments_of(cls))
    for field in fields:
        m, value = field.metadata, getattr(found, field.name)
        assert squeezed(m["help"]) in squeezed_text
        if "argument" in m:
            assert m["argument"] in usage
            continue
        shown = " ".join(map(str, value)) if type(value) is list else "" if value is False else str(value)
        assert f"\n  --{field.name} " in text
        assert squeezed(m["help"] + (f" [{shown}]" if shown else "")) in squeezed_text
        assert ("{" + ",".join(m["choices"]) + "}" in text) or not m["choices"]
    listed = set(re.findall(r"^  --(\w+)", text, re.M))
    assert ("[true|false]" in text) == any(f.type is bool for f in fields)
    assert listed == {f.name for f in fields if "argument" not in f.metadata}
    if name == default:
        assert all(re.search(rf"^  {other} ", text, re.M) for other in module.COMMANDS)


@pytest.mark.parametrize("program", [program for program, (*_, default) in PROGRAMS.items() if not default])
@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_of_a_program_lists_its_commands(program, argv, capsys):
    module = PROGRAMS[program][1]
    with pytest.raises(SystemExit) as end:
        parse(program, *argv)
    text = capsys.readouterr().out
    assert end.value.code == 0 and module.__doc__.strip() in text
    assert all(re.search(rf"^  {name} ", text, re.M) for name in module.COMMANDS)


DOCUMENTS = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *FILES, Path(configs.__file__)]
DOCUMENTS += [path for path, *_ in PROGRAMS.values()]


def commands_in(text, before, after):
    """(program, arguments) of the command lines of the programs in a text, between two regular expressions."""
    text = text.replace("\\\n#", " ").replace("\\\n", " ")
    called = rf"{before}(?:python|torchrun)(?: [^`\n]*?)? (\w+\.py|-m beyond\.\w+)((?: [^`\n]*)?){after}"
    for program, argv in re.findall(called, text, re.M):
        program = program.replace("-m ", "python -m ")
        if program in PROGRAMS or "beyond" in program:
            argv = re.sub(r" \[OTHER \.\.\.\]|[][]| +#.*| +-> .*| [<>] .*|   .*", "", argv)
            yield program, shlex.split(argv)


def documented_commands():
    """Every command line in the documentation, the docstrings and the configs."""
    for path in DOCUMENTS:
        for program, argv in commands_in(path.read_text(encoding="utf-8"), "(?:^(?:#   |    )|`)", "(?:$|`)"):
            yield pytest.param(program, argv, id=f"{path.name}: {program} {' '.join(argv)}")


DOCUMENTED = list(documented_commands())


@pytest.mark.parametrize("program, argv", DOCUMENTED)
def test_documented_commands_are_understood(program, argv, monkeypatch):
    monkeypatch.chdir(ROOT)
    with nullcontext() if "--help" not in argv else pytest.raises(SystemExit):
        parse(program, *argv)


def test_how_many_documented_commands_were_found():
    """Every program that has a command is among them; a pattern that finds none would let all tests pass."""
    found = [param.values[0] for param in DOCUMENTED]
    assert {*found} == {*PROGRAMS}
    assert len(found) >= 120 and sum("beyond" in program for program in found) >= 45


@pytest.mark.skipif(not shutil.which("make"), reason="make is not there")
def test_commands_of_make_are_understood(tmp_path, monkeypatch):
    """Those of each goal with all of its variables, and of each documented call of make."""
    monkeypatch.chdir(ROOT)
    makefile = (ROOT / "Makefile").read_text()
    names = "CHECKPOINT CORPUS DATA EXCLUDE IDS INPUT LANG MODEL RANKS RUN TOKENIZER".split()
    calls = [[goal, *(f"{name}=1" for name in names)] for goal in re.findall("^([a-z-]+):.* ## ", makefile, re.M)]
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        calls += [shlex.split(line, comments=True) for line in re.findall("^(?:#   |    )make (.*)", text, re.M)]
    found = []
    for call in calls:
        make = ["make", "-n", *call, f"VENV={tmp_path / 'env'}"]
        shown = subprocess.run(make, env=without_make(), capture_output=True, text=True, check=True).stdout
        found += commands_in(shown, f"^{tmp_path / 'env'}/bin/", "$")
    for program, argv in found:
        parse(program, *argv)
    assert len(found) >= 30 and sum("beyond" in program for program, _ in found) >= 10


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize("argv, message", [
    (["--learning_rate", "1"], "--learning_rate: unknown setting 'learning_rate'"),
    (["--bf16_stream", "true"], "--bf16_stream: this setting was removed, as no measurement paid for it; leave it out"),
    (["--epoch", "1"], "--epoch: unknown setting 'epoch'; did you mean 'epochs'?"),
    (["--max-token", "1"], "unknown setting 'max_token'; did you mean 'max_tokens'?"),
    (["--xyz"], "--xyz: unknown setting 'xyz'; see --help"),
    (["--checkpoints", "1"], "unknown setting 'checkpoints'"),
    (["--lr", "fast"], "--lr: 'fast' is not a number"),
    (["--layers", "2.5"], "--layers: '2.5' is not a whole number"),
    (["--layers", "9" * 5000], "is not a whole number"),
    (["--batch_size", "0"], "batch_size = 0 must be between 1 and 1,000,000"),
    (["--seed", "-1"], "seed = -1 must be between 0 and 4,294,967,296"),
    (["--lr", "nan"], "lr = nan must be between 0 and"),
    (["--epochs", "inf"], "epochs = inf must be between 1e-06 and"),
    (["--dropout", "2"], "dropout = 2.0 must be between 0 and 0.99"),
    (["--alphas", "-1", "0", "1"], "alphas = [-1.0, 0.0, 1.0] must be between 0 and"),
    (["--log_every", "0"], "log_every = 0 must be between 1 and"),
    (["--data", "--lr", "1"], "--data: expected one argument"),
    (["--lr"], "--lr: expected one argument"),
    (["--tasks"], "--tasks: expected at least one argument"),
    (["--alphas", "1,0,0"], "--alphas: '1,0,0' is not a number"),
    (["--precision", "fp8"], "precision = 'fp8' is not one of auto, bf16, fp16, fp32"),
    (["extra"], "unrecognized arguments: extra (--help lists the settings)"),
    (["no-such.toml"], "no-such.toml: No such file"),
])  # fmt: skip
def test_mistakes_on_the_command_line(argv, message):
    with pytest.raises(UserError, match=re.escape(message)) as e:
        parse("kgi.py", *argv)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("program, argv, message", [
    ("finetune.py", ["--data", "x"], "required: CHECKPOINT"),
    ("finetune.py", ["a", "b", "--data", "x"], "unrecognized arguments: b"),
    ("finetune.py", ["x", "--untrained=yes"], "--untrained: 'yes' is not true or false"),
    ("python -m beyond.evaluate", [], "required: CHECKPOINT"),
    ("python -m beyond.evaluate", ["map", "a", "b"], "unrecognized arguments: b"),
    ("python -m beyond.plot", ["--out", "x.png"], "required: RUN"),
    ("python -m beyond.link", ["a", "b", "c"], "unrecognized arguments: c"),
    ("finetune.py", ["list", "x"], "unrecognized arguments: x"),
    ("finetune.py", ["list", "--data", "x"], "unknown setting 'data'; see --help"),
])  # fmt: skip
def test_too_few_or_too_many_arguments(program, argv, message):
    with pytest.raises(UserError, match=message):
        parse(program, *argv)


@pytest.mark.parametrize("program, name", EVERY_COMMAND)
def test_every_command_refuses_an_unknown_key(program, name):
    arguments = arguments_of(class_of(program, name))
    with pytest.raises(UserError, match="--xyz: unknown setting 'xyz'; see --help"):
        parse(program, name, *arguments, "--xyz", "1")


@pytest.mark.parametrize("old, name, new", [
    (old, name, new) for old, moved in configs.MOVED.items() for name, new in moved.items()
])  # fmt: skip
def test_a_moved_command_names_its_new_program(old, name, new):
    """In one line; the program is there and has that command."""
    program, *command = f"python -m beyond.{new}".rsplit(" ", new.count(" "))
    _, module, default = PROGRAMS[program]
    assert (command or [default])[0] in module.COMMANDS
    p = subprocess.run([sys.executable, old, name, "x", "--seed", "1"], cwd=ROOT, capture_output=True, text=True)
    line = f"{old}: error: this is a program of its own now: python -m beyond.{new} x --seed 1\n"
    assert (p.returncode, p.stdout, p.stderr) == (1, "", line)


@pytest.mark.parametrize("program, name", [x for x in EVERY_COMMAND if not command_line.tables_of(class_of(*x))])
def test_a_command_that_reads_no_file_refuses_one(program, name):
    arguments = arguments_of(class_of(program, name))
    with pytest.raises(UserError, match="^configs/v1-fr.toml: settings of this command are for the command line, not"):
        parse(program, name, *arguments, "configs/v1-fr.toml")


@pytest.mark.parametrize("text, message", [
    ("[train]\nlayer = 3", "[train]: unknown setting 'layer'; did you mean 'layers'?"),
    ("[finetune]\ncheckpoint = 'x'", "[finetune]: unknown setting 'checkpoint'"),
    ("[train]\nlayers = 'three'", "layers = 'three' is not a whole number"),
    ("[train]\nlayers = 3.0", "layers = 3.0 is not a whole number"),
    ("[train]\nlayers = true", "layers = True is not a whole number"),
    ("[train]\nlr = true", "lr = True is not a number"),
    ("[train]\nlr = [1]", "lr = [1] is not a number"),
    ("[train]\ntasks = 'mlm'", "tasks = 'mlm' is not a list, each item text"),
    ("[train]\nalphas = [true]", "alphas = [True] is not a list, each item a number"),
    ("[train]\ndata = 1", "data = 1 is not text"),
    ("[data]\ncased = 1", "cased = 1 is not true or false"),
    ("[data]\nsemantic_types = [1]", "semantic_types = [1] is not a list, each item text"),
    ("[train]\nlayers = 0", "layers = 0 must be between 1 and 1,000"),
    (f"[train]\nlr = 1{'0' * 400}", "lr = inf must be between"),
    (f"[train]\nlr = 1{'0' * 5000}", "not a TOML file"),
    ("[train]\ndevice = 'tpu'", "device = 'tpu' is not one of auto, cuda, cpu"),
    ("[tran]\nlayers = 3", "'tran' is not one of the tables data, train, finetune"),
    ("[evaluate]\nseed = 3", "'evaluate' is not one of the tables data, train, finetune"),
    ("layers = 3", "'layers' is not one of the tables"),
    ("[train", "not a TOML file"),
    (f"[train]\nalphas = {'[' * 5000}", "not a TOML file"),
    ("[train]\nlr = 1\n[train]\nlr = 2", "not a TOML file"),
    (b"[train]\ndata = '\xff'", "not a TOML file"),
], ids=range(23))  # fmt: skip
def test_mistakes_in_a_file(tmp_path, text, message):
    (tmp_path / "x.toml").write_bytes(text if type(text) is bytes else text.encode())
    with pytest.raises(UserError, match=re.escape(message)):
        parse("kgi.py", tmp_path / "x.toml")


def test_only_files_are_read_as_toml(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe.toml", tmp_path / "zero.toml", tmp_path):
        with pytest.raises(UserError, match=f"{path}: not a file"):
            command_line.read_toml(path)


def test_mistakes_in_tables_of_other_commands_are_found_too(tmp_path):
    (tmp_path / "x.toml").write_text("[train]\nlr = 1\n[finetune]\nrun = 3\n")
    with pytest.raises(UserError, match=r"x.toml, \[finetune\]: unknown setting 'run'; did you mean 'runs'"):
        parse("kgi.py", tmp_path / "x.toml")


@pytest.mark.parametrize("table, key, value, most", [
    ("data", "max_relations", 1_000_000, "50"),
    ("data", "lp_paths", 999_999_999_999_999, "1,000,000"),
    ("data", "tc_examples", 10**14, "1,000,000,000"),
    ("data", "ep_examples", 10**14, "1,000,000,000"),
    ("data", "vocab_size", 9_999_999_999_999, "1,000,000"),
    ("data", "seq_len", 10**9, "16,384"),
    ("train", "batch_size", 10**12, "1,000,000"),
    ("train", "dim", 10**9, "16,384"),
])  # fmt: skip
def test_absurd_sizes_are_refused(table, key, value, most):
    with pytest.raises(UserError, match=rf"{key} = {value} must be between \d+ and {most}$"):
        settings_of(table, f"--{key}", value)


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"\xef\xbb\xbf[train]\nlayers = 3\n")
    assert parse("kgi.py", tmp_path / "x.toml").layers == 3


@pytest.mark.parametrize("argv, line", [
    (["kgi.py", "--lr", "fast"], "kgi.py: error: argument --lr: 'fast' is not a number (--help lists the settings)\n"),
    (["kgi.py", "--lrs", "1"], "kgi.py: error: --lrs: unknown setting 'lrs'; did you mean 'lr'?\n"),
    (["-m", "beyond.link", "x", "--split", "tests"],
     "python -m beyond.link: error: split = 'tests' is not one of train, dev, test, all\n"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_status_1(argv, line):
    p = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True)
    assert (p.returncode, p.stdout, p.stderr) == (1, "", line)


# ---------------------------------------------------------------- the configs that come with the project


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_every_config_loads(file):
    for table in configs.TABLES:
        settings_of(table, file)


@pytest.mark.parametrize("lang", ["fr", "es", "en", "multi"])
def test_numbers_of_the_paper(lang):
    """Tables 1 and 8 for v1, appendix C for v2, section 4.2 for the one-shot protocol."""
    folder = Path(configs.__file__).parent
    v1, v2 = folder / f"v1-{lang}.toml", folder / f"v2-{lang}.toml"
    d, t = settings_of("data", v1), settings_of("train", v1)
    assert (d.lang, d.tc_examples, d.ep_examples, d.seq_len) == (lang, 200_000, 100_000, 256)
    assert d.lp_paths == (64_208 if lang == "fr" else 100_000)
    assert (t.layers, t.heads, t.dim, t.lr, t.warmup, t.batch_size, t.epochs) == (12, 12, 768, 7.5e-4, 10_770, 1500, 64)
    assert t.mlm_probability == 0.15
    t = settings_of("train", v2)
    assert (t.layers, t.heads, t.lr, t.warmup, t.batch_size, t.epochs) == (8, 8, 5e-5, 30_000, 1536, 200)
    f = settings_of("finetune", v1)
    assert (f.epochs, f.batch_size, f.lr, f.weight_decay) == (1, 4, 2e-5, 0.01)


# ---------------------------------------------------------------- around the programs


def test_pip_install_is_refused_in_one_line():
    p = subprocess.run([sys.executable, "setup.py", "bdist_wheel"], cwd=ROOT, capture_output=True, text=True)
    assert p.returncode == 1 and re.fullmatch("kgi is not installed but run from its folder: .*\n", p.stderr)


@pytest.mark.skipif(not shutil.which("make"), reason="make is not there")
@pytest.mark.parametrize("env, argv, passed", [
    ("fr_FR.UTF-8", [], ""),  # a locale is no choice of language
    ("fr_FR.UTF-8", ["LANG=fr"], "--lang fr"),
    ("C", ["LANG=FRE"], "--lang FRE"),
    ("", ["LANG="], ""),
])  # fmt: skip
def test_make_data_takes_lang_from_the_command_line_alone(env, argv, passed):
    env = without_make(LANG=env)
    out = subprocess.run(["make", "-n", "data", *argv], cwd=ROOT, env=env, capture_output=True, text=True).stdout
    assert " ".join(out.split("data.py build")[1].replace("\\", "").split()) == passed


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_python_without_the_packages_is_one_line(program):
    """What to do, in place of a traceback."""
    p = subprocess.run([sys.executable, "-S", *executed(program)], cwd=ROOT, capture_output=True, text=True)
    what = (
        f"{program}: error: {sys.executable} has no torch, tokenizers, numpy, pyarrow, seqeval, sklearn, tqdm; first: "
    )
    assert p.returncode == 1 and p.stdout == "" and p.stderr.count("\n") == 1
    assert p.stderr.startswith(what) and p.stderr.endswith("source .venv/bin/activate\n")


def test_an_older_python_is_one_line(monkeypatch):
    """All that it reads before the line is Python that it can read."""
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    assert configs.missing_environment().startswith("Python 3.11 or later is needed, and this is 3.")
    for path in [Path(configs.__file__), *(path for path, *_ in PROGRAMS.values())]:
        ast.parse(path.read_text(), feature_version=(3, 9))


def test_what_files_say_to_other_commands(tmp_path):
    """A build knows the training of its files, and a training the fine-tuning; what was given can be told apart."""
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text("[data]\nlang = 'fr'\n[train]\nlr = 1\nepochs = 3\n[finetune]\nlr = 5e-4\n")
    two.write_text("[train]\nepochs = 2\n")
    s = parse("data.py", "build", one, two, "--seed", 0)
    assert (s.tables["train"], s.given, s.files) == ({"lr": 1.0, "epochs": 2.0}, {"lang", "seed"}, [str(one), str(two)])
    assert parse("kgi.py", one).tables["finetune"] == {"lr": 5e-4} and configs.Train().tables == {}
    two.write_text("[train]\nepochs = -2\n")
    with pytest.raises(UserError, match="epochs = -2.0 must be between"):
        parse("data.py", "build", two)


@pytest.mark.skipif(not shutil.which("make"), reason="make is not there")
@pytest.mark.parametrize("goal, given, missing", [
    ("tag", [], "MODEL"), ("ner", ["CHECKPOINT=runs/x", "CORPUS=e3c"], "DATA"), ("check", ["CORPUS=e3c"], "DATA"),
    ("map", [], "CHECKPOINT"), ("evaluate", [], "CHECKPOINT"), ("link", ["CHECKPOINT=x"], "CORPUS"),
    ("plot", [], "RUN"),
])  # fmt: skip
def test_make_names_the_variable_that_is_missing(tmp_path, goal, given, missing):
    """Before it makes an environment; with all of them it is not asked for any."""
    env = {k: v for k, v in without_make().items() if k != missing}
    make = ["make", goal, *given, f"VENV={tmp_path / 'env'}"]
    p = subprocess.run(make, cwd=ROOT, env=env, capture_output=True, text=True)
    line = p.stdout.splitlines()[0]
    assert p.returncode != 0 and line.startswith(f"make {goal} needs {missing}: make {goal} ") and f"{missing}=" in line
    assert not (tmp_path / "env").exists()
    p = subprocess.run([*make, f"{missing}=x", "-n"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert "needs" not in p.stdout and p.returncode == 0
