"""Makes tools from a seed: signatures, bodies, values, exceptions and calls, odd ones among ordinary ones."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from tests.differential.calls import META
from tests.differential.tools import Tool

TEXTS: Final = (
    "''",
    "'text'",
    "' '",
    "'null'",
    "'1'",
    "'[1]'",
    "'tab\\tline\\nreturn\\r'",
    "'nul \\0 bell \\a delete \\x7f'",
    "'separators \\u2028 \\u2029 \\x85'",
    "'\\ud800 alone'",
    "'\\ud83d\\ude00 a pair of halves'",
    "'\\U0001f600 \\ufeff \\uffff'",
    "'e\\u0301 \\u202eright to left'",
    "'<script>\\'\"&\\\\'",
    "'data: x\\n\\nevent: y'",
    "'%s {0} {x}'",
    "'long ' * 2000",
    "'__type__'",
    "Subtext('sub')",
)
INTS: Final = ("0", "1", "-1", "True", "2**31", "2**53 + 1", "-2**63", "2**64", "10**400", "Subint(3)", "Level.LOW")
FLOATS: Final = (
    "0.0",
    "-0.0",
    "0.1",
    "1.0",
    "1e16",
    "1e308",
    "5e-324",
    "float('nan')",
    "float('inf')",
    "-float('inf')",
)
# Types that a return annotation may name, and values of them.
SCALARS: Final[dict[str, Sequence[str]]] = {
    "str": TEXTS,
    "int": INTS,
    "float": FLOATS,
    "bool": ("True", "False"),
    "None": ("None",),
    "bytes": ("b''", "b'text'", "b'\\xff\\x00'", "'\\u00e9'.encode()", "bytearray(b'ab')", "memoryview(b'ab')"),
    "Decimal": ("Decimal('0.10')", "Decimal('1E+500')", "Decimal('NaN')", "Decimal('-Infinity')", "Decimal('-0')"),
    "datetime": (
        "datetime(2024, 2, 29)",
        "datetime(1, 1, 1, tzinfo=UTC)",
        "datetime(9999, 12, 31, 23, 59, 59, 999999)",
        "datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=30, seconds=7)))",
        "datetime(2024, 10, 27, 2, 30, fold=1)",
    ),
    "date": ("date(2024, 2, 29)", "datetime(2024, 2, 29)"),
    "time": ("time(12, 30)", "time(0, 0, 0, 1, tzinfo=UTC)"),
    "timedelta": ("timedelta(0)", "timedelta(days=-1, seconds=1)", "timedelta.max"),
    "UUID": ("UUID(int=0)", "UUID('12345678123456781234567812345678')"),
    "complex": ("1j",),
    "Fraction": ("Fraction(1, 3)",),
    "IPv4Address": ("IPv4Address('127.0.0.1')",),
    "PurePosixPath": ("PurePosixPath('/a/b')", "PurePosixPath('caf\\udce9')"),
    "range": ("range(3)",),
    "SecretStr": ("SecretStr('hush')",),
    "Color": ("Color.RED", "Color.NONE", "Color.WHEN"),
    "Word": ("Word.HELLO",),
    "Level": ("Level.LOW",),
    "Right": ("Right.READ", "Right.READ | Right.WRITE"),
    "Plain": ("Plain()", "Plain('x')", "NoText()", "NotText()"),
    "object": ("object()", "Plain", "len", "...", "NotImplemented", "ValueError('a value')", "Subdict(a=1)", "re"),
}
MODELS: Final[dict[str, Sequence[str]]] = {
    "Point": ("Point()", "Point(x=-0.0, y={V})", "Point3(x=1, y={V})", "loose(Point, x='no number')", "loose(Point)"),
    "Aliased": ("Aliased()", "Aliased(ref={T}, value={V})", "{{'$ref': '#/x'}}", "{{'ref': 'by name', 'kind': 'x'}}"),
    "Computed": ("Computed()", "Computed(side=10**30)", "loose(Computed, side='x')"),
    "Custom": ("Custom()", "Custom(parts={{3, 1, 2}})"),
    "Whole": ("Whole()",),
    "Unserializable": ("Unserializable()",),
    "Open": ("Open()", "Open(**{{'a': {V}, '__type__': {V}}})"),
    "Box[int]": ("Box[int](item=1)", "Box(item='x')", "Box[Any](item={V})"),
    "Shapes": ("Shapes(points=[Point3()], exact=[Point3(y={V})])",),
    "Numbers": ("Numbers([1.0, float('nan')])", "[1, 2]"),
    "Strict": ("Strict(n=1)", "loose(Strict, n=11)", "{{'n': True}}"),
    "Node": ("Node()", "Node(children=[Node(name={T})])"),
    "Movie": ("{{'title': {T}}}", "{{'title': 'x', 'year': 1.5}}", "{{'title': 'x', 'extra': {V}}}", "{{}}"),
    "Spot": ("Spot(1.0)", "Spot(float('nan'), ['a'], {V})", "Spot('x')", "Spot(1, inner=Spot(2))"),
    "Checked": ("Checked(1)", "Checked('2', '2024-01-01')"),
    "Pair": ("Pair(1)", "Pair({V}, {V})"),
    "Loose": ("Loose(1, {V})",),
    "Annotated_": ("Annotated_()",),
}
OPEN_TYPES: Final = ("Any", "object", "JsonValue", "dict", "list", "BaseModel", "dict[str, Any]", "Mapping[str, Any]")
CONTENT: Final = (
    "TextContent(type='text', text={T})",
    "TextContent(type='text', text='x', annotations=Annotations(audience=['user'], priority=0.5), _meta={{'a': {V}}})",
    "ImageContent(type='image', data='AA==', mime_type='image/png')",
    "AudioContent(type='audio', data='AA==', mime_type='audio/wav', _meta={{'x': 1}})",
    "EmbeddedResource(type='resource', resource=TextResourceContents(uri='a://b', text={T}))",
    "EmbeddedResource(type='resource', resource=BlobResourceContents(uri='a://b', blob='AA==', mime_type='x/y'))",
    "ResourceLink(type='resource_link', name='n', uri='a://b', size=2**53, description={T})",
    "Image(data=b'\\x89PNG', format='png')",
    "Audio(data=b'', format='wav')",
    "Image(path='/nowhere/at/all.png')",
    "loose(TextContent, type='text', text=5)",
    "loose(TextContent, type='odd')",
)
CONTENT_TYPES: Final = ("TextContent", "Image", "list[TextContent]", "list[str | Image]", "Any", "EmbeddedResource")
RESULTS: Final = (
    "CallToolResult(content=[])",
    "CallToolResult(content=[{C}], structured_content={{'a': {V}}})",
    "CallToolResult(content=[{C}], is_error=True)",
    "CallToolResult(content=[], is_error=True, structured_content={{'why': {T}}})",
    "CallToolResult(content=[{C}], _meta={{'a/b': {V}, 'io.modelcontextprotocol/related-task': {{'taskId': 'x'}}}})",
    "CallToolResult(content=[], structured_content={{'x': 1.5, 'y': None}}, _meta={{}})",
    "CallToolResult(content=[], structured_content={V})",
    "loose(CallToolResult, content=[{C}], structured_content={{1: {V}, None: 2}})",
    "loose(CallToolResult, content=None)",
    "loose(CallToolResult)",
    "CallToolResult(content=[], **{{'extra': {V}, 'resultType': 'complete'}})",
    "CallToolResult(content=[], **{{'resultType': 'task', 'taskId': 'x'}})",
)
RESULT_TYPES: Final = (
    "CallToolResult",
    "Annotated[CallToolResult, Point]",
    "Annotated[CallToolResult, dict[str, Any]]",
    "",
)
EXCEPTIONS: Final = (
    "ToolError({T})",
    "ToolError()",
    "ToolError(1, {V})",
    "TextlessToolError('x')",
    "HiddenToolError({T}, ValueError('inner'))",
    "ResourceError({T})",
    "ValueError({T})",
    "KeyError({T})",
    "Exception({V})",
    "OSError(2, 'No such file', 'f')",
    "UnicodeDecodeError('utf-8', b'\\xff', 0, 1, 'why')",
    "StopIteration(1)",
    "StopAsyncIteration()",
    "RecursionError()",
    "MemoryError()",
    "AssertionError()",
    "TimeoutError()",
    "NotImplementedError",
    "TextlessError()",
    "NotTextError()",
    "Ours(1, right=2)",
    "ExceptionGroup('several', [ValueError('a'), MCPError(-32001, 'b')])",
    "MCPError(-32050, {T})",
    "MCPError(-32050, 'x', {V})",
    "MCPError(-32050, 'x', {{'data': {V}}})",
    "MCPError(0, '', None)",
    "MCPError(-32603, 'x' * 5000, [1])",
    "MCPError(2**70, 'x')",
    "MCPError(True, 'x')",
    "MCPError('no number', 'x')",
    "MCPError(-32602, None)",
    "MCPError(1.5, {V})",
    "RefusedError()",
    "RefusedError({N})",
)
FATALS: Final = (
    "raise SystemExit()",
    "raise SystemExit({V})",
    "raise KeyboardInterrupt",
    "raise GeneratorExit({T})",
    "raise Fatal({T})",
    "raise CancelledError({T})",
    "exits()",
)
ASYNC_FATALS: Final = (*FATALS, "await cancels_itself()", "await grouped(Fatal())", "await grouped(SystemExit(2))")
LEAVING: Final = (
    "chained(ToolError('outer'), ValueError('inner'))",
    "chained(ValueError('outer'), MCPError(-32001, 'inner', {{'d': {V}}}))",
    "chained(MCPError(-32002, 'outer'), ToolError('inner'))",
    "invalid()",
    "1 / 0",
    "undefined",
)
ACTS: Final = ("warnings.warn({T})", "in_a_thread(ValueError({T}))", "in_a_thread(KeyError())")
"""What a body may do before it ends."""
ASYNC_ACTS: Final = (
    *ACTS,
    "await grouped(MCPError(-32003, 'in a group'))",
    "await grouped(ToolError({T}))",
    "await timed_out()",
    "await given_up()",
    "await abandoned()",
    "await ({V})",
)
CONTEXT_ACTS: Final = (
    "await ctx.read_resource('nowhere://at/all')",
    "await ctx.mcp_server.call_tool('nowhere', {{'a': {V}}})",
    "await ctx.mcp_server.call_tool('nowhere', {{}}, ctx)",
)
SEEN: Final = (
    "ctx.protocol_version",
    f"(ctx.request_context.meta or {{{{}}}}).get({META!r})",
    "ctx.request_context.params.get('arguments')",
    "ctx.request_context.lifespan_context",
    "[ctx.request_state, ctx.input_responses, ctx.mcp_server.name, ctx.request_context.method]",
)
"""What a tool sees of its request."""
NUMBERS: Final = (
    *INTS,
    *FLOATS,
    "Decimal('0.5')",
    "Decimal('NaN')",
    "Fraction(1, 3)",
    "None",
    "'3'",
    "[]",
    "1j",
    "object()",
)
REPORTS: Final = (
    "ctx.report_progress({N})",
    "ctx.report_progress({N}, {N})",
    "ctx.report_progress({N}, {N}, {T})",
    "ctx.report_progress(1, None, {V})",
    "ctx.report_progress(1, message={T})",
    "ctx.info({T})",
    "ctx.warning({V})",
    "ctx.debug({{'a': {V}}})",
    "ctx.error({T}, logger_name={T})",
    "ctx.log('notice', {V}, logger_name='x')",
)
# Types of parameters: a type, JSON that fits it, and JSON that may not.
PARAMETERS: Final[Sequence[tuple[str, Sequence[str], Sequence[str]]]] = (
    (
        "int",
        ("0", "-1", "9007199254740993", "1e3", "true", "1" + "0" * 400),
        ("1.5", '"1"', '"x"', "null", "[]", "NaN"),
    ),
    ("str", ('"x"', '""', '"\\u0000 \\u2028"', '"1"', '"{\\"a\\": 1}"'), ("1", "null", '["x"]', '"\\ud800"')),
    ("float", ("0.1", "-0.0", "1", "1e308"), ('"x"', "NaN", "Infinity", "1e999", "true")),
    ("bool", ("true", "false"), ('"yes"', "1", "2", '"x"')),
    ("Any", ("null", "1", '{"a": [1, {"__type__": "datetime", "__value__": "x"}]}', '"[1, 2]"'), ("NaN", '"\\udc00"')),
    ("list[int]", ("[]", "[1, 2]", '"[1, 2]"'), ('["x"]', "{}", "1", '[1, null, "y", 2.5]')),
    ("dict[str, Any]", ("{}", '{"": 1, "$ref": "#", "__type__": null}', '"{}"'), ("[]", '"x"')),
    ("dict[int, str]", ('{"1": "a"}',), ('{"a": 1}',)),
    ("Optional[int]", ("null", "1"), ('"x"', "{}")),
    ("int | str", ("1", '"1"', '"x"', "true"), ("1.5", "null")),
    ("Literal['a', 1, None]", ('"a"', "1", "null"), ('"b"', "true", "1.0")),
    ("Annotated[int, Field(ge=0, lt=10, description='d')]", ("0", "9"), ("10", "-1")),
    ("Annotated[str, Field(min_length=1, max_length=3, pattern='^[a-z]+$')]", ('"abc"',), ('""', '"ABC"', '"abcd"')),
    ("Annotated[int, Field(alias='x-y')]", ("1",), ('"x"',)),
    ("Point", ("{}", '{"x": 1.5, "y": {"z": [null]}}', '"{\\"x\\": 2}"'), ('{"x": "a"}', "1")),
    ("Aliased", ('{"$ref": "r", "__value__": 1}', '{"ref": "by name"}'), ("[]",)),
    ("Strict", ('{"n": 1}',), ('{"n": "1"}', '{"n": 1, "m": 2}', "{}")),
    ("Picky", ('{"n": 1}',), ('{"n": 13}', '{"n": -1}')),
    ("Node", ('{"children": [{"name": "a"}]}',), ('{"children": [{"children": 1}]}',)),
    ("Movie", ('{"title": "t"}', '{"title": "t", "year": 1}'), ('{"year": 1}',)),
    ("Color", ('"red"', "null"), ('"blue"',)),
    ("datetime", ('"2024-02-29T00:00:00Z"', "0", '"2024-02-29"'), ('"x"', "1e20")),
    ("timedelta", ('"P1D"', "1.5"), ('"x"',)),
    ("Decimal", ('"0.10"', "0.1", "1"), ('"x"', "NaN")),
    ("bytes", ('"x"', '"\\u00e9"'), ("1",)),
    ("UUID", ('"12345678123456781234567812345678"',), ('"x"', "1")),
    ("set[int]", ("[3, 1, 1]",), ("{}",)),
    ("tuple[int, str]", ('[1, "a"]',), ("[1]", '["a", 1]')),
    ("Spot", ('{"x": 1}', '{"x": 1, "tags": ["a"]}'), ("{}", '{"x": "a"}')),
    ("SecretStr", ('"hush"',), ("1",)),
    ("JsonValue", ("[null]", "1"), ()),
    ("", ("1", '"x"', "null"), ()),
)
UNLISTABLE: Final = ("\\ud", "nested")
"""Parts of defaults with which no server could list its tools."""
PARAMETER_NAMES: Final = (
    "a",
    "b",
    "name",
    "arguments",
    "schema",
    "json",
    "self",
    "meta",
    "task",
    "kwargs",
    "copy",
    "id",
)


class Maker:
    """Makes tools of one seed.

    Args:
        seed: The same seed makes the same tools.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def _one(self, choices: Sequence[str]) -> str:
        return self._random.choice(choices)

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _filled(self, template: str, depth: int) -> str:
        """A template with its gaps filled: a value, a text, a number, a content block."""
        parts: dict[str, Callable[[], str]] = {
            "{V}": lambda: self._value(depth + 1),
            "{T}": lambda: self._one(TEXTS),
            "{N}": lambda: self._one(NUMBERS),
            "{C}": lambda: self._filled(self._one(CONTENT), depth + 1),
        }
        text = template
        for gap, fill in parts.items():
            while gap in text:
                text = text.replace(gap, fill().replace("{", "\0").replace("}", "\1"), 1)
        return text.replace("{{", "{").replace("}}", "}").replace("\0", "{").replace("\1", "}")

    # --- Values

    def _value(self, depth: int = 0) -> str:
        """Any value."""
        return self._typed(depth)[1]

    def _typed(self, depth: int = 0) -> tuple[str, str]:
        """A type and a value of it."""
        kinds: list[Callable[[int], tuple[str, str]]] = [self._scalar, self._model, self._container]
        weights = [4, 3, 3] if depth < 2 else [1, 0, 0]
        return self._random.choices(kinds, weights)[0](depth)

    def _scalar(self, _depth: int) -> tuple[str, str]:
        kind = self._one(["str", "int", "float", *SCALARS])
        return kind, self._one(SCALARS[kind])

    def _model(self, depth: int) -> tuple[str, str]:
        kind = self._one(list(MODELS))
        return kind, self._filled(self._one(MODELS[kind]), depth)

    def _container(self, depth: int) -> tuple[str, str]:
        kind, one = self._typed(depth + 1)
        _kind, two = self._typed(depth + 1)
        # Of a set of texts the order would be another in each process.
        few = self._one([*INTS, *FLOATS, "None", "(1, 2)"])
        return self._random.choice(
            [
                (f"list[{kind}]", f"[{one}, {one}]"),
                ("list", f"[{one}, {two}]"),
                (f"tuple[{kind}, ...]", f"({one},)"),
                ("set[int]", "{3, 1, 2}"),
                ("frozenset", f"frozenset([{few}])"),
                (f"dict[str, {kind}]", f"{{{self._one(TEXTS)}: {one}, 'b': {one}}}"),
                ("dict[str, Any]", f"{{'__type__': {self._type_name()}, '__value__': {one}}}"),
                ("dict[str, Any]", f"{{'$ref': '#/$defs/x', '': {one}, 'exc_type': 'x', 'resultType': 'task'}}"),
                ("dict[int, Any]", f"{{1: {one}, 2: {two}}}"),
                ("dict", f"{{{self._key()}: {one}}}"),
                ("deque", f"deque([{one}])"),
                ("OrderedDict", f"OrderedDict(a={one})"),
                ("dict", f"defaultdict(list, {{'a': {one}}})"),
                ("Counter", "Counter('aab')"),
                ("ChainMap", f"ChainMap({{'a': {one}}}, {{'a': 2}})"),
                ("Mapping[str, Any]", f"MappingProxyType({{'a': {one}}})"),
                (f"Iterable[{kind}]", f"(x for x in [{one}])"),
                ("Iterable[int]", "counting(3)"),
                ("Iterator[int]", "iter([1, 2])"),
                ("Iterable[int]", "failing()"),
                ("Sequence[int]", "Listlike()"),
                ("Any", f"later({one})"),
                (
                    "Any",
                    self._one(
                        ["cyclic()", "cyclic_dict()", "nested(100)", "nested(245)", "nested(300)", "nested_dict(250)"]
                    ),
                ),
                (f"{kind} | None", one),
                (f"list[{kind}]", f"[{one}, None]"),
                (f"Box[{kind}]", f"Box(item={one})"),
            ]
        )

    def _type_name(self) -> str:
        return self._one(["'datetime'", "'date'", "'uuid'", "'Decimal'", "'bytes'", "'exception'", "''", "1", "None"])

    def _key(self) -> str:
        return self._one([*TEXTS, *INTS, *FLOATS, "None", "(1, 'a')", "b'k'", "Color.RED", "UUID(int=1)", "Pair(1)"])

    # --- Functions

    def _returned(self, parameters: Sequence[str]) -> tuple[str, str]:
        """A return annotation, empty for none, and what is returned."""
        kind = self._random.choices(["value", "echo", "content", "result"], [10, 4 if parameters else 0, 3, 2])[0]
        if kind == "content":
            blocks = [self._filled(self._one(CONTENT), 1) for _ in range(self._random.randint(1, 3))]
            return self._one(CONTENT_TYPES), blocks[0] if len(blocks) == 1 else f"[{', '.join(blocks)}]"
        if kind == "result":
            return self._one(RESULT_TYPES), self._filled(self._one(RESULTS), 0)
        if kind == "echo":
            given = "{" + ", ".join(f"{name!r}: {name}" for name in parameters) + "}"
            return self._one(["Any", "dict[str, Any]", "", "str"]), self._one([given, *parameters])
        annotation, value = self._typed()
        if self._chance(0.15):
            annotation = self._one([*SCALARS, *MODELS, *OPEN_TYPES])  # that the value may not fit
        elif self._chance(0.25):
            annotation = self._one(["", *OPEN_TYPES])
        return annotation, value

    def _last(self, parameters: Sequence[str]) -> tuple[str, str]:
        """A return annotation, and the statement with which a body ends."""
        annotation, value = self._returned(parameters)
        ending = self._random.choices(["return", "raise", "leave", "none"], [70, 20, 5, 3])[0]
        statements = {
            "return": f"return {value}",
            "raise": f"raise {self._filled(self._one(EXCEPTIONS), 0)}",
            "leave": f"return {self._filled(self._one(LEAVING), 0)}",
            "none": "pass",
        }
        return annotation, statements[ending]

    def _parameters(self) -> tuple[list[str], list[str], dict[str, Any]]:
        """What a signature lists, the names in it, and the arguments of a call."""
        listed: list[str] = []
        used: list[str] = []
        arguments: dict[str, Any] = {}
        for name in self._random.sample(PARAMETER_NAMES, self._random.choice([0, 0, 1, 1, 2, 3])):
            kind, fitting, others = self._random.choice(PARAMETERS)
            text = f"{name}: {kind}" if kind else name
            if self._chance(0.3) and not any(part in (default := self._value(1)) for part in UNLISTABLE):
                text += f" = {default}"
            given = fitting if not others or self._chance(0.85) else others
            if self._chance(0.9):
                arguments["x-y" if "x-y" in kind else name] = json.loads(self._one(given))
            listed.append(text)
            used.append(name)
        if self._chance(0.05):
            arguments["extra"] = 1
        return listed, used, arguments

    def tool(self) -> Tool:
        """The next one."""
        if self._chance(0.02):  # with nothing that could keep it from being raised
            is_async = self._chance(0.6)
            ending = self._filled(self._one(ASYNC_FATALS if is_async else FATALS), 0)
            return Tool(f"{'async ' if is_async else ''}def tool():\n    {ending}")
        listed, used, arguments = self._parameters()
        is_async = self._chance(0.6)
        has_context = self._chance(0.25)
        if has_context:
            listed.insert(self._random.randint(0, len(listed)), "ctx: Context")
        annotation, last = self._last(used)
        if has_context and self._chance(0.2):
            annotation, last = "Any", f"return {self._filled(self._one(SEEN), 0)}"
        body = [*self._acts(is_async=is_async, has_context=has_context), last]
        # Keywords only, so that any of them may have a default.
        signature = f"{'*, ' if listed else ''}{', '.join(listed)}"
        returns = f" -> {annotation}" if annotation else ""
        head = f"{'async ' if is_async else ''}def tool({signature}){returns}:"
        structured = self._random.choices([None, True, False], [7, 1, 2])[0]
        return Tool("\n    ".join([head, *body]), json.dumps(arguments), structured)

    def _acts(self, *, is_async: bool, has_context: bool) -> list[str]:
        """What a body does before it ends: mostly nothing, or to report something where it can."""
        acts: list[str] = []
        if has_context:
            reports = [self._filled(self._one(REPORTS), 0) for _ in range(self._random.randint(0, 2))]
            acts = [self._awaited(report, is_async) for report in reports]
        if self._chance(0.08):
            some = [*ASYNC_ACTS, *(CONTEXT_ACTS if has_context else ())] if is_async else ACTS
            acts.insert(self._random.randint(0, len(acts)), self._filled(self._one(some), 0))
        return acts

    def _awaited(self, call: str, is_async: bool) -> str:
        if is_async:
            return f"await {call}"
        function, _paren, rest = call.partition("(")
        # An event loop of the tool's own, as `asyncio.run` makes one, cannot send what a client has to get.
        elsewhere = function == "ctx.report_progress" and self._chance(0.2)
        return f"{'anyio.run' if elsewhere else 'anyio.from_thread.run'}(partial({function}, {rest})"


def generated(seed: int, count: int) -> list[Tool]:
    """The first tools of a seed."""
    maker = Maker(seed)
    return [maker.tool() for _ in range(count)]
