"""Our ternary container: ternary matrices in a safetensors file, two bits a weight and one float16 a group of columns.

A matrix `name` of N rows and K columns in groups of g, which is 32, 64, 128 or 256 and divides K, is two tensors:
  name.codes    U8  [N, K / 4]   column k's code is bits 2 (k % 4) and 2 (k % 4) + 1 of byte k / 4; 0, 1, 2 mean -1, 0, 1
  name.scales   F16 [N, K / g]   a weight is its code's number times its group's scale
Code 3 is reserved: a file that holds it is refused when the tensor is loaded. The file's `__metadata__` says
"ternary_container": "1". All other tensors are stored as usual. In memory a group is a block of `quant.ternary`.

A folder of such a model is as the Hugging Face libraries write it; its config.json has quantization_config.quant_method
"minicpm4_ternary", so that libraries which do not know it refuse the folder instead of missing its weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from minicpm4.checkpoint.mapped import TensorFile, TensorInfo
from minicpm4.errors import CheckpointError
from minicpm4.model import PackedTensor
from minicpm4.model.tensors import STORAGE_FORMATS

METHOD = "minicpm4_ternary"
METADATA = {"ternary_container": "1"}
CODES, SCALES = ".codes", ".scales"
GROUPS = (32, 64, 128, 256)
DAMAGED = "the file is damaged, or not written as the container is specified"
CHECKED_BYTES = 1 << 20  # at once: what checking makes stays in the cache of a core


def ternary_pairs(files: list[TensorFile]) -> dict[str, tuple[TensorFile, TensorFile]]:
    """The ternary matrices of a model's files: by name, the file of the codes and that of the scales.

    CheckpointError where a file's container is of another version. Codes without scales are no pair: they stay unknown tensors.
    """
    places = {name: file for file in files for name in file.tensors}
    pairs = {
        name.removesuffix(CODES): (file, places[name.removesuffix(CODES) + SCALES])
        for name, file in places.items()
        if name.endswith(CODES) and name.removesuffix(CODES) + SCALES in places
    }
    for codes_file, _ in pairs.values():
        if METADATA.items() - codes_file.metadata.items():
            raise CheckpointError(
                f"{codes_file.file.path.name} holds ternary codes, but its metadata does not say {METADATA}",
                hint="the file is of another version of the container; write it again with this one",
            )
    return pairs


def ternary_info(name: str, codes: TensorInfo, scales: TensorInfo) -> TensorInfo:
    """The matrix that codes and scales make; offset is that of the codes. CheckpointError where they do not fit each other."""
    problem = None
    if (codes.format, scales.format) != ("u8", "f16") or (len(codes.shape), len(scales.shape)) != (2, 2):
        problem = f"codes are {codes.format} {codes.shape}, scales are {scales.format} {scales.shape}, expected u8 and f16 matrices"
    elif codes.shape[0] != scales.shape[0] or codes.nbytes != codes.shape[0] * codes.shape[1]:
        problem = f"codes {codes.shape} of {codes.nbytes} bytes and scales {scales.shape} do not have the same rows"
    elif 4 * codes.shape[1] not in [group * scales.shape[1] for group in GROUPS]:
        problem = f"codes {codes.shape} and scales {scales.shape} do not make groups of {', '.join(map(str, GROUPS))} columns"
    if problem is not None or scales.shape[1] == 0:
        raise CheckpointError(f"ternary tensor {name!r:.100}: {problem or 'it has no columns'}", hint=DAMAGED)
    columns = 4 * codes.shape[1]
    return TensorInfo(f"ternary_g{columns // scales.shape[1]}", (codes.shape[0], columns), codes.offset, codes.nbytes + scales.nbytes)


def join_ternary(name: str, codes_NB: np.ndarray, scales_NC: np.ndarray) -> PackedTensor:
    """The matrix as blocks (a copy). codes: uint8 [N, K / 4]; scales: the float16's bytes, [N, K / g * 2].

    CheckpointError where a code is 3.
    """
    num_rows, num_groups = len(codes_NB), scales_NC.shape[1] // 2
    code_bytes = codes_NB.shape[1] // num_groups
    step = max(1, CHECKED_BYTES // codes_NB.shape[1])
    blocks = np.empty((num_rows, num_groups, code_bytes + 2), np.uint8)
    for start in range(0, num_rows, step):
        codes = codes_NB[start : start + step]
        if (codes & (codes >> 1) & 0x55).any():
            raise CheckpointError(f"ternary tensor {name!r:.100} holds the reserved code 3", hint=DAMAGED)
        blocks[start : start + step, :, :code_bytes] = codes.reshape(-1, num_groups, code_bytes)
    blocks[:, :, code_bytes:] = scales_NC.reshape(num_rows, num_groups, 2)
    storage = STORAGE_FORMATS[f"ternary_g{4 * code_bytes}"]
    return PackedTensor(name, storage, (num_rows, 4 * codes_NB.shape[1]), blocks.reshape(num_rows, -1))


def split_ternary(tensor: PackedTensor) -> Mapping[str, np.ndarray]:
    """Inverse of `join_ternary`: codes, uint8 [N, K / 4], and scales, float16 [N, K / g], by the names of the container."""
    assert tensor.format.name.startswith("ternary_"), "the tensor is not ternary"
    blocks = tensor.data.reshape(tensor.num_rows, -1, tensor.format.block_bytes)
    scales = np.ascontiguousarray(blocks[:, :, -2:]).view("<f2")
    return {
        tensor.name + CODES: np.ascontiguousarray(blocks[:, :, :-2]).reshape(tensor.num_rows, -1),
        tensor.name + SCALES: scales.reshape(tensor.num_rows, -1),
    }
