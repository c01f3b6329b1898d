"""A Jinja environment for templates that come from strangers: no way out of the sandbox, bounded time and memory.

Jinja's own sandbox guards attributes. It does not stop `'x' * 10**9`, doubling `a ~ a`, nested loops or lists that
contain the same list twice, forty levels deep. Here every loop step, call, filter, operator and concatenation is
charged to a meter, and only filters and string methods known to be harmless exist. It knows no models and no messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes
from jinja2.runtime import Context, Undefined
from jinja2.visitor import NodeTransformer

from freehold.formats.sandbox_filters import FILTERS, metered_filter
from freehold.formats.sandbox_meter import Counted, check_formatting, check_method, check_operator, current


class _Charge(NodeTransformer):
    """Turns what Jinja compiles to bare Python (loops, `~`, slices, literals) into calls that are charged."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _call("counted", [node.iter])
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("concatenated", node.nodes)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            bounds = (node.arg.start, node.arg.stop, node.arg.step)
            return _call("sliced", [node.node, *(bound or nodes.Const(None) for bound in bounds)])
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _call("charged", [node])

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _call("charged", [node]) if node.ctx == "load" else node


def _call(name: str, arguments: list[Any]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant wrote, for training; here its body is simply shown."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Any) -> list[nodes.Node]:
        """The body, without the marks."""
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment. Rendering must happen inside `metered`."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", Generation],
            finalize=_shown,
            autoescape=False,
            **options,
        )
        self.globals = {name: self.globals[name] for name in ("range", "dict", "namespace", "cycler", "joiner")}
        self.filters = {name: metered_filter(name, filter) for name, filter in FILTERS.items()}
        self.concat = _joined  # type: ignore[method-assign]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Charge().visit(tree)
        return tree

    @staticmethod
    def counted(values: Any) -> Any:
        """What a `for` runs over."""
        return values if isinstance(values, Undefined) else Counted(values)

    @staticmethod
    def concatenated(*values: Any) -> str:
        """`a ~ b`."""
        return current().join([current().text(value) for value in values])

    @staticmethod
    def sliced(value: Any, start: Any, stop: Any, step: Any) -> Any:
        """`value[start:stop:step]`."""
        current().expect(current().measure(value))
        return value[start:stop:step]

    @staticmethod
    def charged(value: Any) -> Any:
        """A list, tuple or dict as written in the template."""
        return current().made(value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Operators whose result may be much larger than what they are given."""
        check_operator(operator, left, right)
        return current().made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Functions, macros and methods."""
        meter = current()
        meter.step()
        for value in (*args, *kwargs.values()):
            meter.measure(value)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, (str, bytes)):
            check_method(owner, __obj.__name__, args)
        return meter.made(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, which the parent guards for attributes, also guarded for widths."""
        guarded = super().wrap_str_format(value)
        if guarded is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            check_formatting(value.__self__, "{", [*args, *kwargs.values()])
            return guarded(*args, **kwargs)

        return checked

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Reaching for internals is an error at once, not an undefined value."""
        raise jinja2.exceptions.SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r} is unsafe")


def _joined(parts: Iterable[str]) -> str:
    return current().join(parts)


def _shown(value: Any) -> Any:
    """What output expressions pass through."""
    return value if isinstance(value, (str, Undefined)) else current().text(value)
