"""StoredQuantisation: what a checkpoint's ``quantization_config`` says of its matrices, whoever wrote it.

Every producer's fields become one table: a scheme for all linear layers, and rules for those that differ or were kept.
It knows names of modules as patterns only, and not how a scheme's numbers are packed (weights/formats).
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal

from qwench.fields import Fields

# One name for each way of storing a matrix; weights/formats has a reader for each.
Format = Literal[
    "fp8_block", "fp8_scale", "gptq", "gptq_v2", "awq", "packed", "int8",
    "nvfp4", "nvfp4_packed", "mxfp4", "mxfp4_packed", "mxfp4_blocks", "own",
]  # fmt: skip
QUANTIZATIONS = ("q8", "q6", "q5", "q4", "q3", "q2", "mxfp4")  # our own types, and the recipes named after them
OWN_VERSION = 1
PLAIN_BITS = 16  # from here on, bits stand for plain numbers
MAX_PATTERN = 1000  # characters; longer ones are no module's name
# In one pattern: repetitions, places where there is a choice, and choices where there are more places.
MAX_REPEATS, MAX_PLACES, MAX_CHOICES = 6, 3, 16
FIELD = "quantization_config"
SIDE_FILE = "hf_quant_config.json"  # where older versions of ModelOpt say what config.json does not


@dataclass(frozen=True)
class Scheme:
    """How one matrix [out, in] is stored.

    ``group`` inputs share a scale (and a zero point, unless ``symmetric``); None: a whole row does. For FP8 ``block``
    is the (rows, columns) that share a scale, with None for all of them. ``type`` is the name of one of our own.
    """

    format: Format
    bits: int = 4
    group: int | None = None
    symmetric: bool = True
    block: tuple[int | None, int | None] = (None, None)
    type: str = ""


@dataclass(frozen=True)
class Rule:
    """Modules whose names ``pattern`` matches from the beginning have ``scheme``; None: they were kept as they are."""

    pattern: re.Pattern[str]
    scheme: Scheme | None
    field: str  # where config.json says so


@dataclass(frozen=True)
class StoredQuantisation:
    """``method`` as the producer calls it. The first rule that matches a module counts, else ``default`` does."""

    method: str
    default: Scheme | None
    rules: tuple[Rule, ...] = ()

    def rule_of(self, module: str) -> Rule | None:
        """The rule for a module by its stored name; None where ``default`` holds."""
        return next((rule for rule in self.rules if rule.pattern.match(module)), None)

    def scheme_of(self, module: str) -> Scheme | None:
        """How the module's matrix is stored; None where it was kept."""
        rule = self.rule_of(module)
        return self.default if rule is None else rule.scheme

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """Every scheme that occurs."""
        every = (self.default, *(rule.scheme for rule in self.rules))
        return tuple(dict.fromkeys(scheme for scheme in every if scheme is not None))


def read_quantisation(top: Fields, text: Fields) -> StoredQuantisation | None:
    """What config.json says; None for plain weights. Raises ConfigError naming the field that cannot be honoured."""
    if top.get("quantization") is not None:
        raise top.error(
            "quantization",
            "marks an MLX-quantised checkpoint, whose weights were changed; take the original repository or another "
            "format",
        )
    fields = top.section(FIELD) or text.section(FIELD)
    if fields is None:
        return None
    method = fields.text("quant_method", "modelopt" if fields.get("quant_algo") else None)
    reader = _METHODS.get(method)
    if reader is None:
        nearest = get_close_matches(method, _METHODS, n=1)
        hint = f"; the nearest is {nearest[0]}" if nearest else ""
        raise fields.error("quant_method", f"is {method!r}, which is not known; known are {', '.join(_METHODS)}{hint}")
    return reader(fields)


def read_side_file(top: Fields) -> StoredQuantisation:
    """What ``SIDE_FILE`` says. Raises ConfigError naming the field that cannot be honoured."""
    fields = top.section("quantization")
    if fields is None:
        raise top.error("quantization", "is missing; it says how the weights are stored")
    return _modelopt(fields)


