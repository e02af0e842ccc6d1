"""What the operator decided, read from one TOML file: tiers, models, classes, data rules, keys, budgets.

    Settings ─┬─ Tier        where answers come from: an engine started by us, or an upstream by URL
              ├─ Option      tier × model × thinking × recipe: what the router chooses among
              ├─ Cascade     two options with a check between them
              ├─ TaskClass   a kind of work: what it is worth, how it is recognised
              ├─ DataRule    what makes a request personal or secret
              └─ Owner       a client's key: its data class, its budget

Every mistake is one sentence with file, line and key. Knows no HTTP and decides nothing.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from qwench.gateway.sections import Section, named_sections, sections
from qwench.plan.tables import Table, read_table
from qwench.server.keys import STORED, Key

Kind = Literal["engine", "openai", "anthropic"]
Thinking = Literal["", "on", "off"] | int  # "" leaves it to the request and the model; a number is a budget
Steering = Literal["qwen", "effort", "budget", "adaptive", "none"]
NAME = re.compile(r"[a-z0-9][\w.-]{0,63}", re.IGNORECASE)
DAY = 86_400
AUTO = "auto"  # the model name that leaves the choice to the router


class DataClass(IntEnum):
    """How confidential a request is; the higher, the fewer may see it."""

    PUBLIC = 0
    INTERNAL = 1
    PERSONAL = 2
    SECRET = 3

    def __str__(self) -> str:
        return self.name.lower()


DATA: Mapping[str, DataClass] = MappingProxyType({str(each): each for each in DataClass})
KINDS: Mapping[str, Kind] = MappingProxyType({"engine": "engine", "openai": "openai", "anthropic": "anthropic"})
STEERING: Mapping[str, Steering] = MappingProxyType(
    {"qwen": "qwen", "effort": "effort", "budget": "budget", "adaptive": "adaptive", "none": "none"}
)
USUAL_STEERING: Mapping[Kind, str] = MappingProxyType({"engine": "qwen", "openai": "effort", "anthropic": "budget"})
MODALITIES: Mapping[str, str] = MappingProxyType({name: name for name in ("text", "image", "video", "document")})
RECIPES: Mapping[str, str] = MappingProxyType({"": "", "vote": "vote", "best_of": "best_of", "forest": "forest"})


@dataclass(frozen=True)
class Secret:
    """An upstream's key. It shows itself only where it is asked for by name."""

    value: str = field(repr=False)

    def hide(self, text: str) -> str:
        return text.replace(self.value, "***") if self.value else text


NO_SECRET = Secret("")


@dataclass(frozen=True)
class Patience:
    """Seconds: to ``connect``, until the ``first`` byte, between two bytes (``idle``), for all of it (``total``).

    ``retries`` of the same option after faults that may pass; ``failures`` in a row open the breaker for ``pause``.
    """

    connect: float = 5.0
    first: float = 120.0
    idle: float = 60.0
    total: float = 1800.0
    retries: int = 1
    failures: int = 5
    pause: float = 20.0


@dataclass(frozen=True)
class Tier:
    """One place that answers. ``url`` ends before ``/v1``. ``data``: the classes of data it may see.

    ``engine``: the words behind ``qwench serve`` where we start it; empty where it is there already.
    ``provider``: its name in price lists. ``steering``: how it is told to think. ``usage``: whether its streams can be
    asked for usage.
    """

    name: str
    kind: Kind
    url: str
    data: frozenset[DataClass]
    provider: str
    steering: Steering
    secret: Secret = NO_SECRET
    patience: Patience = Patience()
    engine: tuple[str, ...] = ()
    usage: bool = True

    @property
    def local(self) -> bool:
        """Whether its address is on this machine, as its characters show: nobody is asked."""
        return is_loopback(urlsplit(self.url).hostname or "")


