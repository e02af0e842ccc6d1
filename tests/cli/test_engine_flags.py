"""The flags every command with a model shares reach the engine's configuration."""

from __future__ import annotations

import argparse

import pytest

from qwench.cli.engine import add_engine_flags, add_model_argument, engine_config
from qwench.config import EngineConfig
from qwench.errors import UsageError


def config(*flags: str) -> EngineConfig:
    parser = argparse.ArgumentParser()
    add_model_argument(parser)
    add_engine_flags(parser)
    return engine_config(parser.parse_args(flags))


def test_the_cache_is_on_and_in_memory_unless_told_otherwise() -> None:
    plain = config()
    assert (plain.prefix_cache, plain.cache_dir, plain.cache_dir_size) == (True, None, None)
    assert not config("--no-prefix-cache").prefix_cache
    kept = config("--cache-dir", "states", "--cache-dir-size", "2GiB")
    assert (kept.cache_dir, kept.cache_dir_size) == ("states", 2 * 2**30)


def test_wrong_sizes_are_one_sentence() -> None:
    with pytest.raises(UsageError, match="--cache-dir-size is 'much'; give bytes"):
        config("--cache-dir-size", "much")
