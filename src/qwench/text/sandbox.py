"""A jinja2 environment for templates nobody has read: nothing of the machine is reachable, and work is metered.

jinja2's own sandbox stops a template from reaching Python, not from running for ever or filling memory. Here every loop
turn, call, filter, operator and printed piece is charged to a Meter: steps, characters and seconds are bounded by the
size of what was passed in, and an operation that would build something large is refused before it runs. So that nothing
escapes, the tree of the template is rewritten: loops, ``~``, slices and literals become metered filters, and fixed text
an expression. Knows nothing of chats.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import TemplateRuntimeError, Undefined, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import LoopControlExtension
from jinja2.filters import FILTERS
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

NODE_COST = 16  # characters that one list item, key or number counts for
MAX_INTEGER_BITS = 4096
MAX_INDENT = 64
MAX_NEEDLE = 64
CLOCK_COST = 4096  # characters worked on between two looks at the clock
METER = "the meter"  # a key of the template's context that no template can name

# Filters that give back what exists or work only when iterated; they cost a step, whatever they are applied to.
LIGHT_FILTERS = "abs count d default first items last length safe".split()
LAZY_FILTERS = "map reject rejectattr select selectattr".split()
FILTER_NAMES = (
    "capitalize dictsort e escape float indent int join list lower max min replace reverse sort string title trim "
    "unique upper"
).split()
# Their search is slow for a long second argument: text times argument.
NEEDLE_NAMES = frozenset("lstrip rfind rindex rpartition rsplit rstrip strip trim".split())
METHOD_NAMES = frozenset(
    (
        "capitalize casefold changed copy count cycle endswith find get index isalnum isalpha isdecimal isdigit "
        "islower isnumeric isspace isupper items join keys lower lstrip partition removeprefix removesuffix replace "
        "rfind rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title upper values"
    ).split()
)
FORMAT_FIELD = re.compile(r"%(?:\([^)]*\))?([^a-zA-Z%]*)")


class BudgetExceeded(TemplateRuntimeError):
    """The template asked for more time or memory than the messages can explain."""


class Meter:
    """The budget of one rendering; ``given`` is everything passed to the template."""

    def __init__(self, given: object, *, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deadline = clock() + seconds
        self._max_size = self._steps = self._characters = self._until_clock = 1 << 62
        size = self.size(given)
        self._max_size = 1_000_000 + 4 * size
        self._characters = 64 * self._max_size
        self._steps = 200_000 + 12 * size
        self._until_clock = CLOCK_COST

    def step(self, size: int = 0) -> None:
        """One operation, on ``size`` characters."""
        self._steps -= 1
        if self._steps < 0:
            raise BudgetExceeded("it takes too many steps")
        self._until_clock -= NODE_COST + size
        if self._until_clock < 0:
            self._until_clock = CLOCK_COST
            if self._clock() > self._deadline:
                raise BudgetExceeded("it takes too long")

    def expect(self, size: int) -> None:
        """Refuse a result of ``size`` characters before it is built."""
        self.step(size)
        if size > self._max_size:
            raise BudgetExceeded("it builds too large a text or list")
        self._characters -= size
        if self._characters < 0:
            raise BudgetExceeded("it builds too much text")

    def charge(self, value: Any) -> Any:
        """Charge a result that exists, and give it back."""
        self.expect(len(value) if isinstance(value, str) else self.size(value))
        return value

    def size(self, value: object) -> int:
        """Characters that ``value`` would have if it were written out: a part that is shared counts every time."""
        total = 0
        waiting: list[Iterator[object]] = [iter((value,))]
        while waiting:
            for item in waiting[-1]:
                self.step()
                total += NODE_COST
                if isinstance(item, str):
                    total += len(item)
                elif isinstance(item, range):
                    total += NODE_COST * len(item)
                elif isinstance(item, Namespace):
                    raise BudgetExceeded("it puts a namespace into a value")
                if total > self._max_size:
                    raise BudgetExceeded("it builds too large a text or list")
                parts = _parts(item)
                if parts is not None:  # they come first, then the rest of this level
                    waiting.append(parts)
                    break
            else:
                waiting.pop()
        return total

    def walk(self, values: Any) -> Iterator[Any]:
        """``values`` one by one, each a step."""
        for value in values:
            self.step()
            yield value


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox. Parse with ``metered``; a rendering puts its Meter into the context under METER."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension], finalize=_printed, optimized=False
        )
        self.globals = {name: self.globals[name] for name in ("range", "dict", "namespace")}
        self.filters = {name: _light(FILTERS[name]) for name in LIGHT_FILTERS}
        self.filters |= {name: _lazy(FILTERS[name]) for name in LAZY_FILTERS}
        self.filters |= {name: _metered(name, FILTERS[name]) for name in FILTER_NAMES}
        self.filters |= {"tojson": tojson, "_each": _each, "_joined": _joined, "_slice": _slice, "_literal": _literal}

    def metered(self, source: str) -> nodes.Template:
        """The template's tree with every costly thing behind a metered filter."""
        tree = _Rewrite().visit(self.parse(source))
        assert isinstance(tree, nodes.Template)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = _meter(context)
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, (str, list, tuple)) and isinstance(other, int):
                    meter.expect(meter.size(one) * max(other, 0))
            _check_integers(left, right, left_bits=1)
        elif operator == "**":
            _check_integers(left, 0, left_bits=abs(right) if isinstance(right, int) else 1)
        elif operator == "%" and isinstance(left, str):
            fields = _check_format(left)
            meter.expect(len(left) + 100 * fields + meter.size(right) * (fields if isinstance(right, Mapping) else 1))
        return meter.charge(super().call_binop(context, operator, left, right))

    def call(self, context: Context, target: Any, /, *args: Any, **kwargs: Any) -> Any:
        meter = _meter(context)
        meter.step()
        if isinstance(target, LoopContext):  # a recursive loop: its new values are walked like those of any loop
            return super().call(context, target, *(meter.walk(values) for values in args), **kwargs)
        if isinstance(target, (BuiltinMethodType, MethodType)):
            name, owner = target.__name__, target.__self__
            if name not in METHOD_NAMES:
                raise SecurityError(f"it calls the method {name}, which templates may not use")
            if isinstance(owner, Mapping):
                return super().call(context, target, *args, **kwargs)
            args = _checked(meter, name, (owner, *args), kwargs, glue=0)[1:]
            return meter.charge(super().call(context, target, *args, **kwargs))
        if isinstance(target, (Macro, Undefined)):
            return super().call(context, target, *args, **kwargs)
        if target not in self.globals.values():
            raise SecurityError(f"it calls a {type(target).__name__}, which templates may not use")
        result = super().call(context, target, *args, **kwargs)
        return result if isinstance(result, Namespace) else meter.charge(result)