@dataclass(frozen=True)
class Option:
    """One thing to choose. ``output`` and ``seconds`` are what the operator expects of an answer, ``prior`` the share
    of tasks it should complete, counted as ``weight`` tasks seen; None where nobody said."""

    tier: Tier
    model: str
    thinking: Thinking = ""
    recipe: str = ""
    context: int | None = None
    modalities: frozenset[str] = frozenset({"text"})
    output: float | None = None
    seconds: float | None = None
    prior: float | None = None
    weight: float = 4.0
    samples: int = 1

    @property
    def name(self) -> str:
        mode = "" if self.thinking == "" else f":{self.thinking}"
        return f"{self.tier.name}/{self.model}{mode}" + (f"+{self.recipe}" if self.recipe else "")

    @property
    def told(self) -> str:
        """The thinking mode as the ledger writes it."""
        return f"budget {self.thinking}" if isinstance(self.thinking, int) else self.thinking


@dataclass(frozen=True)
class Cascade:
    """``first`` answers; where ``check`` does not accept, ``then`` does.

    ``right``, ``wrong``: the shares of right and of wrong answers that the check accepts.
    """

    first: Option
    then: Option
    check: str
    right: float
    wrong: float

    @property
    def name(self) -> str:
        return f"{self.first.name}>{self.then.name}"


@dataclass(frozen=True)
class TaskClass:
    """``value``: what a completed task is worth. Recognised by the rules, or by likeness to the ``examples``."""

    name: str
    value: float
    words: tuple[str, ...] = ()
    pattern: re.Pattern[str] | None = None
    tools: bool | None = None
    examples: tuple[str, ...] = ()

    @property
    def ruled(self) -> bool:
        return bool(self.words) or self.pattern is not None or self.tools is not None


@dataclass(frozen=True)
class DataRule:
    """Text that ``pattern`` finds makes a request at least ``data``."""

    name: str
    pattern: re.Pattern[str]
    data: DataClass


@dataclass(frozen=True)
class Owner:
    """What one client's key may do. ``budget``: in the gateway's currency, for a day (UTC)."""

    key: Key
    data: DataClass | None = None
    budget: float | None = None
    admin: bool = False


@dataclass(frozen=True)
class Routing:
    """How options are weighed. ``enough``: outcomes of an option in a class before it may be chosen.

    ``stay``: by what share of the task's value another option must be better before a conversation moves to it.
    ``explore``: the share of requests that go to the option least is known of. ``shadow``: decide, tell, and use the
    default all the same. ``cache``: seconds that upstreams keep a prompt. ``likeness``: below it no class is guessed;
    without it the examples tell.
    """

    currency: str = "USD"
    enough: int = 5
    stay: float = 0.02
    explore: float = 0.0
    shadow: bool = False
    cache: float = 300.0
    likeness: float | None = None


@dataclass(frozen=True)
class Settings:
    """The whole file. ``data`` is the class of requests of which nobody says anything; ``aliases`` are patterns of
    model names that clients send, and what is meant by them; ``contents``: for how many days the words of requests and
    answers are kept, 0 for not at all."""

    path: Path
    tiers: Mapping[str, Tier]
    options: Mapping[str, Option]
    default: Option
    classes: Mapping[str, TaskClass]
    unknown: TaskClass
    cascades: tuple[Cascade, ...] = ()
    rules: tuple[DataRule, ...] = ()
    owners: Mapping[str, Owner] = field(default_factory=dict)
    routing: Routing = Routing()
    data: DataClass = DataClass.SECRET
    ledger: str = ""
    prices: Path | None = None
    budget: float | None = None
    alerts: tuple[float, ...] = (0.5, 0.8, 1.0)
    aliases: Mapping[str, str] = field(default_factory=dict)
    contents: float = 0.0


