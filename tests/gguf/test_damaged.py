"""Files that lie: every field of the header, every byte of it. One clear sentence each, no crash, no hang, no heap."""

from __future__ import annotations

import errno
import os
import random
import struct
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from qwench.errors import CheckpointError, ConfigError, QwenchError
from qwench.fault import planned
from qwench.files import open_files, read_config
from qwench.gguf.file import GgufFile, open_gguf
from qwench.gguf.header import MAX_STRING, TENSOR_TYPES
from qwench.ops.arrays import FLOAT32
from qwench.text.gguf_text import gguf_template, gguf_tokenizer
from qwench.weights.gguf import GgufSource
from tests.gguf import bytes as raw
from tests.gguf.bytes import BOOL, F32, I32, STRING, U16, U32, U64, File, Tensor, array, scalar
from tests.gguf.export import export
from tests.weights.checkpoints import build

HONEST = File(
    keys=(
        ("general.architecture", scalar(STRING, "qwen3")),
        ("tokenizer.ggml.tokens", array(STRING, ["a", "b"])),
        ("general.sampling.temp", scalar(F32, 0.5)),
    ),
    tensors=(Tensor("token_embd.weight", (8, 4)), Tensor("output_norm.weight", (8,))),
)
MANY = 2**63
LIES: dict[str, tuple[File, str]] = {
    "empty": (HONEST.but(cut=0), "is not a GGUF file: it begins with b''"),
    "magic-only": (HONEST.but(cut=4), "is truncated: the version would end at byte 8"),
    "magic-other": (HONEST.but(magic=b"GGML"), "is not a GGUF file: it begins with b'GGML'"),
    "version-1": (HONEST.but(version=1), "has the GGUF version 1; read are 2 and 3"),
    "version-99": (HONEST.but(version=99), "has the GGUF version 99"),
    "version-big-endian": (HONEST.but(version=3 << 24), "is a big-endian GGUF file"),
    "tensors-2p63": (HONEST.but(num_tensors=MANY), f"the number of tensors is {MANY}"),
    "tensors-max": (HONEST.but(num_tensors=2**64 - 1), "the number of tensors is 18446744073709551615"),
    "tensors-million": (HONEST.but(num_tensors=10**6), "the number of tensors is 1000000"),
    "tensors-one-more": (HONEST.but(num_tensors=3), "the name of tensor 2 is ''"),
    "tensors-none": (HONEST.but(num_tensors=0, tensors=()), "holds no tensors"),
    "kv-2p63": (HONEST.but(num_keys=MANY), f"the number of keys is {MANY}"),
    "kv-max": (HONEST.but(num_keys=2**64 - 1), "the number of keys is 18446744073709551615"),
    "kv-million": (HONEST.but(num_keys=10**6), "the number of keys is 1000000"),
    "key-twice": (HONEST.but(keys=(*HONEST.keys, HONEST.keys[0])), "key 'general.architecture' is there twice"),
    "key-empty": (HONEST.with_key("", scalar(U32, 1)), "the name of key 3 is ''"),
    "key-control": (HONEST.with_key("a\n\x1b[31mb", scalar(U32, 1)), "the name of key 3 is 'a\\n\\x1b[31mb'"),
    "key-not-utf8": (HONEST.with_key(b"\xff\xfe", scalar(U32, 1)), "the name of key 3 is not UTF-8"),
    "key-long": (HONEST.with_key("k" * 5000, scalar(U32, 1)), "the name of key 3 would have 5000 bytes"),
    "value-type": (HONEST.with_key("x", struct.pack("<II", 77, 0)), "key 'x' has the unknown type 77"),
    "value-bool": (HONEST.with_key("x", scalar(BOOL, 7)), "key 'x' is 7 where true (1) or false (0) is expected"),
    "string-length": (
        HONEST.with_key("x", struct.pack("<I", STRING) + raw.string("abc", 2**62)),
        f"key 'x' would have {2**62} bytes",
    ),
    "string-length-plausible": (
        HONEST.with_key("x", struct.pack("<I", STRING) + raw.string("abc", 10**6)),
        "is truncated: key 'x' would end at byte",
    ),
    "string-not-utf8": (HONEST.with_key("x", struct.pack("<I", STRING) + raw.string(b"\xff")), "key 'x' is not UTF-8"),
    "array-type": (HONEST.with_key("x", struct.pack("<IIQ", 9, 55, 1)), "key 'x' holds the unknown type 55"),
    "array-nested": (HONEST.with_key("x", struct.pack("<IIQ", 9, 9, 1) + array(U32, [1])), "holds arrays of arrays"),
    "array-count-2p63": (HONEST.with_key("x", array(U32, [1], MANY)), f"key 'x' would have {MANY} items"),
    "array-count-plausible": (HONEST.with_key("x", array(U32, [1], 10**6)), "key 'x' would have 1000000 items"),
    "array-of-strings-count": (HONEST.with_key("x", array(STRING, ["a"], 2**40)), f"key 'x' would have {2**40} items"),
    "array-of-strings-long": (
        HONEST.with_key("x", struct.pack("<IIQ", 9, STRING, 1) + raw.string("a", MAX_STRING + 1)),
        "key 'x'[0] would have 16777217 bytes",
    ),
    "array-of-strings-cut": (
        HONEST.with_key("x", struct.pack("<IIQ", 9, STRING, 1) + raw.string("a", 10**6)),
        "is truncated: key 'x'[0] would end at byte",
    ),
    "alignment-zero": (HONEST.with_key("general.alignment", scalar(U32, 0)), "key 'general.alignment' is 0"),
    "alignment-three": (HONEST.with_key("general.alignment", scalar(U32, 3)), "it must be a power of two"),
    "alignment-huge": (HONEST.with_key("general.alignment", scalar(U32, 2**30)), "is 1073741824; it must be"),
    "alignment-string": (HONEST.with_key("general.alignment", scalar(STRING, "32")), "is '32'; it must be"),
    "alignment-bool": (HONEST.with_key("general.alignment", scalar(BOOL, 1)), "is True; it must be"),
    "alignment-other": (HONEST.with_key("general.alignment", scalar(U32, 4096)), "tensor output_norm.weight"),
    "cut-in-data": (HONEST.but(cut=-1, tensors=(Tensor("a", (8, 8)),)), "is truncated: tensor a ends at byte"),
    "architecture-number": (HONEST.with_key("general.architecture", scalar(U32, 5)), "is 5; it must be a string"),
    "architecture-none": (HONEST.with_key("general.architecture", None), "key 'general.architecture' is missing"),
    "architecture-other": (
        HONEST.with_key("general.architecture", scalar(STRING, "llama")),
        "is 'llama', which is not supported; supported are qwen35, qwen35moe, qwen3, qwen3moe",
    ),
    "architecture-clip": (HONEST.with_key("general.architecture", scalar(STRING, "clip")), "is a vision projector"),
    "adapter": (HONEST.with_key("general.type", scalar(STRING, "adapter")), "key 'general.type' is 'adapter'"),
}
TENSOR_LIES: dict[str, tuple[tuple[Tensor, ...], str]] = {
    "name-twice": ((Tensor("a", (8,)), Tensor("a", (8,))), "tensor a is there twice"),
    "name-empty": ((Tensor("", (8,)),), "the name of tensor 0 is ''"),
    "name-long": ((Tensor("n" * 2000, (8,)),), "the name of tensor 0 would have 2000 bytes"),
    "axes-none": ((Tensor("a", (), num_bytes=4),), "tensor a has 0 axes"),
    "axes-many": ((Tensor("a", (1,) * 9),), "tensor a has 9 axes"),
    "axes-2p31": ((Tensor("a", (8,), axes=2**31),), "tensor a has 2147483648 axes"),
    "dims-zero": ((Tensor("a", (0, 8), num_bytes=0),), "tensor a has the shape [8, 0], which no tensor can have"),
    "dims-huge": ((Tensor("a", (2**62, 2**62), num_bytes=4),), "which no tensor can have"),
    "dims-wrap-to-fit": ((Tensor("a", (2**33, 2**31), num_bytes=4),), "which no tensor can have"),
    "dims-overflow": ((Tensor("a", (2**63, 2, 1, 1), num_bytes=4),), "which no tensor can have"),
    "dims-too-large": ((Tensor("a", (2**40,), num_bytes=4),), "is truncated: tensor a ends at byte"),
    "type-unknown": ((Tensor("a", (8,), kind=999),), "has the type number 999, which is not known; take a file with"),
    "type-dropped": ((Tensor("a", (8,), kind=4),), "has the type number 4, which is not known"),
    "block-broken": ((Tensor("a", (100, 4), kind=12),), "has rows of 100 numbers, but Q4_K stores whole blocks of 256"),
    "offset-unaligned": ((Tensor("a", (8,), offset=1),), "offset 1, which is not a multiple of the alignment 32"),
    "offset-outside": ((Tensor("a", (8,), offset=2**40),), "leaves a gap before it"),
    "offset-2p64": ((Tensor("a", (8,), offset=2**64 - 32),), "leaves a gap before it"),
    "overlap": ((Tensor("a", (64,)), Tensor("b", (8,), offset=32)), "tensor b begins at byte"),
    "same-place": ((Tensor("a", (8,)), Tensor("b", (8,), offset=0)), "it overlaps the one before it"),
    "gap": ((Tensor("a", (8,)), Tensor("b", (8,), offset=64)), "it leaves a gap before it"),
}


