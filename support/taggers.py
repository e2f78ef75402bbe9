"""Token classifiers as checkpoint folders: labels, the classifier's weights, and our own details in config.json."""

from pathlib import Path

from configs import UserError
from support import checkpoints, tokenizers
from support.checkpoints import FAMILIES, read_tensors
from support.files import atomic_directory, read_json
from support.labels import check_label, check_type
from support.tensors import is_plain_finite
from support.windows import MAX_WINDOW

TAGGER_FILES = {  # of a tagger's folder, which is replaced as a whole: how ours is recognised; see files.check_output
    "config.json": rb'(?s).*"kgi_tagger": ', "model.safetensors": None, "tokenizer.json": None,
    "tokenizer_config.json": None, "special_tokens_map.json": None,
}  # fmt: skip


def save_tagger(folder, classifier, tokenizer, details):
    """Writes a checkpoint folder that other libraries open for token classification; it replaces another as a whole.

    details: the object kgi_tagger of its config.json.
    """
    c, labels = classifier.encoder.config, classifier.labels
    more_config = {
        "architectures": [FAMILIES[c.family].masked_lm.replace("MaskedLM", "TokenClassification")],
        "num_labels": len(labels), "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)}, "kgi_tagger": details,
    }  # fmt: skip
    with atomic_directory(folder, TAGGER_FILES) as new:
        tokenizers.save(tokenizer.to_str().encode(), new, c.max_positions, c.type_vocab_size)
        checkpoints.write(new, c, classifier.state_dict(), classifier.encoder.token_types, more_config)


def read_tagger(folder, config):
    """(labels, {name: float32 tensor} of the classifier, tagger_settings). Raises: UserError if a folder has none."""
    d, how = read_json(Path(folder, "config.json")), "finetune.py CHECKPOINT --corpus .. writes one to <results>/model"
    names = d.get("id2label")
    if type(names) is not dict:
        raise UserError(f"{folder} is not a tagger: its config.json has no id2label; {how}")
    classes = d.get("architectures") or []
    if type(classes) is not list or not all(type(name) is str for name in classes):
        raise UserError(f"{folder}: architectures in its config.json is not a list of names")
    if others := [name for name in classes if not name.endswith("ForTokenClassification")]:
        raise UserError(f"{folder} is not a tagger: its config.json says {others[0]}; {how}")
    labels = [names.get(str(i)) for i in range(len(names))]
    if not all(type(label) is str and label for label in labels) or len({*labels}) < len(labels):
        raise UserError(f"{folder}: id2label in its config.json does not number distinct labels from 0")
    shapes = {"classifier.weight": (len(labels), config.dim), "classifier.bias": (len(labels),)}
    weights = read_parts(folder, config, shapes | head_shapes(config))
    if not weights:
        raise UserError(f"{folder} is not a tagger: its weights have no classifier; {how}")
    return labels, weights, tagger_settings(folder, labels, config)


def head_shapes(c):
    """{name: shape} of the tensors between encoder and classifier. ModernBERT shares them with its vocabulary head."""
    names, own = ("head.dense.weight", "head.dense.bias", "head.norm.weight", "head.norm.bias"), c.extra_config
    is_there = True, own.get("classifier_bias"), True, own.get("norm_bias")
    shapes = (c.dim, c.dim), (c.dim,), (c.dim,), (c.dim,)
    return {n: shape for n, shape, there in zip(names, shapes, is_there) if there} if c.family == "modernbert" else {}


def read_head(folder, config):
    """{name: float32 tensor} of head_shapes; {} if a checkpoint has none, so that a tagger's begins randomly."""
    return read_parts(folder, config, shapes) if (shapes := head_shapes(config)) else {}


def read_parts(folder, config, shapes):
    """{name: float32 tensor} of a checkpoint, {} unless it has all. shapes: {name: shape}. Raises: UserError."""
    weights = read_tensors(folder, FAMILIES[config.family])
    if not shapes.keys() <= weights.keys():
        return {}
    for name, shape in shapes.items():
        if tuple(weights[name].shape) != shape or not is_plain_finite(weights[name]):
            raise UserError(f"{folder}: {name} is not {shape} finite numbers, as its config.json says")
    return {name: weights[name].float() for name in shapes}


def read_tagger_details(folder):
    """The object kgi_tagger in config.json, {} if there is none. Raises: UserError."""
    details = read_json(Path(folder, "config.json")).get("kgi_tagger", {})
    if type(details) is not dict:
        raise UserError(f"{folder}: kgi_tagger in its config.json is not an object")
    return details


def tagger_settings(folder, labels, config):
    """{"max_len", "has_text", "pos", "precision", "is_ours", "scheme"} of a tagger.

    is_ours: whether fine-tuning wrote it; its labels are IOB2. scheme: BIOES, BILOU, or "" for IOB1 or IOB2.
    Raises: UserError for values of another kind, or for labels of no scheme.
    """
    defaults = {"max_len": min(MAX_WINDOW, config.max_positions), "has_text": True, "pos": False, "precision": "auto"}
    ours = read_tagger_details(folder)
    details = defaults | ours
    for key, default in defaults.items():
        if type(details[key]) is not type(default):
            raise UserError(f"{folder}: kgi_tagger in its config.json has {key} = {details[key]!r:.60}")
    if not 8 <= details["max_len"] <= config.max_positions or details["precision"] not in ("auto", "bf16", "fp32"):
        raise UserError(f"{folder}: kgi_tagger in its config.json has an impossible max_len or precision")
    scheme, where = "", f"{folder}: id2label in its config.json"
    for label in labels:
        check_type(label, where)
        scheme = "" if details["pos"] else check_label(label, scheme, where)
    if ours and scheme:
        raise UserError(f"{where}: its labels are of {scheme}, but a tagger of finetune.py has IOB2")
    return details | {"is_ours": bool(ours), "scheme": scheme}