def _is_reachable(parts: SplitResult) -> bool:
    """Whether name and port can be those of a machine at all."""
    try:
        return bool(str(parts.hostname).encode("idna")) and parts.port != 0
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_settings(path: Path, environment: Mapping[str, str] = os.environ) -> Settings:
    """Raises UsageError naming file, line and key."""
    table = read_table(path)
    Section(table, table.content, "").only(
        "gateway", "tiers", "models", "aliases", "cascades", "classes", "data", "keys"
    )
    main = Section(table, table.content.get("gateway", {}), "gateway")
    main.only(*GATEWAY)
    tiers = {name: _tier(name, row, environment) for name, row in named_sections(table, "tiers")}
    if not tiers:
        raise table.error("", "tiers", "is missing; write [tiers.NAME] over each place that answers")
    options = {option.name: option for row in sections(table, "models") for option in _options(row, tiers)}
    if not options:
        raise table.error("", "models", "is missing; write [[models]] with tier and model over each model")
    classes = {name: _class(name, row) for name, row in named_sections(table, "classes")}
    unknown = main.text("default_class", "general")
    if unknown not in classes:
        classes[unknown] = TaskClass(unknown, main.number("value", 0.0))
    return Settings(
        path=path,
        tiers=tiers,
        options=options,
        default=main.one_of("default", options, next(iter(options))),
        classes=classes,
        unknown=classes[unknown],
        cascades=tuple(_cascade(row, options) for row in sections(table, "cascades")),
        rules=tuple(_data_rule(row) for row in sections(table, "data")),
        owners={name: _owner(name, row) for name, row in named_sections(table, "keys")},
        routing=_routing(main),
        data=main.one_of("data", DATA, "secret"),
        ledger=_ledger(main, path),
        prices=path.parent / main.text("prices") if "prices" in main.values else None,
        budget=main.maybe_number("budget"),
        alerts=_alerts(main),
        aliases=_aliases(table, options),
        contents=main.number("contents", 0.0),
    )


GATEWAY = (
    *("default", "default_class", "value", "currency", "enough", "stay", "explore", "shadow", "cache", "likeness"),
    *("data", "ledger", "prices", "budget", "alerts", "contents"),
)
TIER = (
    *("kind", "url", "model", "port", "flags", "key_env", "key_file", "data", "provider", "steering", "usage"),
    *("connect", "first", "idle", "total", "retries", "failures", "pause"),
)


def _routing(main: Section) -> Routing:
    usual = Routing()
    enough = main.maybe_whole("enough", 0)
    return Routing(
        currency=main.text("currency", usual.currency),
        enough=usual.enough if enough is None else enough,
        stay=main.number("stay", usual.stay),
        explore=main.number("explore", usual.explore, 0, 1),
        shadow=main.flag("shadow", usual.shadow),
        cache=main.number("cache", usual.cache),
        likeness=main.maybe_number("likeness", 0, 1),
    )


def _alerts(main: Section) -> tuple[float, ...]:
    given = main.values.get("alerts", [0.5, 0.8, 1.0])
    if not isinstance(given, list) or not all(isinstance(each, int | float) and 0 < each <= 1 for each in given):
        raise main.wrong("alerts", "a list of shares of a budget, such as [0.5, 0.8, 1.0]")
    return tuple(sorted(float(each) for each in given))


def _ledger(main: Section, path: Path) -> str:
    """Where the ledger is: a URL as it stands, a file beside the settings; empty for the usual place."""
    if "ledger" not in main.values:
        return ""
    told = main.text("ledger")
    return told if "://" in told else str(path.parent / Path(told).expanduser())


def _tier(name: str, row: Section, environment: Mapping[str, str]) -> Tier:
    row.only(*TIER)
    if not NAME.fullmatch(name):
        raise row.error("kind", f"belongs to a tier called {name!a}; name it with letters, digits and . _ -")
    kind = row.one_of("kind", KINDS)
    url, words = _engine(row) if kind == "engine" else (_url(row), ())
    local = is_loopback(urlsplit(url).hostname or "")
    # Where nobody says what a tier may see: everything if nothing leaves the machine, else only what is public.
    return Tier(
        name=name,
        kind=kind,
        url=url,
        data=frozenset(row.some_of("data", DATA, list(DATA) if local else ["public"])),
        provider=row.text("provider", name),
        steering=row.one_of("steering", STEERING, USUAL_STEERING[kind]),
        secret=_secret(row, environment),
        patience=_patience(row),
        engine=words,
        usage=row.flag("usage", True),
    )