def examine(path: Path) -> None:
    """All that is done with a file before and while a model is loaded."""
    files = open_files(path)
    assert isinstance(files, GgufFile)
    config = read_config(files)
    tokenizer = gguf_tokenizer(files)
    gguf_template(files, tokenizer)
    for _ in GgufSource(files, config, FLOAT32).parts():
        pass


def refusal(path: Path) -> str:
    """The sentence that refuses ``path``."""
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        examine(path)
    message = caught.value.message
    assert "\n" not in message
    assert message.isprintable()
    assert path.stem.partition("-0")[0] in message
    return message


def test_the_honest_file_is_read(tmp_path: Path) -> None:
    file = open_gguf(HONEST.write(tmp_path / "honest.gguf"))
    assert {name: tensor.shape for name, tensor in file.tensors.items()} == {
        "token_embd.weight": (4, 8),
        "output_norm.weight": (8,),
    }
    assert file.metadata["general.sampling.temp"] == 0.5


@pytest.mark.parametrize("name", LIES)
def test_a_lie_in_the_header_or_the_metadata(name: str, tmp_path: Path) -> None:
    file, sentence = LIES[name]
    assert sentence in refusal(file.write(tmp_path / "lie.gguf"))


@pytest.mark.parametrize("name", TENSOR_LIES)
def test_a_lie_about_a_tensor(name: str, tmp_path: Path) -> None:
    tensors, sentence = TENSOR_LIES[name]
    assert sentence in refusal(HONEST.but(tensors=tensors).write(tmp_path / "lie.gguf"))


