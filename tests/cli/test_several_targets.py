"""Several targets from the command line: how options pair, and what is refused before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from secateurs.cli.app import app


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def said(result: Result) -> str:
    return " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize("verb", [("prune", "digits-resnet", "--data", "digits"), ("plan", "digits-resnet")])
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--target", "fake", "--target", "onnxruntime-cpu", "--latency", "60%"), "2 targets (fake, onnxruntime-cpu)"),
        (("--target", "fake", "--latency", "60%", "--latency", "5ms"), "2 latencies (60%, 5ms)"),
        (("--latency", "60%", "--latency", "5ms"), "1 target (onnxruntime-cpu)"),
        (("--target", "fake", "--target", "onnxruntime-cpu", "--macs", "60%"), "no latency"),
        (
            ("--target", "fake", "--latency", "60%", "--target", "fake", "--latency", "5ms"),
            "Target fake is given twice",
        ),
    ],
)
def test_options_that_do_not_pair_are_a_usage_error(
    verb: tuple[str, ...], words: tuple[str, ...], told: str, fake_target: str, run_folder: Path
) -> None:
    result = call(*verb, *words, "-o", run_folder)
    assert result.exit_code == 2
    assert told in said(result)
    assert not run_folder.exists()


@pytest.mark.parametrize("verb", [("prune", "digits-resnet", "--data", "digits"), ("plan", "digits-resnet")])
@pytest.mark.parametrize(
    ("second", "told"),
    [
        ("fake:f32", "Targets fake and fake:f32 are the same runtime on the same device"),
        ("nowhere", "nowhere"),
        ("ssh://localhost:1/onnxruntime-cpu", "Target ssh://localhost:1/onnxruntime-cpu cannot be used here"),
    ],
)
def test_a_target_that_cannot_be_used_is_refused_before_any_work(
    verb: tuple[str, ...], second: str, told: str, fake_target: str, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateurs.cli.prune.open_model", None)
    monkeypatch.setattr("secateurs.cli.plan.open_model", None)
    result = call(
        *verb, "--target", fake_target, "--latency", "60%", "--target", second, "--latency", "5ms", "-o", run_folder
    )
    assert result.exit_code == 1
    assert told in said(result)
    assert not run_folder.exists()


def test_latencies_belong_to_targets_in_the_order_given(
    fake_target: str, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever among the other options they stand; a resumed run may say the same again, and nothing else."""
    seen = []
    monkeypatch.setattr("secateurs.cli.prune._run", lambda settings, *given, **more: seen.append(settings))
    words = ("prune", "digits-resnet", "--data", "digits", "-o", run_folder)
    first, second = ("--target", fake_target, "--target", "onnxruntime-cpu"), ("--latency", "60%", "--latency", "5ms")
    assert call(*words, *second, *first).exit_code == 0
    (settings,) = seen
    pairs = [(one.target, str(one)) for one in settings.budgets]
    assert pairs == [("fake", "60%"), ("onnxruntime-cpu", "5ms")]
    assert settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert call(*words, "--latency", "60%").exit_code == 0
    assert (seen[1].target, seen[1].latency) == ("onnxruntime-cpu", "60%"), "as older versions spelt it"
    run_folder.mkdir()
    job = {"schema": "secateurs.job/1", **settings.to_dict(), "options": {"model": "digits-resnet", "data": "digits"}}
    (run_folder / "job.json").write_text(json.dumps(job))
    assert call("prune", "--resume", "-o", run_folder, *first, *second).exit_code == 0
    assert seen[2].budgets == settings.budgets
    result = call("prune", "--resume", "-o", run_folder, "--target", fake_target)
    assert result.exit_code == 1
    assert "was started with target ['fake', 'onnxruntime-cpu'], now it is 'fake'" in said(result)
