"""Instructions of native programs: their numbers and argument structures, as csrc/include/qwench.h states them.

Operations that can also be called alone have their structures in ops/native. It knows neither what fills them nor why.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Mapping
from ctypes import c_int32, c_int64, c_void_p

from qwench.ops.native import (
    AttentionArguments,
    DeltaArguments,
    ExpertsArguments,
    FramesArguments,
    LayerArguments,
    LinearArguments,
    NormArguments,
    UnpackArguments,
)

OUT_OF_RANGE, NO_MEMORY = 1, 2  # QW_OUT_OF_RANGE, QW_NO_MEMORY


class Operation(enum.IntEnum):
    """QW_LINEAR and those after it"""

    LINEAR = 0
    RMS_NORM = 1
    DELTA_NET = 2
    ATTENTION = 3
    EXPERTS = 4
    UNPACK_ROWS = 5
    POINTWISE = 6
    ROTATION = 7
    TAKE_ROWS = 8
    WIDEN = 9
    LAYER = 10
    FRAMES = 11


class Pointwise(enum.IntEnum):
    """QW_ADD and those after it"""

    ADD = 0
    SILU_MULTIPLY = 1
    SIGMOID_MULTIPLY = 2
    GELU = 3


class BlankStructure(ctypes.Structure):
    """qw_blank"""

    _fields_ = (
        ("field", c_void_p),
        ("base", c_int32),
        ("count", c_int32),
        ("factor", c_int64),
        ("offset", c_int64),
    )


class InstructionStructure(ctypes.Structure):
    """qw_instruction"""

    _fields_ = (("operation", c_int32), ("count", c_int32), ("arguments", c_void_p))


class ProgramStructure(ctypes.Structure):
    """qw_program"""

    _fields_ = (
        ("instructions", c_void_p),
        ("num_instructions", c_int64),
        ("blanks", c_void_p),
        ("num_blanks", c_int64),
        ("token_bytes", c_int64),
        ("logit_bytes", c_int64),
    )


class PointwiseArguments(ctypes.Structure):
    """qw_pointwise_arguments"""

    _fields_ = (
        ("rows", c_int64),
        ("width", c_int64),
        ("y_width", c_int64),
        ("kind", c_int32),
        ("type", c_int32),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("y", c_void_p),
        ("y_stride", c_int64),
        ("output", c_void_p),
        ("output_stride", c_int64),
    )


class RotationArguments(ctypes.Structure):
    """qw_rotation_arguments"""

    _fields_ = (
        ("tokens", c_int64),
        ("heads", c_int64),
        ("head_dim", c_int64),
        ("half", c_int64),
        ("type", c_int32),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("cosine", c_void_p),
        ("sine", c_void_p),
        ("output", c_void_p),
        ("output_stride", c_int64),
    )


class TakeArguments(ctypes.Structure):
    """qw_take_arguments"""

    _fields_ = (
        ("count", c_int64),
        ("rows", c_int64),
        ("width", c_int64),
        ("type", c_int32),
        ("ids", c_void_p),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("y", c_void_p),
        ("y_stride", c_int64),
    )


class WidenArguments(ctypes.Structure):
    """qw_widen_arguments"""

    _fields_ = (("rows", c_int64), ("width", c_int64), ("y", c_void_p))


STRUCTURES: Mapping[Operation, type[ctypes.Structure]] = {
    Operation.LINEAR: LinearArguments,
    Operation.RMS_NORM: NormArguments,
    Operation.DELTA_NET: DeltaArguments,
    Operation.ATTENTION: AttentionArguments,
    Operation.EXPERTS: ExpertsArguments,
    Operation.UNPACK_ROWS: UnpackArguments,
    Operation.POINTWISE: PointwiseArguments,
    Operation.ROTATION: RotationArguments,
    Operation.TAKE_ROWS: TakeArguments,
    Operation.WIDEN: WidenArguments,
    Operation.LAYER: LayerArguments,
    Operation.FRAMES: FramesArguments,
}
