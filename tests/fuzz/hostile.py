"""Files made to do harm: to run a command, to hang, or to take all memory.

As a program, ``python -m tests.fuzz.hostile CANARY``, it reads every one of them with at most :data:`MEMORY_BYTES` more
than Python and the libraries have at the start, and prints JSON: name to message, or to the traceback of a finding.
"""

import builtins
import collections
import faulthandler
import gzip
import io
import json
import os
import pickle
import resource
import struct
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch

from tests.fuzz import seeds
from tests.fuzz.parsers import parsers

MEMORY_BYTES = 2 * 2**30
SECONDS = 200  # far more than anything takes, so that only what hangs is ended
JSON_PARSERS = (
    *("manifest", "receipt", "summary", "prepared", "state", "tokenizer", "published_tokenizer"),
    *("settings", "config", "hugging_face_config", "esmc_config", "t5_config", "added_tokens", "weights_index"),
)
YAML_PARSERS = ("settings", "config")


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def contents(canary: Path) -> dict[str, list[tuple[str, bytes]]]:
    """Harmful contents by the name of the parser to try them on; some would create ``canary`` if executed."""
    found: dict[str, list[tuple[str, bytes]]] = {name: [] for name in seeds.seeds()}
    for name in YAML_PARSERS:
        found[name] += _yaml(canary, seeds.seeds()[name][0].decode())
    for name in JSON_PARSERS:
        found[name] += _json(next(valid for valid in seeds.seeds()[name] if valid.startswith(b"{")).decode())
    receipt = json.loads(seeds.seeds()["summary"][0])
    found["summary"] += [
        (f"no {name}", json.dumps(receipt | {name: {}}).encode()) for name in ("counts", "pool", "seconds")
    ]
    found["summary"].append(("no time", json.dumps(receipt | {"seconds": {"device_s": 5e-324}}).encode()))
    found["receipt"].append(("many small values", b"[" + b"[]," * 1_200_000 + b"[]]"))
    for name in ("pth", "fair_esm", "pytorch_bin"):
        found[name] += _pickles(canary)
    for name in ("classifier", "safetensors", "prepared_weights"):
        found[name] += _safetensors(seeds.seeds()[name][0])
    found["fasta"] += _bombs()
    found["samples"] += [("a long line", b"sample\tfasta\n" + b"x" * 20_000_000), ("NUL", b"sample\tfasta\na\t/a\0b\n")]
    found["samples"] += [
        ("quotes", b'sample\tfasta\n"' + b'""' * 5_000_000),
        ("tabs", b"sample\tfasta" + b"\t" * 10_000_000),
    ]
    found["fastq"] += [("an at without end", b"@" * 3_000_000), ("lines", b"@a\n" + b"\n" * 5_000_000)]
    found["command"] += [
        ("many words", b"frames\n" + b"--proteins\n" * 5000),
        ("digits", b"frames\na.fna\n--nucleotides\nn\n--proteins\np\n--chunk-length\n" + b"9" * 5000),
        ("no spool", b"status\nspool\n--json"),
        ("no letters", b"export\ne.h5\n--output\n\xff\xfe.h5\n--model\nesm2"),
    ]
    found["embeddings"] += _hdf5()
    return found


def _yaml(canary: Path, valid: str) -> list[tuple[str, bytes]]:
    command = f"touch {canary}"
    lines = valid.splitlines()
    key = next(line.partition(":")[0] for line in lines if not line.startswith(" ") and not line.endswith(":"))

    def instead(value: str) -> bytes:
        return "\n".join(f"{key}: {value}" if line.startswith(f"{key}:") else line for line in lines).encode()

    laughs = "\n".join(
        [f"a: &a [{', '.join(['x'] * 9)}]"]
        + [
            f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]"
            for before, name in zip("abcdefghi", "bcdefghij", strict=True)
        ]
    )
    return [
        ("os.system", instead(f'!!python/object/apply:os.system ["{command}"]')),
        ("eval", f"!!python/object/apply:eval [\"__import__('os').system('{command}')\"]".encode()),
        ("object/new", instead(f"!!python/object/new:os.system [{command}]")),
        ("subprocess", instead(f"!!python/object/apply:subprocess.check_call [[touch, {canary}]]")),
        ("yte", f"__use_yte__: true\n?__import__('os').system('{command}'): 1\n".encode()),
        ("billion laughs", laughs.encode()),
        ("laughs in a value", f"{laughs}\n{key}: [*j, *j]".encode()),
        ("cycle", instead("&a [*a, *a]")),
        ("cycle of keys", instead("&a {b: *a}")),
        ("brackets", instead("[" * 30_000)),
        ("integer of 10,000 digits", instead("1" * 10_000)),
        ("hexadecimal of 50,000 digits", instead("0x" + "f" * 50_000)),
        ("key of 50,000 digits", f"0x{'f' * 50_000}: 1".encode()),
        ("infinity", instead(".inf")),
        ("not a number", instead(".nan")),
        ("no bool", instead("!!bool maybe")),
        ("no date", instead("2001-99-99")),
        ("half a character", instead('"/\\ud800"')),
        ("NUL", instead('"/\\0"')),
        ("huge", instead("x" * 30_000_000)) if key != "samples" else ("large", instead("x" * 60_000)),
    ]