def _engine(row: Section) -> tuple[str, tuple[str, ...]]:
    """The address of an engine that we start, and the words behind ``qwench serve``."""
    if "url" in row.values:
        raise row.error(
            "url", "belongs to a tier that runs already (kind openai); an engine is given a model and a port"
        )
    port = row.maybe_whole("port", 1, 65_535)
    if port is None:
        raise row.wrong("port", "the port it shall listen on")
    words = (row.text("model", wanted="the model to serve"), "--port", str(port), *row.texts("flags"))
    return f"http://127.0.0.1:{port}", words


def _url(row: Section) -> str:
    for key in ("model", "port", "flags"):
        if key in row.values:
            raise row.error(key, "belongs to a tier that we start (kind engine); its models stand under [[models]]")
    url = row.text("url", wanted="its address, such as https://api.example.com").rstrip("/").removesuffix("/v1")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise row.wrong("url", "an address that begins with http:// or https://")
    if not _is_reachable(parts):
        raise row.wrong("url", "an address with the name and the port of a machine")
    if parts.username or parts.password or parts.query:
        raise row.error("url", "holds more than an address; keys belong into key_env or key_file")
    return url


def _secret(row: Section, environment: Mapping[str, str]) -> Secret:
    variable, file = row.maybe_text("key_env", "the name of a variable"), row.maybe_text("key_file", "a path")
    if variable and file:
        raise row.error("key_file", "and key_env are both given; leave one of them out")
    if variable:
        if not environment.get(variable, "").strip():
            raise row.error("key_env", f"names the variable {variable}, which is not set; export it")
        return Secret(environment[variable].strip())
    if file:
        path = row.table.path.parent / Path(file).expanduser()
        try:
            value = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise row.error("key_file", f"{path} cannot be read ({reason})") from None
        if not value:
            raise row.error("key_file", f"{path} is empty; it should hold the key")
        return Secret(value)
    return NO_SECRET


def _patience(row: Section) -> Patience:
    usual = Patience()
    retries, failures = row.maybe_whole("retries", 0, 10), row.maybe_whole("failures")
    return Patience(
        connect=row.number("connect", usual.connect, 0.001),
        first=row.number("first", usual.first, 0.001),
        idle=row.number("idle", usual.idle, 0.001),
        total=row.number("total", usual.total, 0.001),
        retries=usual.retries if retries is None else retries,
        failures=usual.failures if failures is None else failures,
        pause=row.number("pause", usual.pause),
    )


def _options(row: Section, tiers: Mapping[str, Tier]) -> list[Option]:
    """Every combination of the thinking modes and recipes of one ``[[models]]``."""
    keys = ("tier", "model", "thinking", "recipes", "samples", "context", "modalities", "output", "seconds")
    row.only(*keys, "prior", "weight")
    tier = row.one_of("tier", tiers)
    recipes = row.some_of("recipes", RECIPES, [""])
    if any(recipes) and tier.steering != "qwen":
        raise row.error("recipes", f"needs a tier that is Qwench's own server; {tier.name} is not (steering qwen)")
    samples = row.maybe_whole("samples", 2, 64)
    return [
        Option(
            tier=tier,
            model=row.text("model"),
            thinking=thinking,
            recipe=recipe,
            context=row.maybe_whole("context"),
            modalities=frozenset(row.some_of("modalities", MODALITIES, ["text"])),
            output=row.maybe_number("output"),
            seconds=row.maybe_number("seconds"),
            prior=row.maybe_number("prior", 0, 1),
            weight=row.number("weight", 4.0, 0.1, 1e6),
            samples=(samples or 8) if recipe else 1,
        )
        for thinking in _modes(row, tier)
        for recipe in recipes
    ]


