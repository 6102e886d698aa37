"""The command line as a whole: help, errors, exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import blu_export
from blu_export.cli import benchmark, doctor
from blu_export.cli import main as cli
from blu_export.cli.common import printable, progress, wrote
from blu_export.errors import CheckFailedError, MissingDependencyError, UsageError
from blu_export.export.engine_graph import prepare
from blu_export.extras import install_command

FakeOnnx = Callable[..., Path]


def blu(*arguments: object) -> tuple[int, str, str]:
    """Run ``blu`` as a process: (exit code, stdout, stderr)."""
    result = subprocess.run(
        [sys.executable, "-m", "blu_export", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return result.returncode, result.stdout, result.stderr


def _present() -> list[str]:
    return [name for name in cli.COMMANDS if cli.find_spec(cli._module(name)) is not None]


def test_the_commands_that_users_type_first_are_there() -> None:
    assert {"infer", "inspect", "doctor"} <= set(_present())


@pytest.mark.parametrize("command", _present())
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(cli.app, [*command.split(), "--help"])
    assert result.exit_code == 0, result.output
    assert f"Usage: blu {command}" in result.output


def test_help_lists_the_commands_that_exist() -> None:
    code, out, _ = blu("--help")
    listed = re.findall(r"^  ([a-z-]+)  +[A-Z]", out.partition("Commands:")[2], re.MULTILINE)
    assert code == 0
    assert listed == list(dict.fromkeys(command.split()[0] for command in _present()))
    assert "blu infer street.jpg" in out


def test_two_word_commands_and_absent_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "COMMANDS", {"tools doctor": "Look.", "tools none": "Not there.", "none": "Not there."})
    monkeypatch.setattr(cli, "GROUPS", {"tools": "Some tools."})
    monkeypatch.setattr(cli, "_module", lambda command: f"blu_export.cli.{command.split()[-1]}")
    runner = CliRunner()
    assert "Some tools." in runner.invoke(cli.app, ["--help"]).output
    tools = runner.invoke(cli.app, ["tools", "--help"]).output
    assert "Look." in tools
    assert "Not there." not in tools
    assert json.loads(runner.invoke(cli.app, ["tools", "doctor", "--json"]).output)["blu"] == blu_export.__version__
    assert runner.invoke(cli.app, ["tools", "none"]).exit_code == 2


@pytest.mark.parametrize("group", cli.GROUPS)
def test_groups_have_plain_help(group: str) -> None:
    code, out, _ = blu(group, "--help")
    assert (code, out.startswith(f"Usage: blu {group}")) == (0, True)
    assert "╭" not in out


def test_version() -> None:
    assert blu("--version") == (0, f"blu {blu_export.__version__}\n", "")


@pytest.mark.parametrize("arguments", [["infre"], ["infer"], ["infer", "a.jpg", "--nope"], ["doctor", "extra"]])
def test_usage_errors(arguments: list[str]) -> None:
    code, out, err = blu(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: blu" in err


@pytest.mark.parametrize(
    "arguments",
    ["infer |", "infer a.jpg -m |", "infer a.jpg --model=|", "batch | found", "evaluate |", "serve |", "data check |"],
)
def test_an_empty_argument_is_not_the_current_folder(
    arguments: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main([word.replace("|", "") for word in arguments.split()])
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: An argument is empty. Is a variable of the shell not set?\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "benchmark --compare a.json b.json",
            "a.json cannot be read as a benchmark result: No such file or directory.",
        ),
        ("evaluate --results r.json nosuch", "There is no nosuch."),
    ],
)
def test_what_is_not_there(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments.split())
    assert end.value.code == 3
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_engines_are_not_built_from_keras_files() -> None:
    with pytest.raises(UsageError, match=r"Export it: blu export onnx --weights mine\.h5"):
        prepare("mine.h5", "fp16", [])


def test_a_typing_error_gets_a_suggestion() -> None:
    assert "Did you mean 'infer'?" in blu("infre")[2]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("A is wrong.", "Write B."), 2, "error: A is wrong. Write B.\n"),
        (MissingDependencyError("No GPU."), 4, "error: No GPU.\n"),
        (CheckFailedError("AP fell."), 1, "error: AP fell.\n"),
        (FileNotFoundError(2, "No such file", "a\x1b[31m.jpg"), 3, "error: a�[31m.jpg: No such file.\n"),
        (ModuleNotFoundError("no", name="ray"), 4, f"{install_command('ray')}\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_become_a_sentence_and_an_exit_code(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("BLU_DEBUG", raising=False)
    _replace_app(monkeypatch, error)
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == code
    assert capsys.readouterr().err.endswith(message)


@pytest.mark.parametrize("error", [ZeroDivisionError(), ModuleNotFoundError("no", name="color"), OSError("odd")])
def test_defects_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace_app(monkeypatch, error)
    with pytest.raises(type(error)):
        cli.main([])


def test_blu_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLU_DEBUG", "1")
    _replace_app(monkeypatch, UsageError("A is wrong."))
    with pytest.raises(UsageError):
        cli.main([])


def _replace_app(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_is_130_without_a_traceback(fake_onnx: FakeOnnx) -> None:
    command = [sys.executable, "-m", "blu_export", "infer", "-", "--model", str(fake_onnx()), "--threads", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("runtime ")  # now it loads, then waits for standard input
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
        assert process.wait() == 130
    assert "Traceback" not in err


INTERRUPTED_IMPORT = """
import signal, sys, time
from blu_export.cli.interrupt import interrupt_after_import
signal.signal(signal.SIGINT, getattr(signal, sys.argv[1]))
sys.path.insert(0, sys.argv[2])
try:
    with interrupt_after_import():
        import half_imported
        time.sleep(float(sys.argv[3]))