def _json(valid: str) -> list[tuple[str, bytes]]:
    content = json.loads(valid)
    first = next(iter(content))

    def everywhere(value: str) -> bytes:
        return ("{" + ", ".join(f"{json.dumps(key)}: {value}" for key in content) + "}").encode()

    values = {
        "a million brackets": "[" * 1_000_000,
        "balanced brackets": "[" * 900 + "]" * 900,
        "a million braces": '{"a":' * 1_000_000,
        "NaN": "NaN",
        "Infinity": "-Infinity",
        "overflowing": "1e999",
        "integer of 10,000 digits": "1" * 10_000,
        "integer of 4000 digits": "1" * 4000,
        "integer of 64 bits": str(2**63),
        "half a character": '"\\ud800"',
        "NUL": '"\\u0000"',
        "null": "null",
        "objects": '{"__reduce__": ["os.system", "id"]}',
    }
    return [
        *((name, everywhere(value)) for name, value in values.items()),
        *(
            (f"{value!r} in {key}", json.dumps(content | {key: value}).encode())
            for key in content
            for value in ([1], {"a": 1}, "", "x", None, True, -1, 0, 2**40, 1e300)
        ),
        *(
            (f"{name} in {first}", json.dumps(content | {first: "@"}).replace('"@"', value).encode())
            for name, value in values.items()
        ),
    ]


def _pickles(canary: Path) -> list[tuple[str, bytes]]:
    command, program = f"touch '{canary}'", f"open({str(canary)!r}, 'w')"
    calls = {
        "os.system": Call(os.system, command),
        "eval": Call(eval, program),
        "exec": Call(exec, program),
        "open": Call(builtins.open, str(canary), "w"),
        "getattr": Call(getattr, "text", "upper"),
        "nested": {"model": [Call(os.system, command)]},
        "torch.load": Call(torch.load, str(canary)),
        "a tensor of 4 TiB": Call(torch.Tensor, 2**40),
        "8 GiB": Call(bytearray, 2**33),
        "a count of 8 GiB": Call(collections.Counter, {"a": Call(bytearray, 2**33)}),
    }
    found = []
    for name, call in calls.items():
        for is_new in (True, False):
            file = io.BytesIO()
            torch.save(call, file, _use_new_zipfile_serialization=is_new)
            found.append((f"{name}, {'zip' if is_new else 'legacy'}", file.getvalue()))
        found.append((f"{name}, bare", pickle.dumps(call, protocol=2)))
    found += [(name, _zipped(pickled)) for name, pickled in {**_opcodes(), **_endless()}.items()]
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 1, 0, 7)  # of a zip's large end, on the second of 7 disks
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0, 0, 0, 0, 0)
    found += [(f"many disks, {name}", start + locator + end) for name, start in (("zip", b"PK\3\4"), ("bare", b"."))]
    return found


def _opcodes() -> dict[str, bytes]:
    """Pickles that no pickler writes."""
    reference = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX%b0X\x03\0\0\0cpu%btQ"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference % (b"\x01\0\0\0", b"J\x01\0\0\0") + b"K\0%b\x89}tR"
    return {
        "a place in the memo of 4 billion": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "a place in the memo of 200 million": b"\x80\x02Nr\x00\x00\xff\x0c.",
        "a text of 2**60 letters": b"\x80\x02\x8d" + struct.pack("<Q", 2**60) + b"x.",
        "a text of 2**31 letters": b"\x80\x02X" + struct.pack("<I", 2**31 - 1) + b"x.",
        "a number of 2**31 bytes": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
        "a storage of 2**31 numbers": b"\x80\x02" + reference % (b"\x01\0\0\0", b"J\xff\xff\xff\x7f") + b".",
        "a storage of 2**80 numbers": b"\x80\x02"
        + reference % (b"\x01\0\0\0", b"\x8a\x0b" + b"\xff" * 10 + b"\0")
        + b".",
        "a storage of text": b"\x80\x02" + reference % (b"\x01\0\0\0", b"X\x01\0\0\0a") + b".",
        "a tensor without strides": b"\x80\x02" + rebuild % b"J\xff\xff\x00\x00J\xff\xff\x00\x00\x86K\0K\0\x86" + b".",
        "a tensor of many dimensions": b"\x80\x02"
        + rebuild % (b"(" + b"K\x01" * 5000 + b"t(" + b"K\0" * 5000 + b"t")
        + b".",
        "a tensor of a tuple": b"\x80\x02" + rebuild % b"(K\x01K\x01\x86J\xff\xff\xff\x7ftK\0\x85" + b".",
        "a tensor of 2**62 numbers": b"\x80\x02" + rebuild % b"J\0\0\0@J\0\0\0@\x86K\0K\0\x86" + b".",
        "lists in lists": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
        "many dictionaries": b"\x80\x02" + b"}" * 1_000_000 + b".",
        "too many dictionaries": b"\x80\x02" + b"}" * 2_000_000 + b".",
        "no stack": b"\x80\x02s.",
        "no mark": b"\x80\x02t.",
        "build of a dictionary": b"\x80\x02}}b.",
        "a call of a number": b"\x80\x02K\x01)R.",
        "an extension": b"\x80\x02\x82\x01.",
        "persistent text": b"\x80\x02X\x01\0\0\0aQ.",
        "proto 5 buffers": b"\x80\x05\x97.",
        "name from the stack": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.",
        "instance": b"(S'id'\nios\nsystem\n.",
        "object": b"(cos\nsystem\nS'id'\no.",
    }