class _Rewrite(NodeTransformer):
    """Fixed text becomes an expression (so that it is printed through ``finalize``), the rest goes through filters."""

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:  # noqa: N802  (jinja2's naming)
        return nodes.Const(node.data, lineno=node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = _filtered("_each", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered("_joined", nodes.List(node.nodes, lineno=node.lineno))

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        return _filtered("_literal", self.generic_visit(node))

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        return _filtered("_literal", self.generic_visit(node))

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered("_literal", node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        return _filtered("_slice", node.node, [bound or nodes.Const(None, lineno=node.lineno) for bound in bounds])


def _parts(value: object) -> Iterator[object] | None:
    if isinstance(value, Mapping):
        return iter([*value.keys(), *value.values()])
    if isinstance(value, Collection) and not isinstance(value, (str, bytes, range, LoopContext)):
        return iter(value)
    return None


def _filtered(name: str, node: nodes.Node, args: list[nodes.Expr] | None = None) -> nodes.Filter:
    return nodes.Filter(node, name, args or [], [], None, None, lineno=node.lineno)


def _meter(context: Context) -> Meter:
    meter = context.parent[METER]
    assert isinstance(meter, Meter)
    return meter


@pass_context
def _printed(context: Context, value: Any) -> Any:
    return value if isinstance(value, Undefined) else _meter(context).charge(value)


@pass_context
def _each(context: Context, values: Any) -> Iterator[Any]:
    iter(values)  # what cannot be iterated fails here, not at the first turn
    return _meter(context).walk(values)


@pass_context
def _joined(context: Context, pieces: list[Any]) -> str:
    meter = _meter(context)
    meter.expect(meter.size(pieces))
    return "".join(map(str, pieces))


@pass_context
def _literal(context: Context, value: Any) -> Any:
    return _meter(context).charge(value)


@pass_context
def _slice(context: Context, value: Any, *bounds: int | None) -> Any:
    result = value[slice(*bounds)]
    _meter(context).expect(len(result) if isinstance(result, str) else NODE_COST * len(result))
    return result


@pass_context
def tojson(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as chat templates expect it: keys in their order, letters as they are, nothing escaped for HTML."""
    meter = _meter(context)
    meter.expect(meter.size(value))
    if indent is not None and not 0 <= indent <= MAX_INDENT:
        raise TemplateRuntimeError(f"it indents JSON by {indent}")
    if separators is not None and sum(map(len, separators)) > MAX_NEEDLE:
        raise TemplateRuntimeError("it separates JSON with too long a text")
    encoder = json.JSONEncoder(
        ensure_ascii=bool(ensure_ascii), indent=indent, separators=separators, sort_keys=bool(sort_keys)
    )
    pieces = [encoder.encode(value)] if indent is None else encoder.iterencode(value)
    return "".join(map(meter.charge, pieces))


def _light(function: Callable[..., Any]) -> Callable[..., Any]:
    """One of jinja2's filters for the price of a step."""

    @pass_context
    def light(context: Context, *args: Any, **kwargs: Any) -> Any:
        meter = _meter(context)
        meter.step()
        return _apply(function, context, _written_out(meter, args), kwargs)

    return light


def _lazy(function: Callable[..., Any]) -> Callable[..., Any]:
    """One of jinja2's filters that make a generator: each value is a step, whether it comes out or not."""

    @pass_context
    def lazy(context: Context, values: Any, *args: Any, **kwargs: Any) -> Any:
        meter = _meter(context)
        iter(values)
        return meter.walk(_apply(function, context, (meter.walk(values), *args), kwargs))

    return lazy


def _metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """One of jinja2's filters with its cost checked before and charged after."""

    @pass_context
    def metered(context: Context, *args: Any, **kwargs: Any) -> Any:
        meter = _meter(context)
        result = _apply(function, context, _checked(meter, name, args, kwargs, glue=1), kwargs)
        return meter.walk(result) if isinstance(result, Iterator) else meter.charge(result)

    return metered


def _apply(function: Callable[..., Any], context: Context, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a filter of jinja2 with the first argument it was registered for."""
    wanted = getattr(function, "jinja_pass_arg", None)
    if wanted is not None:
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        args = (first[wanted.name], *args)
    return function(*args, **kwargs)


def _written_out(meter: Meter, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments with lists in place of generators."""
    return tuple(list(meter.walk(value)) if isinstance(value, Iterator) else value for value in args)


def _checked(meter: Meter, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, glue: int) -> tuple[Any, ...]:
    """The arguments of a filter or method, the value first and generators written out; refuses what would grow large.

    ``glue`` is the position of the string that ``join`` puts between.
    """
    args = _written_out(meter, args)
    for value in (*args, *kwargs.values()):
        meter.charge(value)
    if name in {"replace", "trim"} and kwargs:
        raise SecurityError(f"it passes {name} arguments by name, which templates may not")
    if name in NEEDLE_NAMES and any(isinstance(value, str) and len(value) > MAX_NEEDLE for value in args[1:]):
        raise BudgetExceeded(f"it gives {name} more than {MAX_NEEDLE} characters")
    if name == "replace" and len(args) > 2:
        text, old, new = map(str, args[:3])
        meter.expect(len(text) + text.count(old) * len(new))
    elif name == "join" and len(args) > 1 - glue:
        between = str(kwargs.get("d", args[glue] if len(args) > glue else ""))
        values = args[1 - glue]
        meter.expect(meter.size(values) + len(between) * (len(values) if isinstance(values, Collection) else 0))
    elif name == "indent":
        width = kwargs.get("width", args[1] if len(args) > 1 else 4)
        width = len(width) if isinstance(width, str) else int(width)
        if width > MAX_INDENT:
            raise TemplateRuntimeError(f"it indents by {width}")
        meter.expect(len(str(args[0])) * (1 + max(width, 0)))
    return args


def _check_integers(left: Any, right: Any, *, left_bits: int) -> None:
    """Refuse a number of more than MAX_INTEGER_BITS: ``left`` counts ``left_bits`` times, ``right`` once."""
    both = isinstance(left, int) and isinstance(right, int)
    if both and left.bit_length() * left_bits + right.bit_length() > MAX_INTEGER_BITS:
        raise BudgetExceeded("it computes too large a number")


def _check_format(text: str) -> int:
    """How many fields ``%`` fills; a width has up to two digits and never comes from the arguments."""
    fields = FORMAT_FIELD.findall(text)
    if any("*" in field or re.search(r"\d{3}", field) for field in fields):
        raise BudgetExceeded("it formats with too wide a field")
    return len(fields)