def test_what_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "zero.gguf").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.gguf")
    for name in ("zero.gguf", "pipe.gguf"):
        assert "is not a regular file" in refusal(tmp_path / name)
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    assert "cannot be read" in refusal(tmp_path / "loop.gguf")


# A whole model whose every byte can be changed.


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = build("qwen3_5_moe_text", tied=True)
    return export(model, tmp_path_factory.mktemp("damaged") / "model.gguf")


@pytest.fixture(scope="module")
def header_bytes(honest: Path) -> int:
    return min(tensor.begin for tensor in open_gguf(honest).tensors.values())


def survives(path: Path) -> bool:
    """Whether the file is still read; anything but one sentence fails, and so do seconds or a large heap."""
    start = time.perf_counter()
    tracemalloc.start()
    message = None
    try:
        examine(path)
    except QwenchError as error:
        message = error.message
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 48 * 2**20
    assert time.perf_counter() - start < 8
    if message is None:
        return True
    assert "\n" not in message
    assert message.isprintable()
    assert path.name in message
    return False


def test_the_whole_model_is_read_undamaged(honest: Path) -> None:
    assert survives(honest)


@pytest.mark.parametrize("seed", range(8))
def test_flipped_bits_of_the_header(seed: int, honest: Path, header_bytes: int, tmp_path: Path) -> None:
    """Fifty files a seed, each with one to four bits of its header turned over."""
    chance = random.Random(seed)
    whole = honest.read_bytes()
    refused = 0
    for index in range(50):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            damaged[chance.randrange(header_bytes)] ^= 1 << chance.randrange(8)
        path = tmp_path / f"flipped{index}.gguf"
        path.write_bytes(damaged)
        refused += not survives(path)
        path.unlink()
    assert refused > 10


