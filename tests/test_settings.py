"""configs/__init__.py: defaults, TOML files, overrides, and what is said about mistakes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import configs
from configs import UserError
from tests.conftest import ROOT

FILES = sorted(Path(configs.__file__).parent.glob("*.toml"))


def load(table, *argv, positionals=0):
    return configs.load(table, list(argv), "usage", positionals)[0]


def test_later_sources_win(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text("[train]\nlr = 1\nepochs = 3\nalphas = [0.2, 0.3, 0.5]\n[data]\nlang = 'fr'\n")
    s = load("train", str(file), "--epochs", "5", "--weight-decay=0", "--data", "x")
    assert (s.lr, s.epochs, s.weight_decay, s.alphas, s.layers) == (1.0, 5.0, 0.0, [0.2, 0.3, 0.5], 12)
    assert load("train", "--epochs", "5", str(file)).epochs == 5  # wherever the file stands
    (tmp_path / "y.toml").write_text("[train]\nlr = 2\n")
    assert load("train", str(file), str(tmp_path / "y.toml")).lr == 2
    assert load("data", "--semantic_types", "DISO,T016", "--cased", "false").semantic_types == ["DISO", "T016"]
    assert load("finetune", "--untrained", "--lr", "1e-4").untrained


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--learning_rate", "1"], "unknown setting 'learning_rate'"),
        (["--epoch", "1"], "did you mean 'epochs'?"),
        (["--lr", "fast"], "--lr: 'fast' is not a number"),
        (["--layers", "2.5"], "--layers: '2.5' is not a whole number"),
        (["--batch_size", "0"], "batch_size = 0 must be between 1 and"),
        (["--seed", "-1"], "seed = -1 must be between 0 and"),
        (["--lr", "nan"], "lr = nan must be between 0 and"),
        (["--epochs", "inf"], "epochs = inf must be between 1e-06 and"),
        (["--dropout", "2"], "dropout = 2.0 must be between 0 and 0.99"),
        (["--alphas", "-1,0,1"], "must be between 0 and"),
        (["--log_every", "0"], "log_every = 0 must be between 1 and"),
        (["--data", "--lr", "1"], "--data needs a value"),
        (["--lr"], "--lr needs a value"),
        (["--alphas", "a,b"], "is not a list of numbers"),
        (["extra"], "unexpected argument 'extra'"),
        (["no-such.toml"], "no-such.toml: No such file"),
    ],
)
def test_mistakes_on_the_command_line(argv, said):
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        load("train", *argv)


@pytest.mark.parametrize(
    "text, said",
    [
        ("[train]\nlayer = 3", r"\[train\]: unknown setting 'layer'; did you mean 'layers'"),
        ("[train]\nlayers = 'three'", "layers = 'three' is not a whole number"),
        ("[train]\nlayers = true", "layers = True is not a whole number"),
        ("[data]\nsemantic_types = [1]", r"semantic_types = \[1\] is not a list of texts"),
        ("[tran]\nlayers = 3", "'tran' is not one of the tables data, train, finetune"),
        ("layers = 3", "'layers' is not one of the tables"),
        ("[train", "not a TOML file"),
    ],
)
def test_mistakes_in_a_file(tmp_path, text, said):
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(UserError, match=said):
        load("train", str(tmp_path / "x.toml"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_every_config_loads(file):
    for table in configs.TABLES:
        load(table, str(file))


@pytest.mark.parametrize("lang", ["fr", "es", "en", "multi"])
def test_numbers_of_the_paper(lang):
    """Tables 1 and 8 for v1, appendix C for v2, section 4.2 for the one-shot protocol."""
    folder = Path(configs.__file__).parent
    v1, v2 = str(folder / f"v1-{lang}.toml"), str(folder / f"v2-{lang}.toml")
    d, t = load("data", v1), load("train", v1)
    assert (d.lang, d.classification, d.prediction, d.seq_len) == (lang, 200_000, 100_000, 256)
    assert d.paths == (64_208 if lang == "fr" else 100_000)
    assert (t.layers, t.heads, t.dim, t.lr, t.warmup, t.batch_size, t.epochs) == (12, 12, 768, 7.5e-4, 10_770, 1500, 64)
    assert t.mlm_probability == 0.15
    t = load("train", v2)
    assert (t.layers, t.heads, t.lr, t.warmup, t.batch_size, t.epochs) == (8, 8, 5e-5, 30_000, 1536, 200)
    f = load("finetune", v1)
    assert (f.epochs, f.batch_size, f.lr, f.weight_decay) == (1, 4, 2e-5, 0.01)


@pytest.mark.parametrize("table, key, value, most", [
    ("data", "max_relations", 1_000_000, "50"),
    ("data", "paths", 999_999_999_999_999, "2,000,000"),
    ("data", "classification", 10**14, "1,000,000,000"),
    ("data", "prediction", 10**14, "1,000,000,000"),
    ("data", "vocab_size", 9_999_999_999_999, "1,000,000"),
    ("data", "seq_len", 10**9, "16,384"),
    ("train", "batch_size", 10**12, "1,000,000"),
    ("train", "dim", 10**9, "16,384"),
])  # fmt: skip
def test_absurd_sizes(table, key, value, most):
    with pytest.raises(UserError, match=rf"{key} = {value} must be between \d+ and {most}$"):
        load(table, f"--{key}", str(value))


def test_a_byte_order_mark(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"\xef\xbb\xbf[train]\nlayers = 3\n")
    assert load("train", str(tmp_path / "x.toml")).layers == 3


def test_pip_install_is_refused_in_one_line():
    p = subprocess.run([sys.executable, "setup.py", "bdist_wheel"], cwd=ROOT, capture_output=True, text=True)
    assert p.returncode == 1 and re.fullmatch("kgi is not installed but run from its folder: .*\n", p.stderr)


def test_write_atomic_keeps_the_old_file(tmp_path):
    file = tmp_path / "x"
    file.write_text("old")

    def fail(f):
        f.write(b"half")
        raise RuntimeError("unexpected pos")

    with pytest.raises(UserError, match="x: cannot be written: is the disk full.*unexpected pos"):
        configs.write_atomic(file, fail)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


@pytest.mark.skipif(not shutil.which("make"), reason="make is not there")
@pytest.mark.parametrize("env, argv, passed", [
    ("fr_FR.UTF-8", [], ""),  # a locale is not a wish
    ("fr_FR.UTF-8", ["LANG=fr"], "--lang=fr"),
    ("C", ["LANG=FRE"], "--lang=FRE"),
    ("", ["LANG="], "--lang="),
])  # fmt: skip
def test_make_data_takes_lang_from_the_command_line_alone(env, argv, passed):
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")} | {"LANG": env}
    said = subprocess.run(["make", "-n", "data", *argv], cwd=ROOT, env=env, capture_output=True, text=True).stdout
    assert said.split("data.py build")[1].strip() == passed
