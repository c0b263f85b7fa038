"""Wrong files by name, with a word that the refusal must say: the public abuse cases of safetensors and GGUF, and more."""

from __future__ import annotations

import pickle
import struct

from checkpoint_files import gguf_array, gguf_key, gguf_string, gguf_tensor, raw_gguf, raw_safetensors

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
U32 = struct.Struct("<I").pack
U64 = struct.Struct("<Q").pack
HUGE = (1 << 64) - 1


def entry(**changes: object) -> dict[str, object]:
    return {"a": {**F32, **changes}}


SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "no-bytes": (b"", "empty"),
    "seven-bytes": (b"\x02\0\0\0\0\0\0", "not a safetensors"),
    "header-too-small": (raw_safetensors(b"{", length=1), "not a safetensors"),
    "header-too-large": (raw_safetensors(b"{}", length=100_000_001), "not a safetensors"),
    "header-past-end": (raw_safetensors(b"{}", length=1000), "truncated"),
    "header-length-max": (raw_safetensors(b"{}", length=HUGE), "not a safetensors"),
    "bad-json": (raw_safetensors(b"{nonsense}"), "JSON"),
    "not-utf8": (raw_safetensors(b'{"\xff\xfe": 1}'), "JSON"),
    "deep-json": (raw_safetensors(b'{"a":' + b"[" * 100_000), "JSON"),
    "long-number": (raw_safetensors(b'{"a":' + b"9" * 5000 + b"}"), "JSON"),
    "duplicate-key": (
        raw_safetensors(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'),
        "twice",
    ),
    "duplicate-inner-key": (raw_safetensors(b'{"a":{"dtype":"F32","dtype":"F32","shape":[0],"data_offsets":[0,0]}}'), "twice"),
    "many-entries": (
        raw_safetensors({f"tensor.{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(200_000)}),
        "100000 tensors",
    ),
    "many-lists": (raw_safetensors(b'{"a":[' + b"[]," * 600_000 + b"1]}"), "too large"),
    "overlap": (raw_safetensors({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, bytes(12)), "overlaps"),
    "same-bytes": (raw_safetensors({"a": F32, "b": F32}, bytes(8)), "overlaps"),
    "hole": (raw_safetensors({"a": F32, "b": {**F32, "data_offsets": [12, 20]}}, bytes(20)), "hole"),
    "hole-at-start": (raw_safetensors(entry(data_offsets=[4, 12]), bytes(12)), "hole"),
    "trailing-bytes": (raw_safetensors(entry(), bytes(9)), "follow the last"),
    "past-end": (raw_safetensors(entry(), bytes(7)), "truncated"),
    "offsets-reversed": (raw_safetensors(entry(data_offsets=[8, 0]), bytes(8)), "lies at"),
    "offset-negative": (raw_safetensors(entry(data_offsets=[-8, 0]), bytes(8)), "data_offsets"),
    "offset-float": (raw_safetensors(entry(data_offsets=[0, 8.0]), bytes(8)), "data_offsets"),
    "offset-bool": (raw_safetensors(entry(shape=[True], data_offsets=[0, 4]), bytes(4)), "shape"),
    "three-offsets": (raw_safetensors(entry(data_offsets=[0, 8, 8]), bytes(8)), "data_offsets"),
    "negative-dimension": (raw_safetensors(entry(shape=[-2]), bytes(8)), "shape"),
    "product-overflows": (raw_safetensors(entry(shape=[1 << 33, 1 << 33]), bytes(8)), "does not fill"),
    "product-wraps-to-size": (raw_safetensors(entry(shape=[2, (1 << 63) + 1]), bytes(8)), "shape"),
    "many-dimensions": (raw_safetensors(entry(shape=[1] * 1000 + [2]), bytes(8)), "shape"),
    "shape-not-list": (raw_safetensors(entry(shape="2"), bytes(8)), "shape"),
    "wrong-size": (raw_safetensors(entry(shape=[3]), bytes(8)), "does not fill"),
    "extra-field": (raw_safetensors(entry(code="import os"), bytes(8)), "expected dtype"),
    "entry-is-list": (raw_safetensors({"a": [1]}, bytes(8)), "expected dtype"),
    "dtype-is-number": (raw_safetensors(entry(dtype=7), bytes(8)), "expected dtype"),
    "metadata-is-number": (raw_safetensors({"__metadata__": 3}), "__metadata__"),
    "metadata-holds-number": (raw_safetensors({"__metadata__": {"a": 3}}), "__metadata__"),
}

ALIGN = "general.alignment"
GGUF: dict[str, tuple[bytes, str]] = {
    "no-bytes": (b"", "empty"),
    "bad-magic": (b"FUGG" + raw_gguf()[4:], "not a GGUF"),
    "magic-only": (b"GGUF", "truncated"),
    "version-0": (raw_gguf(version=0), "version 0"),
    "version-1": (raw_gguf(version=1), "version 1"),
    "version-99": (raw_gguf(version=99), "version 99"),
    "big-endian": (b"GGUF" + struct.pack(">Iqq", 3, 0, 0), "big-endian"),
    "tensors-negative": (raw_gguf(counts=(-1, 0)), "number of tensors is -1"),
    "keys-negative": (raw_gguf(counts=(0, -1)), "number of metadata keys is -1"),
    "tensors-huge": (raw_gguf(counts=(1 << 62, 0)), "number of tensors"),
    "keys-huge": (raw_gguf(counts=(0, 1 << 62)), "number of metadata keys"),
    "keys-missing": (raw_gguf(counts=(0, 5)), "truncated"),
    "tensors-missing": (raw_gguf(counts=(5, 0)), "truncated"),
    "key-length-max": (raw_gguf([U64(HUGE)]), "length of a metadata key"),
    "key-length-past-end": (raw_gguf([U64(60_000)]), "truncated"),
    "key-not-utf8": (raw_gguf([gguf_key(b"\xff", 4, U32(1))]), "UTF-8"),
    "key-empty": (raw_gguf([gguf_key("", 4, U32(1))]), "empty"),
    "key-twice": (raw_gguf([gguf_key("a", 4, U32(1))] * 2), "twice"),
    "value-type-13": (raw_gguf([gguf_key("a", 13, U32(1))]), "value type 13"),
    "value-type-max": (raw_gguf([gguf_key("a", 0xFFFFFFFF, U32(1))]), "value type"),
    "bool-2": (raw_gguf([gguf_key("a", 7, b"\x02")]), "expected 0 to 1"),
    "string-length-max": (raw_gguf([gguf_key("a", 8, U64(HUGE))]), "length of 'a'"),
    "string-length-1-gib": (raw_gguf([gguf_key("a", 8, U64(1 << 30))]), "length of 'a'"),
    "string-not-utf8": (raw_gguf([gguf_key("a", 8, gguf_string(b"\xc3("))]), "UTF-8"),
    "array-type-99": (raw_gguf([gguf_key("a", 9, gguf_array(99, 1, b""))]), "array of type 99"),
    "array-of-arrays": (raw_gguf([gguf_key("a", 9, gguf_array(9, 1, gguf_array(4, 1, U32(1))))]), "array of type 9"),
    "array-count-max": (raw_gguf([gguf_key("a", 9, gguf_array(4, HUGE, b""))]), "number of elements"),
    "array-count-wraps": (raw_gguf([gguf_key("a", 9, gguf_array(10, (1 << 61) + 1, bytes(8)))]), "number of elements"),
    "array-past-end": (raw_gguf([gguf_key("a", 9, gguf_array(4, 1000, b""))]), "truncated"),
    "array-bool-2": (raw_gguf([gguf_key("a", 9, gguf_array(7, 3, b"\0\1\2"))]), "booleans"),
    "strings-past-end": (raw_gguf([gguf_key("a", 9, gguf_array(8, 1000, b""))]), "truncated"),
    "strings-length-max": (raw_gguf([gguf_key("a", 9, gguf_array(8, 2, gguf_string("x") + U64(HUGE)))]), "truncated"),
    "strings-last-past-end": (raw_gguf([gguf_key("a", 9, gguf_array(8, 2, gguf_string("x") + U64(99)))]), "truncated"),
    "alignment-is-string": (raw_gguf([gguf_key(ALIGN, 8, gguf_string("32"))]), "value type 8"),
    "alignment-is-u64": (raw_gguf([gguf_key(ALIGN, 10, U64(32))]), "value type 10"),
    "alignment-0": (raw_gguf([gguf_key(ALIGN, 4, U32(0))]), "power of two"),
    "alignment-13": (raw_gguf([gguf_key(ALIGN, 4, U32(13))]), "power of two"),
    "alignment-2-gib": (raw_gguf([gguf_key(ALIGN, 4, U32(1 << 31))]), "power of two"),
    "tensor-name-max": (raw_gguf([], [U64(HUGE)]), "length of a tensor name"),
    "tensor-twice": (raw_gguf([], [gguf_tensor("a", [8]), gguf_tensor("a", [8], 0, 32)], bytes(64)), "twice"),
    "tensor-0-dimensions": (raw_gguf([], [gguf_tensor("a", [])], bytes(32)), "dimensions []"),
    "tensor-5-dimensions": (raw_gguf([], [gguf_tensor("a", [1] * 5)], bytes(32)), "number of dimensions"),
    "tensor-dimensions-max": (raw_gguf([], [gguf_string("a") + U32(0xFFFFFFFF)], bytes(32)), "number of dimensions"),
    "dimension-negative": (raw_gguf([], [gguf_tensor("a", [-8])], bytes(32)), "a dimension"),
    "dimension-zero": (raw_gguf([], [gguf_tensor("a", [0])], bytes(32)), "dimensions [0]"),
    "product-overflows": (raw_gguf([], [gguf_tensor("a", [1 << 40] * 4)], bytes(32)), "truncated"),
    "product-wraps-to-size": (raw_gguf([], [gguf_tensor("a", [1 << 32, 1 << 31, 2])], bytes(32)), "truncated"),
    "type-unknown": (raw_gguf([], [gguf_tensor("a", [256], 10)], bytes(84)), "type 10"),
    "type-max": (raw_gguf([], [gguf_tensor("a", [256], 0xFFFFFFFF)], bytes(84)), "not supported"),
    "part-of-a-block": (raw_gguf([], [gguf_tensor("a", [33], 8)], bytes(68)), "blocks of 32"),
    "offset-unaligned": (raw_gguf([], [gguf_tensor("a", [8], 0, 4)], bytes(64)), "aligned"),
    "offset-past-end": (raw_gguf([], [gguf_tensor("a", [8], 0, 1 << 40)], bytes(64)), "truncated"),
    "offset-max": (raw_gguf([], [gguf_tensor("a", [8], 0, HUGE)], bytes(64)), "the offset"),
    "overlap": (raw_gguf([], [gguf_tensor("a", [16]), gguf_tensor("b", [8], 0, 32)], bytes(64)), "overlaps"),
    "same-bytes": (raw_gguf([], [gguf_tensor("a", [8]), gguf_tensor("b", [8])], bytes(64)), "overlaps"),
    "data-cut": (raw_gguf([], [gguf_tensor("a", [8])], bytes(31)), "truncated"),
    "no-data": (raw_gguf([], [gguf_tensor("a", [8])]), "truncated"),
}


class Canary:
    """A pickle of it creates the file named when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.path, "w")


FOREIGN: dict[str, tuple[bytes, str]] = {
    "lfs.gguf": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 98362432\n", "git-LFS pointer"),
    "lfs.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 98362432\n", "git-LFS pointer"),
    "page.gguf": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
    "page.safetensors": (b"<HTML><body>404</body></HTML>", "web page"),
    "pickle.gguf": (pickle.dumps({"a": 1}), "pickle"),
    "pickle.safetensors": (pickle.dumps({"a": 1}, protocol=2), "pickle"),
    "zip.safetensors": (b"PK\x03\x04" + bytes(40), "zip archive"),
    "array.gguf": (b"\x93NUMPY\x01\x00" + bytes(40), "numpy"),
    "h5.gguf": (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
    "packed.gguf": (b"\x1f\x8b\x08" + bytes(40), "gzip"),
    "old.gguf": (b"tjgg\x03\0\0\0" + bytes(40), "before GGUF"),
    "older.gguf": (b"lmgg" + bytes(40), "before GGUF"),
    "weights.bin": (b"\x07 unknown bytes of a checkpoint", "of a kind that is not read"),
}