@pytest.mark.parametrize("seed", range(4))
def test_overwritten_numbers_of_the_header(seed: int, honest: Path, header_bytes: int, tmp_path: Path) -> None:
    """Eight bytes at any place become a number that programs stumble over."""
    chance = random.Random(100 + seed)
    whole = honest.read_bytes()
    numbers = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63, 2**64 - 1, 2**64 - 32)
    for index in range(50):
        damaged = bytearray(whole)
        begin = chance.randrange(header_bytes - 8)
        damaged[begin : begin + 8] = struct.pack("<Q", chance.choice(numbers))
        path = tmp_path / f"number{index}.gguf"
        path.write_bytes(damaged)
        survives(path)
        path.unlink()


def test_cut_anywhere(honest: Path, header_bytes: int, tmp_path: Path) -> None:
    whole = honest.read_bytes()
    chance = random.Random(9)
    ends = [*range(40), *(chance.randrange(header_bytes) for _ in range(60)), header_bytes, len(whole) // 2]
    for end in ends:
        path = tmp_path / "cut.gguf"
        path.write_bytes(whole[:end])
        assert not survives(path), end


def test_a_file_that_shrinks_while_it_is_read(honest: Path, header_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "shrinks.gguf"
    path.write_bytes(honest.read_bytes())
    file = open_gguf(path)
    parts = GgufSource(file, read_config(file), FLOAT32).parts()
    next(parts)
    os.truncate(path, header_bytes)
    with pytest.raises(CheckpointError, match=r"shrinks\.gguf ended inside tensor"):
        list(parts)


@pytest.mark.parametrize("name", ["read.header", "read.weights"])
def test_a_disk_that_fails(name: str, honest: Path) -> None:
    with planned() as plan:
        plan.fail(name, OSError(errno.EIO, "Input/output error"))
        assert refusal(honest).endswith("model.gguf cannot be read: Input/output error.")
        plan.mend(name)
        examine(honest)


KEYS: dict[str, tuple[bytes | None, str]] = {
    "block_count": (scalar(U32, 0), "it must be a whole number from 1 to 4096"),
    "block_count-string": (scalar(STRING, "3"), "is '3'; it must be a whole number"),
    "block_count-array": (array(U32, [3]), "is an array of 1 u32; it must be a whole number"),
    "block_count-huge": (scalar(U64, 2**63), "it must be a whole number from 1 to 4096"),
    "block_count-more": (scalar(U32, 9), "has 3 items for 9 layers"),
    "block_count-fewer": (scalar(U32, 1), "has no place for: blk.1.attn_norm.weight [32], "),
    "embedding_length": (None, "is missing; the model cannot be built without it"),
    "embedding_length-negative": (scalar(I32, -32), "is -32; it must be a whole number"),
    "embedding_length-other": (scalar(U32, 64), "has shape [80, 32]; [80, 64] is expected from the metadata"),
    "attention.head_count": (scalar(U32, 0), "is 0; it must be a whole number from 1"),
    "attention.head_count_kv": (scalar(U32, 3), "is 3; it must divide the 4 heads"),
    "attention.key_length": (scalar(U32, 2**31 - 1), "attention.value_length' differs from key_length"),
    "attention.layer_norm_rms_epsilon": (scalar(F32, float("nan")), "is nan; it must be a number above 0"),
    "attention.sliding_window": (scalar(U32, 128), "is 128, which is not supported"),
    "rope.dimension_sections": (array(I32, [1, 1]), "is [1, 1]; it must be three numbers"),
    "rope.dimension_sections-sum": (array(I32, [1, 1, 9, 0]), "is [1, 1, 9, 0]; it must be three numbers"),
    "rope.dimension_count": (scalar(U32, 5), "is 5, which does not fit heads of 16"),
    "rope.freq_base": (scalar(F32, 1.0), "it must be a number above 1"),
    "rope.scaling.type": (scalar(STRING, "longrope"), "is 'longrope'; supported are 'none' and 'yarn'"),
    "ssm.group_count": (scalar(U32, 3), "is 4, not a multiple of ssm.group_count (3)"),
    "ssm.inner_size": (scalar(U32, 47), "is 47, not a multiple of ssm.time_step_rank (4)"),
    "ssm.conv_kernel": (scalar(U32, 1), "is 1; it must be a whole number from 2"),
    "attention.recurrent_layers": (array(BOOL, [1]), "has 1 items for 3 layers"),
    "expert_count": (scalar(U32, 2**31 - 1), "is expected from the metadata"),
    "expert_used_count": (scalar(U32, 6), "is 6, more than expert_count (5)"),
    "expert_gating_func": (scalar(U32, 2), "is 2, which is not supported"),
    "nextn_predict_layers": (scalar(U32, 3), "it must be a whole number from 0 to 2"),
    "tokens": (array(STRING, []), "has 0 items; 1 to 1048576 are possible"),
    "tokens-fewer": (array(STRING, ["a"]), "has shape [80, 32]; [1, 32] is expected"),
    "eos_token_id": (scalar(U32, 80), "is 80; it must be a whole number from 0 to 79"),
}


@pytest.mark.parametrize("name", KEYS)
def test_a_key_that_does_not_fit_the_model(name: str, honest: Path, tmp_path: Path) -> None:
    """The model's own file with one key replaced, added or left out."""
    value, sentence = KEYS[name]
    short = name.partition("-")[0]
    key = f"tokenizer.ggml.{short}" if short in ("tokens", "eos_token_id") else f"qwen35moe.{short}"
    path = tmp_path / "model.gguf"
    path.write_bytes(with_key(honest.read_bytes(), key, value))
    file = open_gguf(path)
    with pytest.raises((ConfigError, CheckpointError)) as caught:
        GgufSource(file, read_config(file), FLOAT32)
    assert sentence in caught.value.message
    assert "model.gguf" in caught.value.message
    assert "\n" not in caught.value.message


def with_key(whole: bytes, key: str, value: bytes | None) -> bytes:
    """A file with one key changed: header and data are taken apart and put together again."""
    version, num_tensors, num_keys = struct.unpack_from("<IQQ", whole, 4)
    position, pairs = 24, []
    for _ in range(num_keys):
        begin = position
        (length,) = struct.unpack_from("<Q", whole, position)
        name = whole[position + 8 : position + 8 + length].decode()
        position = _behind(whole, position + 8 + length)
        pairs.append((name, whole[begin:position]))
    infos = position
    for _ in range(num_tensors):
        (length,) = struct.unpack_from("<Q", whole, position)
        position += 8 + length
        (axes,) = struct.unpack_from("<I", whole, position)
        position += 4 + 8 * axes + 12
    kept = [entry for name, entry in pairs if name != key]
    if value is not None:
        kept.append(raw.string(key) + value)
    head = b"GGUF" + struct.pack("<IQQ", version, num_tensors, len(kept)) + b"".join(kept) + whole[infos:position]
    data = whole[-(-position // 32) * 32 :]
    return head + bytes(-len(head) % 32) + data


def _behind(whole: bytes, position: int) -> int:
    """Where the value that begins with its type at ``position`` ends."""
    (kind,) = struct.unpack_from("<I", whole, position)
    position += 4
    if kind == STRING:
        return position + 8 + int(struct.unpack_from("<Q", whole, position)[0])
    if kind != raw.ARRAY:
        return position + struct.calcsize(raw.LETTERS[kind])
    item, count = struct.unpack_from("<IQ", whole, position)
    position += 12
    if item != STRING:
        return position + int(count) * struct.calcsize(raw.LETTERS[item])
    for _ in range(count):
        position += 8 + int(struct.unpack_from("<Q", whole, position)[0])
    return position


# Tensors that do not fit the architecture.


def unfit(file: GgufFile) -> str:
    """The sentence that refuses a file whose tensors are not those of its model."""
    with pytest.raises(CheckpointError) as caught:
        GgufSource(file, read_config(file), FLOAT32)
    assert "\n" not in caught.value.message
    assert str(file.path) in caught.value.message
    return caught.value.message


def test_a_tensor_too_many(honest: Path) -> None:
    file = open_gguf(honest)
    more = file.tensors | {"blk.0.attn_q.bias": file.tensors["blk.0.attn_norm.weight"]}
    renamed = {name: replace(tensor, name=name) for name, tensor in more.items()}
    assert "has no place for: blk.0.attn_q.bias [32]; take" in unfit(replace(file, tensors=renamed))


@pytest.mark.parametrize(
    "name", ["output_norm.weight", "blk.1.attn_k.weight", "blk.2.ffn_up_exps.weight", "blk.0.ssm_a"]
)
def test_a_tensor_too_few(name: str, honest: Path) -> None:
    file = open_gguf(honest)
    fewer = {stored: tensor for stored, tensor in file.tensors.items() if stored != name}
    assert f"lacks {name}; take" in unfit(replace(file, tensors=fewer))


def test_two_tensors_for_one_parameter(honest: Path) -> None:
    file = open_gguf(honest)
    norm, gate = file.tensors["blk.0.post_attention_norm.weight"], file.tensors["blk.0.ffn_gate_exps.weight"]
    twice = replace(norm, name="blk.0.ffn_norm.weight")
    assert "which are the same parameter" in unfit(replace(file, tensors=file.tensors | {twice.name: twice}))
    fused = replace(gate, name="blk.0.ffn_gate_up_exps.weight", shape=(5, 24, 32))
    assert "the same parameter twice" in unfit(replace(file, tensors=file.tensors | {fused.name: fused}))


@pytest.mark.parametrize("kind", ["NVFP4", "Q8_K", "I32"])
def test_a_type_that_is_not_computed(kind: str, honest: Path) -> None:
    file = open_gguf(honest)
    number = next(number for number, each in TENSOR_TYPES.items() if each.name == kind)
    changed = replace(file.tensors["blk.1.attn_q.weight"], type=TENSOR_TYPES[number])
    message = unfit(replace(file, tensors=file.tensors | {changed.name: changed}))
    assert f"tensor blk.1.attn_q.weight has the type {kind}, which is not supported; take another" in message


def test_rates_of_decay_must_be_negative(honest: Path, tmp_path: Path) -> None:
    whole = bytearray(honest.read_bytes())
    place = open_gguf(honest).tensors["blk.0.ssm_a"]
    whole[place.begin : place.begin + 4] = struct.pack("<f", 1.0)
    path = tmp_path / "model.gguf"
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"tensor blk\.0\.ssm_a holds decay rates that are not negative"):
        examine(path)


# Split files.


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    export(build("qwen3", tied=True), tmp_path / "model.gguf", split=8)
    found = sorted(tmp_path.glob("*.gguf"))
    assert len(found) == 3
    return found


def test_a_part_is_missing(parts: list[Path]) -> None:
    parts[1].unlink()
    assert "but model-00002-of-00003.gguf is not beside it; download it" in refusal(parts[0])


def test_a_part_is_another_one(parts: list[Path]) -> None:
    parts[1].write_bytes(parts[2].read_bytes())
    assert "key 'split.no' is 2, but by its name the file is number 1" in refusal(parts[0])


def test_a_part_was_renamed(parts: list[Path]) -> None:
    lone = parts[0].with_name("lone.gguf")
    lone.write_bytes(parts[0].read_bytes())
    assert "key 'split.count' is 3, but its name is not that of a part" in refusal(lone)


def test_a_part_number_that_cannot_be(parts: list[Path]) -> None:
    for name, sentence in (
        ("model-00000-of-00003.gguf", "is named as part 0 of 3"),
        ("model-00004-of-00003.gguf", "is named as part 4 of 3"),
        ("model-00001-of-99999.gguf", "but model-00002-of-99999.gguf is not beside it"),
    ):
        path = parts[0].with_name(name)
        path.write_bytes(parts[0].read_bytes())
        assert sentence in refusal(path)


def test_the_parts_hold_too_few_tensors(parts: list[Path]) -> None:
    parts[0].write_bytes(with_key(parts[0].read_bytes(), "split.tensors.count", scalar(I32, 99)))
    assert "key 'split.tensors.count' is 99, but the parts hold" in refusal(parts[0])


def test_a_tensor_in_two_parts(parts: list[Path]) -> None:
    parts[2].write_bytes(with_key(parts[1].read_bytes(), "split.no", scalar(U16, 2)))
    assert "and again in" in refusal(parts[0])
