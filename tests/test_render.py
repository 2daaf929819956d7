"""``inference-cache render`` writes what the contract makes, and tells when what is committed differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_cache.cli import main
from inference_cache.commands.render import GENERATED, rendered
from inference_cache.metrics import METRICS

FILE = "dashboards/memory.json"


def run(*words: str) -> int:
    return main(["render", *words])


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which all was rendered."""
    folder = tmp_path_factory.mktemp("out")
    assert run("--out", str(folder)) == 0
    return folder


class TestCommitted:
    @pytest.mark.parametrize("package", GENERATED)
    def test_what_is_committed_is_what_the_contract_makes(
        self, package: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code = run("--check", "--only", package)
        assert code == 0, capsys.readouterr().out


class TestOut:
    def test_each_package_has_a_folder(self, everything: Path) -> None:
        assert sorted(path.name for path in everything.iterdir()) == sorted(GENERATED)

    def test_it_is_all_there(self, everything: Path) -> None:
        made = {
            everything / package / name: text
            for package, files in rendered().items()
            for name, text in files.items()
        }
        assert {path: path.read_text("utf-8") for path in everything.rglob("*") if path.is_file()} == made

    def test_what_is_right_is_left_alone(self, everything: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = (everything / FILE).stat().st_mtime_ns
        assert run("--out", str(everything)) == 0
        assert (everything / FILE).stat().st_mtime_ns == before
        assert "wrote" not in capsys.readouterr().out


class TestCheck:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        assert run("--out", str(tmp_path), "--only", "dashboards") == 0
        return tmp_path

    def check(self, folder: Path) -> int:
        return run("--check", "--out", str(folder), "--only", "dashboards")

    def test_passes_what_was_just_made(self, folder: Path) -> None:
        assert self.check(folder) == 0

    def test_names_a_file_that_differs(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = folder / FILE
        path.write_text(path.read_text("utf-8").replace("percentunit", "percent"), "utf-8")
        changed = path.read_bytes()
        assert self.check(folder) == 1
        assert f"differs: {path}" in capsys.readouterr().out
        assert path.read_bytes() == changed

    def test_names_a_file_that_is_missing(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / FILE).unlink()
        assert self.check(folder) == 1
        assert f"is missing: {folder / FILE}" in capsys.readouterr().out

    def test_names_a_file_that_is_too_many(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "dashboards" / "old.json").write_text("{}", "utf-8")
        assert self.check(folder) == 1
        assert (
            f"is not made from this contract: {folder / 'dashboards' / 'old.json'}" in capsys.readouterr().out
        )

    def test_a_file_that_is_too_many_is_never_removed(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        old = folder / "dashboards" / "old.json"
        old.write_text("{}", "utf-8")
        assert run("--out", str(folder), "--only", "dashboards") == 0
        assert old.exists()
        assert str(old) in capsys.readouterr().err

    def test_another_contract_makes_other_files(self, folder: Path, tmp_path: Path) -> None:
        mine = tmp_path / "mine.toml"
        mine.write_text('extends = "adr_0023"\n[instance]\nfragmentation_ratio = 1.7\n', "utf-8")
        words = ("--check", "--out", str(folder), "--only", "dashboards", "--contract", str(mine))
        assert run(*words) == 1


class TestMistakes:
    def test_a_wrong_contract_is_named_with_the_nearest_key(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        mine = tmp_path / "mine.toml"
        mine.write_text('extends = "adr_0023"\n[instance]\nmaxmemry = "1gb"\n', "utf-8")
        assert run("--out", str(tmp_path / "out"), "--contract", str(mine)) == 2
        message = capsys.readouterr().err
        assert "maxmemry" in message
        assert "did you mean 'maxmemory'" in message
        assert not (tmp_path / "out").exists()

    def test_an_unknown_metric_is_named_with_the_nearest(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from inference_cache.metrics import _registry

        known = {name: one for name, one in METRICS.items() if name != "redis_lazyfree_pending_objects"}
        monkeypatch.setattr(_registry, "METRICS", known)
        assert run("--out", str(tmp_path / "out"), "--only", "dashboards") == 2
        message = capsys.readouterr().err
        assert "no metric 'redis_lazyfree_pending_objects' is known" in message
        assert not (tmp_path / "out").exists()

    def test_a_file_in_place_of_the_folder_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "out").write_text("", "utf-8")
        assert run("--out", str(tmp_path / "out"), "--only", "dashboards") == 2
        assert "is a file; name a folder" in capsys.readouterr().err