except KeyboardInterrupt:
    print("interrupted", half_imported.whole)
else:
    print("not interrupted")
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(
    ("handler", "seconds", "said"),
    [("default_int_handler", 60, "interrupted True\n"), ("SIG_IGN", 0.1, "not interrupted\n")],
)
def test_ctrl_c_within_an_import_waits_until_it_is_over(
    tmp_path: Path, handler: str, seconds: float, said: str
) -> None:
    lines = ["import os, signal, time", "os.kill(os.getpid(), signal.SIGINT)", "time.sleep(0.1)", "whole = True"]
    (tmp_path / "half_imported.py").write_text("\n".join(lines))
    command = [sys.executable, "-c", INTERRUPTED_IMPORT, handler, str(tmp_path), str(seconds)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=50).stdout == said


def test_doctor_reports_what_is_installed_and_missing() -> None:
    code, out, _ = blu("doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["extras"]["cpu"]["installed"].keys() == {"onnxruntime", "openvino"}
    assert any("CPUExecutionProvider" in line for line in found["runtimes"])
    assert found["cpu"]["usable_cores"] >= 1
    text = blu("doctor")[1]
    for extra, state in found["extras"].items():
        assert f"{'✗' if state['missing'] else '✓'} {extra}:" in text


def test_doctor_names_the_distributions_that_share_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_distributions", lambda: {"numpy": ["numpy"], "rich": ["typer", "rich", "rich"]})
    assert doctor._installed(("numpy", "rich", "json", "no_such_module")) == {
        **{name: metadata.version(name) for name in ("numpy", "rich", "typer")},
        "json": "?",
    }


def test_benchmark_tables_are_markdown_except_on_a_wide_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = "**noisy**\n\n| runtime | ms |\n|---|---|\n| keras | 93.8 |\n"
    benchmark._print_markdown(table)
    assert capsys.readouterr().out == f"{table}\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "12")
    benchmark._print_markdown(table)
    assert capsys.readouterr().out == f"{table}\n"
    monkeypatch.setenv("COLUMNS", "80")
    benchmark._print_markdown(table)
    out = capsys.readouterr().out
    assert all(word in out for word in ("noisy", "runtime", "keras", "93.8"))
    assert "|" not in out and "**" not in out


def test_inspect(fake_onnx: FakeOnnx, tmp_path: Path) -> None:
    path = fake_onnx()
    code, out, err = blu("inspect", path, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["spec"]["class_names"] == ["BG", "coat", "shoe"]
    assert found["parity"] == {"matched": 1.0}
    assert found["inputs"][0] == {"name": "canvas", "dtype": "uint8", "shape": ["batch", 64, 64, 3]}
    assert found["sha256"] == blu_export.files.sha256_of(path)
    code, out, _ = blu("inspect", path)
    assert code == 0
    for text in ("BG, coat, shoe", "matched", "canvas           uint8    [batch, 64, 64, 3]", "Reshape 3"):
        assert text in out
    checks = [
        {"name": "matched instances", "value": 0.995, "least": 0.99, "passed": True},
        {"name": "median mask IoU", "value": 0.5, "least": 0.99, "passed": False},
    ]
    measured = fake_onnx(metadata={"blu_parity": json.dumps({"passed": False, "checks": checks})})
    out = blu("inspect", measured)[1].splitlines()
    assert out[out.index("  checks") + 1 :][:2] == [
        "    ✓ matched instances      0.995 (at least 0.99)",
        "    ✗ median mask IoU        0.5 (at least 0.99)",
    ]
    assert "not exported by blu" in blu("inspect", fake_onnx(metadata={"blu_spec": None}))[1]
    (tmp_path / "noise.onnx").write_bytes(b"\xff" * 64)
    code, out, err = blu("inspect", tmp_path / "noise.onnx")
    assert (code, out) == (3, "")
    assert err.startswith("error: ")
    assert "noise.onnx is not an ONNX file" in err


def test_names_from_files_cannot_drive_the_terminal() -> None:
    assert printable("a\x1b]0;owned\x07b\u202ec\n") == "a�]0;owned�b�c\n"


def test_progress_is_silent_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter([1, 2, 3]), total=3)) == [1, 2, 3]
    assert capsys.readouterr() == ("", "")


def test_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"12345")
    wrote(path, "blu inspect a.onnx")
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"wrote {re.escape(str(path))} \(5 B, sha256 \w{{64}}\)\nnext: blu inspect a.onnx\n", err)