def _fp8(fields: Fields) -> StoredQuantisation:
    if (fmt := fields.text("fmt", "e4m3")) != "e4m3":
        raise fields.error("fmt", f"is {fmt!r}; only 'e4m3' is supported")
    block = _block(fields, "weight_block_size")
    kept = "ignored_layers" if fields.get("modules_to_not_convert") is None else "modules_to_not_convert"
    return StoredQuantisation("fp8", Scheme("fp8_block", bits=8, block=block), _kept_modules(fields, kept))


def _block(fields: Fields, name: str) -> tuple[int, int]:
    block = fields.whole_list(name)
    if block is None or len(block) != 2 or min(block) < 1:
        raise fields.error(name, f"is {block!r}; it must be two whole numbers such as [128, 128]")
    return block[0], block[1]


def _gptq(fields: Fields) -> StoredQuantisation:
    if (packed := fields.text("pack_dtype", "int32")) != "int32":
        raise fields.error("pack_dtype", f"is {packed!r}; only 'int32' is supported")
    if fields.flag("is_marlin_format", False):
        raise fields.error(
            "is_marlin_format", "is true; that order of the weights is for one kernel only, save as 'gptq'"
        )
    name = "format" if fields.get("checkpoint_format") is None else "checkpoint_format"
    layout = fields.text(name, "gptq")
    if layout not in ("gptq", "gptq_v2"):
        raise fields.error(name, f"is {layout!r}; supported are 'gptq' and 'gptq_v2'")
    fmt: Format = "gptq" if layout == "gptq" else "gptq_v2"
    default = Scheme(fmt, _bits(fields, "bits"), _group(fields, "group_size"), fields.flag("sym", True))
    head = (
        () if fields.flag("lm_head", False) else (Rule(re.compile(r"(.*\.)?lm_head$"), None, fields.place("lm_head")),)
    )
    blocks = _only_in_blocks(fields)
    return StoredQuantisation("gptq", default, (*_dynamic(fields, default), *head, *blocks))


def _dynamic(fields: Fields, default: Scheme) -> tuple[Rule, ...]:
    """GPTQ's ``dynamic``: "-:regex" keeps modules, "+:regex" or a bare one overrides fields for them."""
    dynamic = fields.section("dynamic")
    if dynamic is None:
        return ()
    rules = []
    for key in dynamic.values:
        if key.startswith("-:"):
            rules.append(Rule(_regex(dynamic, key, key[2:]), None, dynamic.place(key)))
            continue
        own = dynamic.section(key) or Fields({}, fields.source, dynamic.place(key))
        bits = _bits(own, "bits") if own.get("bits") is not None else default.bits
        group = _group(own, "group_size") if own.get("group_size") is not None else default.group
        scheme = replace(default, bits=bits, group=group, symmetric=own.flag("sym", default.symmetric))
        rules.append(Rule(_regex(dynamic, key, key.removeprefix("+:")), scheme, dynamic.place(key)))
    return tuple(rules)


def _only_in_blocks(fields: Fields) -> tuple[Rule, ...]:
    """``modules_in_block_to_quantize``: lists of endings; every other module was kept."""
    groups = fields.get("modules_in_block_to_quantize")
    if groups is None:
        return ()
    flat = [name for group in groups for name in group] if _lists_of_lists(groups) else groups
    if not _strings(flat):
        raise fields.error("modules_in_block_to_quantize", "must be lists of module names")
    if not flat:
        return ()
    endings = "|".join(re.escape(name) for name in flat)
    pattern = re.compile(rf"(?!.*\.(?:{endings})$)")
    return (Rule(pattern, None, fields.place("modules_in_block_to_quantize")),)


