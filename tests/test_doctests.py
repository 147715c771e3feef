"""The examples in the docstrings give what they say."""

import doctest
import importlib

import pytest

MODULES = ("flatstep.loss", "flatstep.layout", "flatstep.schedule")


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
