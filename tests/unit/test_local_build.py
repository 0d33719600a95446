"""Images are known by what goes into them, and a build reaches the package index as this machine does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from local import build, cache
from local.build import REPOSITORY, TARGETS, Target

SMALL = Target("small", "operator/Dockerfile", ("operator/headrace_operator/names.py",))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository that holds what SMALL is made of."""
    for name in (SMALL.dockerfile, *SMALL.sources):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    monkeypatch.setattr(build, "REPOSITORY", tmp_path)
    return tmp_path


def key(tmp_path: Path, name: str) -> str:
    return build._snapshot(SMALL, tmp_path / name)


@pytest.mark.parametrize("changed", [SMALL.dockerfile, SMALL.sources[0]])
def test_an_image_has_another_key_when_anything_in_it_changes(repository: Path, tmp_path: Path, changed: str) -> None:
    before = key(tmp_path, "before")
    assert key(tmp_path, "same") == before
    (repository / changed).write_text((repository / changed).read_text() + "\n")
    assert key(tmp_path, "after") != before


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_a_target_is_a_stage_of_its_dockerfile_and_its_sources_exist(target: Target, tmp_path: Path) -> None:
    assert f" AS {target.name}\n" in (REPOSITORY / target.dockerfile).read_text()
    build._snapshot(target, tmp_path)
    for source in target.sources:
        assert (tmp_path / source).exists()
    assert not list(tmp_path.rglob("__pycache__"))


def test_only_the_last_builds_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "root", lambda: tmp_path)
    for name in ("image-a-1", "image-a-2", "image-a-3", "image-b-1"):
        (tmp_path / name).mkdir()
    build._forget_old_builds("image-a", tmp_path / "image-a-3")
    left = {folder.name for folder in tmp_path.iterdir()}
    assert {"image-a-3", "image-b-1"} <= left
    assert len(left) == build.KEPT_BUILDS + 1


def test_pip_in_a_build_asks_the_index_that_pip_asks_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "pip.conf"
    settings.write_text("[global]\nindex-url = https://one.test/simple\ntrusted-host = one.test\ntimeout = 7\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    monkeypatch.setenv("PIP_INDEX_URL", "https://two.test/simple")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    found = build._pip_settings()
    assert found["index-url"] == "https://two.test/simple"
    assert found["trusted-host"] == "one.test"
    assert "timeout" not in found


def test_a_machine_with_nothing_of_its_own_gives_a_build_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PIP_CERT", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(build, "_pip_settings", dict)
    assert build._secrets(tmp_path) == []


def test_a_certificate_authority_is_handed_over_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_pip_settings", dict)
    monkeypatch.setenv("PIP_CERT", "/etc/authority.crt")
    assert build._secrets(tmp_path) == [
        "--secret=id=ca,src=/etc/authority.crt",
        f"--secret=id=pip-conf,src={tmp_path / 'pip.conf'}",
    ]
    assert (tmp_path / "pip.conf").read_text() == "[global]\ncert = /run/secrets/ca\n"
