"""Reasons inside messages: the root cause, whole sentences, no terminal codes."""

from __future__ import annotations

import ast
import errno
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateurs
from secateurs.errors import DataError, ExportError, StructureError, plain, root, shortened, why
from secateurs.export.onnx import to_model


def chained(*errors: Exception) -> Exception:
    """The last of them, each caused by the one before."""
    for cause, error in itertools.pairwise(errors):
        error.__cause__ = cause
    return errors[-1]


def test_the_first_cause_is_told() -> None:
    error = chained(KeyError("weight"), ValueError("no such layer"), RuntimeError("Failed. \x1b[96mStep 1/3\x1b[0m"))
    assert why(error) == "KeyError: 'weight'"
    assert isinstance(root(error), KeyError)
    one = ValueError("round and round")
    one.__cause__ = one
    assert why(one) == "ValueError: round and round"


def test_what_was_raised_on_purpose_speaks_for_itself() -> None:
    told = DataError("Image x.png cannot be decoded. Remove it.")
    assert why(chained(OSError("bits"), told, RuntimeError("wrapped"))) == "Image x.png cannot be decoded. Remove it"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\x1b[1mBold\x1b[0m and \x1b[38;5;196mred\x1b[m.", "Bold and red"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\ here", "link here"),
        ("one line\r\nand another\x07", "one line; and another"),
        ("Missing keys:\n\ta.weight\n\tb.weight", "Missing keys: a.weight; b.weight"),
        ("The shape 3.5x2 is wrong. Use e.g. 3x2 here.", "The shape 3.5x2 is wrong. Use e.g. 3x2 here"),
        ("First.\n\nNext steps:\n* report it", "First"),
        ("Errors were found:\n\n* this one", "Errors were found: * this one"),
        ("", ""),
    ],
)
def test_terminal_codes_and_lines(text: str, told: str) -> None:
    assert shortened(text) == told
    assert "\x1b" not in plain(text)


def test_sentences_stay_whole() -> None:
    text = "This file can be read in two ways. " + "The first is safe. " * 20 + "The end is far away."
    told = shortened(text)
    assert len(told) <= 300
    assert told.endswith("The first is safe")
    endless = shortened("word " * 200)
    assert len(endless) <= 302
    assert endless.endswith("word …")


def int_of(text: str) -> int:
    """Raises without a word."""
    if not text.isdigit():
        raise ValueError
    return int(text)


def test_errors_without_a_message_name_their_place() -> None:
    with pytest.raises(ValueError) as caught:
        int_of("x")
    assert why(caught.value).startswith("ValueError without a message (in test_reasons.py:")
    assert (
        why(OSError(errno.ENOENT, "No such file or directory", "a.txt"))
        == "FileNotFoundError: No such file or directory: a.txt"
    )


def test_an_export_tells_the_cause_without_terminal_codes() -> None:
    class Unknown(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eig(x)[0].real

    with pytest.raises(ExportError) as caught:
        to_model(Unknown(), torch.randn(2, 4, 4))
    message = str(caught.value)
    assert "\x1b" not in message
    assert "linalg_eig" in message
    assert "step" not in message.lower()

    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * len([v for v in x.flatten().tolist() if v > 0])

    with pytest.raises(ExportError) as caught:
        to_model(Counts(), torch.randn(2, 4))
    assert "\x1b" not in str(caught.value)
    assert "data-dependent" in str(caught.value)


def test_a_network_that_cannot_be_traced_tells_why() -> None:
    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * int_of("x")

    with pytest.raises(StructureError, match=r"ValueError without a message \(in test_reasons\.py:\d+\)"):
        secateurs.trace(Bare(), torch.randn(2, 4))


def test_nobody_cuts_messages_by_hand() -> None:
    """First lines and slices of an error's text are taken in one place."""
    for path in Path(secateurs.__file__).parent.rglob("*.py"):
        if path.name == "errors.py" or path.parent.name == "engines":  # those run alone, on any machine
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Call):
                text = ast.unparse(node.value)
                assert "str(error)" not in text or ".partition(" in text, f"{path}:{node.lineno}: {text}"
            if isinstance(node, ast.Attribute) and node.attr == "splitlines":
                assert "str(error)" not in ast.unparse(node.value), f"{path}:{node.lineno}"
