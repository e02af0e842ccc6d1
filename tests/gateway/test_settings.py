"""The settings file: what is read, and every mistake as one sentence with file, line, key and what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwench.errors import UsageError
from qwench.gateway.tiers import DataClass, read_settings

GOOD = """
[gateway]
default = "own/nano:off"
default_class = "general"
[tiers.own]
kind = "engine"
model = "nano"
port = 8101
[tiers.api]
kind = "openai"
url = "https://api.example.com/v1/"
key_env = "API_KEY"
[[models]]
tier = "own"
model = "nano"
thinking = ["off", 512]
recipes = ["", "vote"]
[[models]]
tier = "api"
model = "large"
context = 1000
modalities = ["text", "image"]
[[cascades]]
first = "own/nano:off"
then = "api/large"
check = "json"
right = 0.9
wrong = 0.1
[classes.code]
value = 0.5
words = ["Python"]
[classes.sums]
value = 0.1
examples = ["1 + 1", "2 + 3"]
[[data]]
name = "iban"
match = '[A-Z]{2}\\d{20}'
class = "personal"
[keys.ann]
digest = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
data = "internal"
budget = 2.5
"""
ENVIRONMENT = {"API_KEY": "sk-1"}


def write(folder: Path, text: str) -> Path:
    path = folder / "tiers.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_everything_is_read(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, GOOD), ENVIRONMENT)
    assert list(settings.options) == [
        "own/nano:off",
        "own/nano:off+vote",
        "own/nano:512",
        "own/nano:512+vote",
        "api/large",
    ]
    assert settings.default.name == "own/nano:off"
    own, api = settings.tiers["own"], settings.tiers["api"]
    assert own.url == "http://127.0.0.1:8101"
    assert own.data == frozenset(DataClass)
    assert own.engine == ("nano", "--port", "8101")
    assert (api.url, api.secret.value, api.data) == ("https://api.example.com", "sk-1", frozenset({DataClass.PUBLIC}))
    assert settings.unknown.name == "general"
    assert settings.owners["ann"].budget == 2.5
    assert "sk-1" not in repr(settings)


def test_the_example_that_ships_is_right() -> None:
    settings = read_settings(Path(__file__).parents[2] / "examples" / "tiers.toml", {})
    assert settings.default.name in settings.options


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('kind = "engine"', 'knd = "engine"', "line 6: tiers.own.knd is not known; did you mean kind?"),
        (
            'kind = "engine"',
            'kind = "engin"',
            "line 6: tiers.own.kind is 'engin'; give one of engine, openai, anthropic; did",
        ),
        ("port = 8101", "port = 0", "line 8: tiers.own.port is 0; give a whole number from 1 to 65535."),
        ("port = 8101", 'url = "http://x"', "line 8: tiers.own.url belongs to a tier that runs already"),
        (
            '"https://api.example.com/v1/"',
            '"api.example.com"',
            "line 11: tiers.api.url is 'api.example.com'; give an address",
        ),
        ("example.com/v1/", "example.com:99999", "line 11: tiers.api.url is 'https://api.example.com:99999'; give an"),
        ('"https://api', '"https://api..', "with the name and the port of a machine"),
        ('"https://api', '"https://me:pw@api', "line 11: tiers.api.url holds more than an address; keys belong"),
        ('"API_KEY"', '"OTHER_KEY"', "line 12: tiers.api.key_env names the variable OTHER_KEY, which is not set"),
        ('tier = "own"', 'tier = "owm"', "line 14: models.tier is 'owm'; give one of own, api; did you mean own?"),
        ('["off", 512]', '["of"]', 'line 16: models.thinking is [\'of\']; give some of "off", "on" and a number'),
        (
            '"image"]',
            '"imagge"]',
            "line 22: models.modalities holds 'imagge'; known are text, image, video, document; did",
        ),
        ("context = 1000", 'recipes = ["vote"]', "line 21: models.recipes needs a tier that is Qwench's own server"),
        ('then = "api/large"', 'then = "api/lage"', "line 25: cascades.then is 'api/lage'; give one of"),
        ("wrong = 0.1", "", "cascades.wrong is missing; give the share of wrong answers that the check accepts"),
        ('check = "json"', 'check = "match:("', "line 26: cascades.check is no regular expression"),
        ("value = 0.5", "", "classes.code.value is missing; give what a completed task of this class is worth."),
        ('words = ["Python"]', "words = []", "classes.code.value stands in a class that nothing can match"),
        ("'[A-Z]{2}\\d{20}'", "'x*'", "data.match finds something in every text; make it narrower."),
        ("'[A-Z]{2}\\d{20}'", "'('", "data.match is no regular expression"),
        (
            'class = "personal"',
            'class = "private"',
            "data.class is 'private'; give one of public, internal, personal, secret",
        ),
        (
            '"own/nano:off"\ndefault_class',
            '"own/nano"\ndefault_class',
            "line 3: gateway.default is 'own/nano'; give one of",
        ),
        ('default_class = "general"', "explore = 2", "line 4: gateway.explore is 2; give a number from 0 to 1."),
        ("sha256:00", "sha256:0", "keys.ann.digest is no digest; give sha256:DIGEST"),
        ("[keys.ann]", "[keyz.ann]", "keyz is not known; did you mean keys?"),
        ("[gateway]", "[gateway", "line 2: "),
    ],
)
def test_a_mistake_is_told_with_file_line_and_key(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(UsageError) as error:
        read_settings(path, ENVIRONMENT)
    assert error.value.message.startswith(str(path))
    assert told in error.value.message
    assert "\n" not in error.value.message


@pytest.mark.parametrize("text", ["", "[tiers.own]\nkind='openai'\nurl='http://127.0.0.1:1'\n", "gateway = 3\n"])
def test_a_file_without_what_is_needed_says_what_is_missing(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"(tiers is missing|models is missing|must be a table)"):
        read_settings(write(tmp_path, text), {})


def test_a_key_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-2\n", encoding="utf-8")
    text = GOOD.replace('key_env = "API_KEY"', 'key_file = "key"')
    assert read_settings(write(tmp_path, text), {}).tiers["api"].secret.value == "sk-2"
    (tmp_path / "key").write_text("\n", encoding="utf-8")
    with pytest.raises(UsageError, match="is empty"):
        read_settings(write(tmp_path, text), {})