def _auto_round(fields: Fields) -> StoredQuantisation:
    """AutoRound's own description of what it packs as GPTQ or AWQ do; ``extra_config`` has the exceptions."""
    if (sort := fields.text("data_type", "int")) != "int":
        raise fields.error("data_type", f"is {sort!r}; only 'int' is supported")
    name = "packing_format" if fields.get("packing_format") is not None else "backend"
    packing = fields.text(name, "auto_round:auto_gptq")
    if "gptq" not in packing and "awq" not in packing:
        raise fields.error(name, f"is {packing!r}; supported are 'auto_round:auto_gptq' and 'auto_round:auto_awq'")
    awq = "awq" in packing
    symmetric = fields.flag("sym", True) and not awq
    default = Scheme("awq" if awq else "gptq", _bits(fields, "bits"), _group(fields, "group_size"), symmetric)
    rules = []
    extra = fields.section("extra_config") or Fields({}, fields.source)
    for key in extra.values:
        own = extra.section(key)
        bits = own.whole("bits", default.bits) if own is not None else default.bits
        pattern = re.compile(re.escape(key[:MAX_PATTERN]) + "$")
        if own is None or bits >= PLAIN_BITS:
            rules.append(Rule(pattern, None, extra.place(key)))
            continue
        group = _group(own, "group_size") if own.get("group_size") is not None else default.group
        scheme = Scheme(default.format, _bits(own, "bits"), group, own.flag("sym", symmetric) and not awq)
        rules.append(Rule(pattern, scheme, extra.place(key)))
    return StoredQuantisation("auto-round", default, tuple(rules))


def _awq(fields: Fields) -> StoredQuantisation:
    layout = fields.text("format", fields.text("version", "gemm")).lower()
    if layout != "gemm":
        raise fields.error("version", f"is {layout!r}; only 'gemm' is supported")
    name = "w_bit" if fields.get("bits") is None and fields.get("w_bit") is not None else "bits"
    if (bits := fields.whole(name, 4)) != 4:
        raise fields.error(name, f"is {bits}; AWQ is supported with 4")
    size = (
        "q_group_size" if fields.get("group_size") is None and fields.get("q_group_size") is not None else "group_size"
    )
    if not fields.flag("zero_point", True):
        raise fields.error("zero_point", "is false; AWQ weights are supported with zero points only")
    scheme = Scheme("awq", 4, _group(fields, size), symmetric=False)
    return StoredQuantisation("awq", scheme, _kept_modules(fields, "modules_to_not_convert"))


def _compressed(fields: Fields) -> StoredQuantisation:
    """compressed-tensors: groups of targets with a scheme each, and a list of modules that were kept."""
    sparsity = fields.section("sparsity_config")
    if sparsity is not None and sparsity.text("format", "dense") != "dense":
        raise sparsity.error("format", f"is {sparsity.text('format')!r}; only 'dense' is supported")
    if fields.get("transform_config"):
        raise fields.error("transform_config", "is not empty; transformed inputs are not supported")
    groups = fields.section("config_groups")
    if groups is None or not groups.values:
        raise fields.error("config_groups", "is missing or empty; it says how the weights are stored")
    rules = list(_ignored(fields, "ignore", _exact_or_regex))
    default: Scheme | None = None
    for key in groups.values:
        group = groups.section(key)
        scheme = _group_scheme(group, fields) if group is not None else None
        if group is None or scheme is None:
            continue
        for target in _texts(group, "targets"):
            if target != "Linear":
                rules.append(Rule(_exact_or_regex(group, "targets", target), scheme, group.place("targets")))
            elif default not in (None, scheme):
                raise group.error("targets", "holds 'Linear', as another group does; one group can be the rule")
            else:
                default = scheme
    return StoredQuantisation("compressed-tensors", default, tuple(rules))


def _group_scheme(group: Fields, fields: Fields) -> Scheme | None:
    """The scheme of one of ``config_groups``; None where it quantises no weights."""
    weights = group.section("weights")
    if weights is None:
        return None
    layout = group.text("format", fields.text("format", "dense"))
    kind, bits = weights.text("type", "int"), weights.whole("num_bits", 8)
    strategy = weights.text("strategy", "group" if weights.get("group_size") else "tensor")
    symmetric = weights.flag("symmetric", True)
    size = _group(weights, "group_size", 16) if strategy in ("group", "tensor_group") else None
    whole_blocks = strategy == "channel" or (strategy == "group" and (size or 0) % 32 == 0)
    if layout == "pack-quantized" and kind == "int" and whole_blocks:
        return Scheme("packed", _bits(weights, "num_bits"), size, symmetric)
    if layout in ("int-quantized", "naive-quantized") and (kind, bits, strategy) == ("int", 8, "channel"):
        return Scheme("int8", 8, None, symmetric)
    if layout in ("float-quantized", "naive-quantized") and (kind, bits, symmetric) == ("float", 8, True):
        block: dict[str, tuple[int | None, int | None]] = {"tensor": (None, None), "channel": (1, None)}
        if strategy == "block":
            return Scheme("fp8_scale", 8, block=_block(weights, "block_structure"))
        if strategy in block:
            return Scheme("fp8_scale", 8, block=block[strategy])
    if layout == "nvfp4-pack-quantized" and (kind, bits, symmetric, size) == ("float", 4, True, 16):
        return Scheme("nvfp4_packed", 4, 16)
    if layout == "mxfp4-pack-quantized" and (kind, bits, symmetric, size) == ("float", 4, True, 32):
        return Scheme("mxfp4_packed", 4, 32)
    told = f"{kind}{bits} by {strategy}" + (f" of {size}" if size else "") + ("" if symmetric else " with zero points")
    raise weights.error("strategy", f"makes {told} in the format {layout!r}, which is not supported; {_COMPRESSED}")