def _endless() -> dict[str, bytes]:
    """Pickles of a tuple of tuples of tuples, to hash or to show which takes for ever; torch's own unpickler tries."""
    doubled, deep = b")q\0" + b"h\0\x86q\0" * 60, b")" + b"\x85" * 1_000_000
    return {
        "an endless key": b"\x80\x02}" + doubled + b"K\x01s.",
        "an endless set": b"\x80\x02c__builtin__\nset\n](" + doubled + b"e\x85R.",
        "an endless OrderedDict": b"\x80\x02ccollections\nOrderedDict\n]" + doubled + b"K\x01\x86a\x85R.",
        "an endless name of a function": b"\x80\x02" + doubled + b")R.",
        "an endless key of a storage": b"\x80\x02(X\7\0\0\0storagectorch\nFloatStorage\n" + doubled + b"K\0K\1tQ.",
        "a deep key": b"\x80\x02}" + deep + b"K\x01s.",
    }


def _zipped(pickled: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/byteorder", "little")
        archive.writestr("x/data/0", bytes(4))
        archive.writestr("x/version", "3\n")
    return file.getvalue()


def _safetensors(valid: bytes) -> list[tuple[str, bytes]]:
    (length,) = struct.unpack("<Q", valid[:8])
    header, data = valid[8 : 8 + length], valid[8 + length :]
    content = json.loads(header)
    key = next(iter(content.get("__metadata__", {"format": ""})))
    tensor = next(name for name in content if name != "__metadata__")

    def packed(changed: bytes) -> bytes:
        return struct.pack("<Q", len(changed)) + changed + data

    def with_metadata(value: str) -> bytes:
        return packed(json.dumps(content | {"__metadata__": {key: value}}).encode())

    def with_tensor(**entries: object) -> bytes:
        return packed(json.dumps(content | {tensor: content[tensor] | entries}).encode())

    sizes = {"layers": 10**9, "width": 8, "heads": 2, "mlp_width": 16, "vocabulary": 33, "layer_norm_epsilon": 1e-5}
    return [
        *((f"a header of {size} bytes", struct.pack("<Q", size) + valid[8:]) for size in (0, 2**31, 2**63, 2**64 - 1)),
        ("header of brackets", packed(b"[" * 1_000_000)),
        ("metadata of brackets", with_metadata("[" * 1_000_000)),
        ("metadata of nested brackets", with_metadata("[" * 900 + "]" * 900)),
        ("metadata that is a list", with_metadata("[1]")),
        ("metadata that is a number", with_metadata("1")),
        ("metadata of 10,000 digits", with_metadata("1" * 10_000)),
        ("models that are a list", with_metadata('{"format_version": 3, "classes": [], "models": [], "source": 1}')),
        ("a billion layers", with_metadata(json.dumps({"architecture": sizes}))),
        ("no heads", with_metadata(json.dumps({"architecture": sizes | {"layers": 1, "heads": 0}}))),
        ("a width of infinity", with_metadata('{"architecture": {"width": Infinity, "mlp_width": 1}}')),
        ("an architecture of text", with_metadata('{"architecture": "esm2"}')),
        ("no architecture", with_metadata('{"architecture": {}}')),
        ("an enormous shape", with_tensor(shape=[2**40, 2**20])),
        ("an empty enormous shape", with_tensor(shape=[0, 2**60], data_offsets=[0, 0])),
        ("another type", with_tensor(dtype="F8_E4M3")),
        ("offsets beyond the end", with_tensor(data_offsets=[0, 2**62])),
        ("a tensor of this name twice", packed(header[:-1] + b"," + header[1:])),
    ]


def _bombs() -> list[tuple[str, bytes]]:
    """Compressed files of some megabytes that grow to more than is allowed."""
    found = []
    for name, start, letter in (("zeros", b">", b"\0"), ("letters", b">a\n", b"A"), ("qualities", b"@a\nA\n+\n", b"I")):
        members = [gzip.compress(start), *[gzip.compress(letter * 2**26, 1)] * 17]
        found.append((name, b"".join(members)))
    found.append(("a long id", b">" + b"a" * 30_000_000 + b"\nACGT\n"))
    return found


def _hdf5() -> list[tuple[str, bytes]]:
    """Results files whose datasets are empty and enormous, or lie in another file."""
    valid = seeds.seeds()["embeddings"][0]

    def changed(change: Callable[[h5py.File], object]) -> bytes:
        file = io.BytesIO(valid)
        with h5py.File(file, "r+") as opened:
            change(opened)
        return file.getvalue()

    def replace(opened: h5py.File, name: str, **arguments: object) -> None:
        attributes = dict(opened[name].attrs)
        del opened[name]
        opened.create_dataset(name, **arguments).attrs.update(attributes)

    def link(opened: h5py.File, name: str, target: object) -> None:
        del opened[name]
        opened[name] = target

    enormous = (2**40,)
    outside = [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    return (
        [
            (f"enormous {name}", changed(lambda file, name=name: file[name].resize(2**40, axis=0)))  # type: ignore[misc]
            for name in (
                *("ids", "length", "sha256", "records/status", "records/residues_used"),
                *("esm2/1/mean", "esm2/1/residues", "esm2/1/offsets"),
            )
        ]
        + [
            (
                "enormous and virtual",
                changed(lambda file: replace(file, "length", shape=enormous, dtype="i4", chunks=(1024,))),
            ),
            ("another file", changed(lambda file: replace(file, "length", shape=(2,), dtype="i4", external=outside))),
            (
                "compressed",
                changed(
                    lambda file: replace(
                        file, "length", data=[0, 0], dtype="i4", maxshape=(None,), chunks=(1024,), compression=9
                    )
                ),
            ),
            ("external link", changed(lambda file: link(file, "length", h5py.ExternalLink("/etc/passwd", "a")))),
            ("dangling link", changed(lambda file: link(file, "length", h5py.SoftLink("/nothing")))),
            ("group", changed(lambda file: link(file, "length", file["records"]))),
            ("code of no status", changed(lambda file: file["records/status"].write_direct(np.full(2, 77, np.uint8)))),
            ("frame 9", changed(lambda file: file["frame"].__setitem__(0, 9))),
            ("record 7", changed(lambda file: file["record"].__setitem__(0, 7))),
            ("attributes of other types", changed(lambda file: file.attrs.update({"sample": [1, 2], "software": 3}))),
            ("software of brackets", changed(lambda file: file.attrs.update({"software": "[" * 60_000}))),
            ("no attributes", changed(lambda file: file["esm2/1/mean"].attrs.clear())),
            ("a layer of text", changed(lambda file: file.move("esm2/1", "esm2/last"))),
            ("a layer of many digits", changed(lambda file: file.move("esm2/1", f"esm2/{'1' * 5000}"))),
            ("a model that is a matrix", changed(lambda file: link(file, "esm2", file["esm2/1/mean"]))),
            ("a layer that is a matrix", changed(lambda file: link(file, "esm2/1", file["esm2/1/mean"]))),
            ("residues without offsets", changed(lambda file: file.__delitem__("esm2/1/offsets"))),
            (
                "offsets that go back",
                changed(lambda file: file["esm2/1/offsets"].write_direct(np.array([0, 200, 190]))),
            ),
            ("offsets below zero", changed(lambda file: file["esm2/1/offsets"].write_direct(np.array([-5, 100, 190])))),
            ("offsets beyond the end", changed(lambda file: file["esm2/1/offsets"].__setitem__(2, 2**62))),
            ("heap cut", valid[: len(valid) // 2]),
        ]
    )


def _main() -> None:
    faulthandler.enable()
    canary = Path(sys.argv[1])
    found = {}
    with tempfile.TemporaryDirectory() as name:
        reading = parsers(Path(name))
        dangerous = contents(canary)
        for parser, valid in seeds.seeds().items():
            reading[parser](valid[0])
        address_space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (address_space + MEMORY_BYTES,) * 2)
        for parser, pairs in dangerous.items():
            for what, content in pairs:
                faulthandler.dump_traceback_later(SECONDS, exit=True)
                try:
                    found[f"{parser}: {what}"] = reading[parser](content)
                except BaseException:
                    found[f"{parser}: {what}"] = traceback.format_exc()
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps(found))


if __name__ == "__main__":
    _main()
