"""Files of sentence-transformers: how a folder says that vectors of texts are pooled, read and written."""

from pathlib import Path
from typing import NamedTuple

import configs
from configs import UserError
from support import tokenizers
from support.files import read_json, write_json


class Pooling(NamedTuple):
    """What a folder of sentence-transformers says of its vectors; the defaults say nothing."""

    mode: str = ""  # cls or mean, or what else its file names
    max_len: int = 0  # tokens of the longest input
    normalize: bool = False  # whether vectors get length 1
    others: tuple = ()  # what else goes into them and is not supported here

    @property
    def fault(self):
        """Why vectors as that library computes them cannot be had here, "" if they can."""
        if self.others:
            return f"its {self.others[0]} is not supported"
        return f"its pooling, {self.mode}, is not supported" if self.mode not in ("", *configs.POOLINGS) else ""


def read_pooling(folder):
    """The Pooling of a checkpoint folder, or of the encoder's in the old layout (0_BERT). Raises: UserError."""
    root, modules = read_modules(folder)
    max_len = tokenizers.read_input_settings(folder)["max_seq_length"]
    if modules and not max_len:  # newer folders have it in the tokenizer's file alone
        longest = read_json(Path(folder, "tokenizer_config.json")).get("model_max_length")
        max_len = longest if type(longest) is int and longest > 0 else 0
    kinds = [kind for kind, _ in modules[1:]]
    others = [f"module {kind}" for kind in kinds if kind not in ("Pooling", "Normalize", "Dropout")]
    if read_json(root / "config_sentence_transformers.json").get("default_prompt_name"):
        others.append("prompt before each text")
    paths = [path for kind, path in modules if kind == "Pooling"] if modules else ["1_Pooling"]
    mode = pooling_mode(root / paths[0] / "config.json", bool(modules)) if paths else ""
    return Pooling(mode, max_len, "Normalize" in kinds, tuple(others))


def read_modules(folder):
    """(the folder of modules.json, [(kind, subfolder) of each module]); of none, `folder` and []. Raises: UserError."""
    folder = Path(folder)
    name, parent = folder.absolute().name, folder.absolute().parent
    modules = modules_of(parent) if name.startswith("0_") else []
    return (parent, modules) if modules and modules[0][1] == name else (folder, modules_of(folder))


def modules_of(root):
    """[(kind, subfolder)] of the modules.json in a folder, [] if there is none. Raises: UserError."""
    path = Path(root, "modules.json")
    modules = read_json(path, list)
    if not all(type(m) is dict and type(m.get("type")) is str and type(m.get("path")) is str for m in modules):
        raise UserError(f"{path}: not a list of modules, each with its path and type")
    return [(m["type"].split(".")[-1], m["path"].rstrip("/")) for m in modules]


def pooling_mode(path, is_named):
    """The modes in a file of pooling; without it "", or words for an error if modules.json names it (is_named)."""
    if not path.exists():
        return f"unknown ({path.parent.name}/{path.name} is missing)" if is_named else ""
    d = read_json(path)
    flags = [key.removeprefix("pooling_mode_") for key in d if key.startswith("pooling_mode_") and d[key]]
    modes = d.get("pooling_mode") or flags or ["mean"]
    names = {"cls_token": "cls", "mean_tokens": "mean"}
    return " and ".join(names.get(str(x), str(x)) for x in (modes if type(modes) is list else [modes]))


def inherit_pooling(init, log):
    """The Pooling of a run: that of the checkpoint `init` with which it begins, else [CLS]."""
    own = read_pooling(init) if init else Pooling()
    if own.fault:
        log(f"{init}: {own.fault}; the run has the vector at [CLS]")
    return own._replace(mode="cls" if own.fault else own.mode or "cls", others=())


def write_pooling(folder, pooling, dim, max_positions):
    """Writes what sentence-transformers reads of a folder, modules.json last, unless there is one.

    Other libraries take the mean over all tokens where nothing is said. Texts in lower case are the tokenizer's matter.
    """
    folder = Path(folder)
    if (folder / "modules.json").exists():  # of this run, or put there by its user
        return
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(folder / "1_Pooling" / "config.json", {
        "word_embedding_dimension": dim, "pooling_mode_cls_token": pooling.mode == "cls",
        "pooling_mode_mean_tokens": pooling.mode == "mean", "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    })  # fmt: skip
    max_len = min(pooling.max_len or max_positions, max_positions)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_len, "do_lower_case": False})
    kinds = ["Transformer", "Pooling"] + ["Normalize"] * pooling.normalize
    write_json(folder / "modules.json", [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ])  # fmt: skip