_COMPRESSED = (
    "supported are pack-quantized (int4 and int8 by group or channel), int-quantized (int8 by channel), "
    "float-quantized (float8), nvfp4-pack-quantized and mxfp4-pack-quantized"
)


def _modelopt(fields: Fields) -> StoredQuantisation:
    algorithm = fields.text("quant_algo")
    schemes = {"NVFP4": Scheme("nvfp4", 4, 16), "FP8": Scheme("fp8_scale", 8)}
    if algorithm.upper() not in schemes:
        raise fields.error("quant_algo", f"is {algorithm!r}; supported are {', '.join(schemes)}")
    if algorithm.upper() == "NVFP4" and (size := fields.whole("group_size", 16)) != 16:
        raise fields.error("group_size", f"is {size}; NVFP4 has a scale for 16 numbers")
    name = "exclude_modules" if fields.get("ignore") is None else "ignore"
    return StoredQuantisation("modelopt", schemes[algorithm.upper()], tuple(_ignored(fields, name, _wildcard)))


def _mxfp4(fields: Fields) -> StoredQuantisation:
    return StoredQuantisation("mxfp4", Scheme("mxfp4_blocks", 4, 32), _kept_modules(fields, "modules_to_not_convert"))


def _quark(fields: Fields) -> StoredQuantisation:
    """Quark: only its MXFP4 weights, the same for all layers that are not excluded."""
    whole = fields.section("global_quant_config")
    weight = whole.section("weight") if whole is not None else None
    if whole is None or weight is None:
        raise fields.error("global_quant_config", "has no weight; it says how the weights are stored")
    told = weight.text("dtype", ""), weight.text("qscheme", "per_group"), weight.whole("group_size", 32)
    if told != ("fp4", "per_group", 32) or weight.text("scale_format", "e8m0") != "e8m0":
        raise weight.error(
            "dtype", f"is {told[0]!r}, {told[1]} of {told[2]}; only 'fp4' per_group of 32 with e8m0 scales is"
        )
    for name in ("layer_quant_config", "layer_type_quant_config"):
        if fields.get(name):
            raise fields.error(name, "is not empty; layers with a quantisation of their own are not supported")
    return StoredQuantisation("quark", Scheme("mxfp4", 4, 32), tuple(_ignored(fields, "exclude", _exact_or_regex)))


def _own(fields: Fields) -> StoredQuantisation:
    """Ours: for each type the endings of the tensors that have it; ``*`` in one stands for an expert's number."""
    if (version := fields.whole("version")) != OWN_VERSION:
        raise fields.error("version", f"is {version}; this version of qwench reads {OWN_VERSION}")
    types = fields.section("types")
    if types is None:
        raise fields.error("types", "is missing; it says which tensors have which type")
    rules = []
    for name in types.values:
        if name not in QUANTIZATIONS:
            raise types.error(name[:80], f"is no type; known are {', '.join(QUANTIZATIONS)}")
        for ending in _texts(types, name):
            pattern = re.escape(ending[:MAX_PATTERN]).replace(r"\*", r"\d+")
            rules.append(Rule(re.compile(rf"(.*\.)?{pattern}$"), Scheme("own", type=name), types.place(name)))
    return StoredQuantisation("qwench", None, tuple(rules))