def _modes(row: Section, tier: Tier) -> list[Thinking]:
    given = row.values.get("thinking", "")
    modes: list[Thinking] = []
    for each in given if isinstance(given, list) and given else [given]:
        budget = isinstance(each, int) and not isinstance(each, bool) and each > 0
        if not budget and each not in ("", "on", "off"):
            raise row.wrong("thinking", 'some of "off", "on" and a number of tokens')
        modes.append(each)
    if modes != [""] and tier.steering == "none":
        raise row.error("thinking", f"has no effect: {tier.name} cannot be told (steering none)")
    return modes


def _aliases(table: Table, options: Mapping[str, Option]) -> dict[str, str]:
    row = Section(table, table.content.get("aliases", {}), "aliases")
    known = {AUTO: AUTO, **{name: name for name in options}}
    return {pattern: row.one_of(pattern, known) for pattern in row.values}


def _cascade(row: Section, options: Mapping[str, Option]) -> Cascade:
    row.only("first", "then", "check", "right", "wrong")
    check = row.text("check", wanted="json, finished or match:REGEX")
    kind, _, rest = check.partition(":")
    if kind not in ("json", "finished", "match", "judge") or (kind in ("match", "judge")) != bool(rest):
        raise row.wrong("check", "json, finished, match:REGEX or judge:OPTION")
    if kind == "match":
        try:
            re.compile(rest)
        except re.error as error:
            raise row.error("check", f"is no regular expression: {error}") from None
    if kind == "judge" and rest not in options:
        raise row.error("check", f"names the judge {rest!r}, which is no option; known are {', '.join(options)}")
    shares = [row.maybe_number(name, 0, 1) for name in ("right", "wrong")]
    for name, share in zip(("right", "wrong"), shares, strict=True):
        if share is None:
            raise row.wrong(
                name, f"the share of {name} answers that the check accepts; measure it, there is no usual one"
            )
    first, then = row.one_of("first", options), row.one_of("then", options)
    return Cascade(first, then, check, shares[0] or 0.0, shares[1] or 0.0)


def _class(name: str, row: Section) -> TaskClass:
    row.only("value", "words", "match", "tools", "examples")
    value = row.maybe_number("value")
    if value is None:
        raise row.wrong("value", "what a completed task of this class is worth")
    found = TaskClass(
        name=name,
        value=value,
        words=tuple(word.lower() for word in row.texts("words")),
        pattern=row.pattern("match"),
        tools=row.flag("tools", False) if "tools" in row.values else None,
        examples=_examples(row),
    )
    if not found.ruled and not found.examples and len(row.values) > 1:
        raise row.error("value", "stands in a class that nothing can match; give words, match, tools or examples")
    return found


def _examples(row: Section) -> tuple[str, ...]:
    """A list of texts, or the name of a file with one on each line."""
    if not isinstance(row.values.get("examples", []), str):
        return row.texts("examples")
    path = row.table.path.parent / row.text("examples")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise row.error("examples", f"{path} cannot be read ({reason})") from None
    return tuple(line.strip() for line in lines if line.strip())


def _data_rule(row: Section) -> DataRule:
    row.only("name", "match", "class")
    pattern = row.pattern("match")
    if pattern is None:
        raise row.wrong("match", "a regular expression")
    if pattern.search("") is not None:
        raise row.error("match", "finds something in every text; make it narrower")
    return DataRule(row.text("name"), pattern, row.one_of("class", DATA))


def _owner(name: str, row: Section) -> Owner:
    row.only("digest", "data", "budget", "admin")
    told = row.text("digest", wanted="sha256:DIGEST, from `printf %s KEY | sha256sum`")
    found = STORED.fullmatch(told)
    if found is None:
        raise row.error("digest", "is no digest; give sha256:DIGEST, from `printf %s KEY | sha256sum`")
    data = row.one_of("data", DATA) if "data" in row.values else None
    return Owner(Key(name, found[1]), data, row.maybe_number("budget"), row.flag("admin", False))
