"""Files of tensors: safetensors and torch, which of them a checkpoint folder has, read with all checks and written."""

import json
import math
import os
import pickle
from pathlib import Path

import torch

from configs import UserError
from support.files import read_json
from support.forms import find_misfit

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # the first is taken where there are both
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

TENSOR = {"dtype": str, "shape": [None], "data_offsets": (int, int), str: None}  # in a header, as find_misfit has it


def weight_files(folder):
    """model.safetensors, else pytorch_model.bin, either maybe in parts: a list of files. Raises: UserError."""
    for path in (Path(folder, name) for name in WEIGHT_FILES):
        if path.is_file():
            return [path]
        index = path.with_name(path.name + ".index.json")
        parts = read_json(index).get("weight_map")
        if parts:
            if type(parts) is not dict or not all(type(p) is str and Path(p).name == p for p in parts.values()):
                raise UserError(f"{index}: its weight_map does not name files beside it")
            return [Path(folder, name) for name in sorted(set(parts.values()))]
    raise UserError(f"{folder} holds neither {' nor '.join(WEIGHT_FILES)}")


def is_plain_finite(t):
    return t.layout == torch.strided and t.device.type == "cpu" and t.is_floating_point() and t.float().isfinite().all()


def read_torch(path):
    """torch.load of tensors and plain values only. Raises: UserError if the file is absent, damaged or unsafe."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} not found") from None
    except Exception as e:  # what a damaged file raises depends on where the damage is
        if "unsupported global" in str(e).lower():
            raise UserError(f"{path}: holds objects other than tensors, which could run code; refused") from None
        # torch's own message advises to load the file regardless.
        unsafe = isinstance(e, pickle.UnpicklingError)
        reason = "not tensors alone" if unsafe else (str(e).splitlines() or [""])[0]
        raise UserError(f"{path}: damaged or not a weights file ({type(e).__name__}: {reason})") from None


def read_safetensors(path):
    """{name: tensor} of a .safetensors file: 8 bytes of header length, a JSON header, the tensors one after another.

    The tensors must fill the file, without holes and without sharing bytes. Raises: UserError.
    """

    def damaged(what):
        return UserError(f"{path}: damaged or not a safetensors file ({what})")

    with open(path, "rb") as f:
        n_bytes = os.fstat(f.fileno()).st_size - 8
        length = int.from_bytes(f.read(8), "little")
        if n_bytes < 2 or length > min(n_bytes, 100_000_000):
            raise damaged(f"a header of {length:,} bytes in a file of {n_bytes + 8:,}")
        try:
            header = json.loads(f.read(length).decode("utf-8"))
            header.pop("__metadata__", None)
        except (ValueError, TypeError, AttributeError, RecursionError) as e:
            raise damaged(f"the header cannot be read: {type(e).__name__}") from None
        if misfit := find_misfit(header, {str: TENSOR}):
            raise damaged(f"in its header {misfit}")
        out, position = {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            (offset, end), dtype, shape = entry["data_offsets"], entry["dtype"], entry["shape"]
            if dtype not in DTYPES:
                raise damaged(f"{name}: numbers of type {dtype[:20]} are not supported")
            if len(shape) > 8 or any(type(x) is not int or not 0 <= x < 2**63 for x in shape):
                raise damaged(f"{name}: its shape is impossible")
            size = math.prod(shape) * DTYPES[dtype].itemsize
            if offset != position or end > n_bytes - length or end - offset != size:
                raise damaged(f"{name}: bytes {offset:,} to {end:,} are not its place in the file")
            if size:  # tensors without elements are of no use to anyone here
                out[name] = torch.frombuffer(bytearray(f.read(size)), dtype=DTYPES[dtype]).view(shape)
            position = end
        if position != n_bytes - length:
            raise damaged(f"{n_bytes - length - position:,} bytes behind the last tensor")
    return out


def write_safetensors(f, tensors):
    """The counterpart of read_safetensors, for float32 tensors on the CPU."""
    header, position = {"__metadata__": {"format": "pt"}}, 0
    for name, t in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(t.shape), "data_offsets": [position, position + 4 * t.numel()]}
        position += 4 * t.numel()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    f.write(len(text).to_bytes(8, "little") + text)
    for t in tensors.values():
        f.write(t.contiguous().numpy())