_METHODS: Mapping[str, Callable[[Fields], StoredQuantisation]] = {
    "fp8": _fp8,
    "gptq": _gptq,
    "awq": _awq,
    "auto-round": _auto_round,
    "intel/auto-round": _auto_round,
    "compressed-tensors": _compressed,
    "modelopt": _modelopt,
    "mxfp4": _mxfp4,
    "quark": _quark,
    "qwench": _own,
}


def _bits(fields: Fields, name: str) -> int:
    bits = fields.whole(name)
    if bits not in (4, 8):
        raise fields.error(name, f"is {bits}; packed whole numbers are supported with 4 and 8 bits")
    return bits


def _group(fields: Fields, name: str, multiple: int = 32) -> int | None:
    """Inputs that share a scale; -1 (or 0) stands for a whole row."""
    size = fields.whole(name, minimum=-1)
    if size in (-1, 0):
        return None
    if size % multiple:
        raise fields.error(name, f"is {size}; supported are -1 and multiples of {multiple}")
    return size


def _kept_modules(fields: Fields, name: str) -> tuple[Rule, ...]:
    return tuple(_ignored(fields, name, _part_or_ending))


def _ignored(fields: Fields, name: str, compile_one: Callable[[Fields, str, str], re.Pattern[str]]) -> Sequence[Rule]:
    place = fields.place(name)
    return [Rule(compile_one(fields, name, text), None, place) for text in dict.fromkeys(_texts(fields, name))]


def _texts(fields: Fields, name: str) -> list[str]:
    value = fields.get(name)
    if value is None:
        return []
    if not _strings(value):
        raise fields.error(name, f"is {str(value)[:80]!r}; it must be a list of module names")
    return list(value)


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _lists_of_lists(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, list) for each in value)


def _regex(fields: Fields, name: str, text: str) -> re.Pattern[str]:
    """A pattern that someone else wrote, refused where matching it could take for ever."""
    if len(text) > MAX_PATTERN:
        raise fields.error(name[:80], f"is a pattern of {len(text)} characters; at most {MAX_PATTERN} are read")
    plain = re.sub(r"\\.|\[[^\]]*\]", "x", text)  # escapes and classes are one character
    repeats, places = len(re.findall(r"[*+{]", plain)), len(re.findall(r"\(|(?<!\()\?", plain))
    many = places > MAX_PLACES and places + plain.count("|") > MAX_CHOICES
    if re.search(r"\)[*+{]", plain) or repeats > MAX_REPEATS or many:
        raise fields.error(
            name[:80], f"holds the pattern {text[:80]!r}, which is too intricate to match in bounded time"
        )
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise fields.error(name[:80], f"holds {text[:80]!r}, which is no regular expression ({error})") from None


def _exact_or_regex(fields: Fields, name: str, text: str) -> re.Pattern[str]:
    """compressed-tensors: "re:..." is matched from the beginning of a name, anything else is a name."""
    return _regex(fields, name, text[3:]) if text.startswith("re:") else _literal(fields, name, text)


def _wildcard(fields: Fields, name: str, text: str) -> re.Pattern[str]:
    """ModelOpt: a name with wildcards; what lies inside a named module was kept too."""
    _literal(fields, name, text)
    return re.compile(rf"{fnmatch.translate(text)}|{fnmatch.translate(text + '.*')}")  # does not go back over a star


def _part_or_ending(fields: Fields, name: str, text: str) -> re.Pattern[str]:
    """transformers: whole parts from the beginning of a name (maybe with wildcards), or its ending."""
    pieces = text.replace(".*", "*").split("*")
    if len(pieces) > MAX_REPEATS:
        raise fields.error(name, f"holds {text[:80]!r}; at most {MAX_REPEATS - 1} wildcards are read")
    ending = _literal(fields, name, text).pattern
    return re.compile(rf"{'.*'.join(map(re.escape, pieces))}(?=\.|$)|.*{ending}")


def _literal(fields: Fields, name: str, text: str) -> re.Pattern[str]:
    """Exactly this name."""
    if len(text) > MAX_PATTERN:
        raise fields.error(name, f"holds a name of {len(text)} characters; at most {MAX_PATTERN} are read")
    return re.compile(re.escape(text) + "$")
