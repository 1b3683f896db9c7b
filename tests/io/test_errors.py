"""A run that stops ends with what went wrong."""

from __future__ import annotations

import sys

import pytest
from monai.bundle import ConfigParser
from monai.transforms import Compose

from bundle.io import end_with_cause
from bundle.io.errors import unwrapped


def fails(what):
    try:
        int("seven")
    except ValueError as error:
        raise ValueError(f"{what}: not a number") from error


def raised_by(work):
    with pytest.raises(Exception) as raised:  # noqa: PT011 -- of whatever kind
        work()
    return raised.value


@pytest.fixture
def shown(monkeypatch):
    """Every error that the hook before was given."""
    errors = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: errors.append(error))
    return errors


@pytest.mark.parametrize(
    "content",
    [
        {"_target_": "bundle.io.find_scans", "path": "nowhere"},
        "$__import__('bundle.io').io.find_scans('nowhere')",
    ],
    ids=["component", "expression"],
)
def test_an_error_that_monai_wraps_comes_last(content, shown, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = raised_by(lambda: ConfigParser({"scans": content}).get_parsed_content("scans"))
    assert "no such file" not in str(error)
    end_with_cause()
    sys.excepthook(type(error), error, error.__traceback__)
    assert shown == [error]
    assert capsys.readouterr().err == "\nValueError: nowhere: no such file or folder\n"


def test_an_error_of_ours_is_told_in_our_words_not_in_those_of_what_it_came_from():
    error = raised_by(lambda: Compose([fails])("dose"))
    assert str(unwrapped(error)) == "dose: not a number"
    assert isinstance(unwrapped(error).__cause__, ValueError)


def test_an_error_that_nobody_wrapped_is_told_once(shown, capsys):
    error = raised_by(lambda: fails("dose"))
    end_with_cause()
    hook = sys.excepthook
    end_with_cause()
    assert sys.excepthook is hook
    hook(type(error), error, error.__traceback__)
    assert shown == [error]
    assert capsys.readouterr().err == ""
