import dataclasses
import hashlib
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from litlab.errors import BadInput
from litlab.files import cache_folder, sha256_of
from litlab.sources import wheels
from litlab.sources.wheels import Package, fetch, fetch_all, open_member, package_of, read_package_list


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """A real wheel in a folder that is pip's only index."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = write_wheel(index, "py3-none-any")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return Package("litlab-fixture", "1.0", wheel.name, hashlib.sha256(wheel.read_bytes()).hexdigest())


def write_wheel(index: Path, tag: str, *requirements: str, name: str = "litlab_fixture") -> Path:
    wheel, info = index / f"{name}-1.0-{tag}.whl", f"{name}-1.0.dist-info"
    metadata = ("Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *requirements, "")
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("fixture/data.txt", "hello")
        file.writestr(f"{info}/METADATA", "\n".join(metadata))
        file.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        file.writestr(f"{info}/RECORD", "")
    return wheel


def test_a_wheel_for_newer_pythons_can_be_read(package: Package) -> None:
    wheel = write_wheel(Path(os.environ["PIP_FIND_LINKS"]), "py3-none-any", "Requires-Python: >=3.99")
    assert fetch(Package(package.name, package.version, wheel.name, sha256_of(wheel))).name == wheel.name


def test_a_wheel_for_this_platform_is_not_used_instead_of_the_named_one(package: Package) -> None:
    version = f"cp{sys.version_info.major}{sys.version_info.minor}"
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    write_wheel(Path(os.environ["PIP_FIND_LINKS"]), f"{version}-{version}-{platform}")
    assert fetch(package).name == package.wheel


def test_a_wheel_is_downloaded_checked_and_read_without_being_installed(package: Package) -> None:
    with open_member(package, "fixture/data.txt") as file:
        assert file.read() == b"hello"
    assert subprocess.run([sys.executable, "-c", "import fixture"], capture_output=True).returncode != 0


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"encrypted", b"method"])
def test_a_wheel_that_cannot_be_read_gives_one_sentence(package: Package, damage: bytes) -> None:
    wheel = fetch(package)
    content = bytearray(wheel.read_bytes())
    entry = content.index(b"PK\x01\x02")  # entry of the first file in the central directory at the end
    content[entry + 8] |= damage == b"encrypted"
    content[entry + 10] += 77 * (damage == b"method")
    wheel.write_bytes(content if damage in (b"encrypted", b"method") else damage)
    damaged = Package(package.name, package.version, package.wheel, sha256_of(wheel))
    with pytest.raises(
        BadInput,
        match=r"none-any\.whl has no 'fixture/data\.txt' that can be read \(\w+\): correct the name of the file",
    ):
        with open_member(damaged, "fixture/data.txt"):
            pass


def test_a_member_that_the_wheel_lacks_gives_one_sentence(package: Package) -> None:
    with pytest.raises(
        BadInput, match=r"none-any\.whl has no 'fixture/nothing' that can be read \(KeyError\): correct"
    ):
        with open_member(package, "fixture/nothing"):
            pass


def test_a_cached_wheel_needs_no_index(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fetch(package)
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert fetch(package) == first


def test_a_wheel_with_another_hash_is_refused_and_deleted(package: Package) -> None:
    changed = Package(package.name, package.version, package.wheel, "0" * 64)
    with pytest.raises(BadInput, match=r"served a .* with sha256 .* expects 0000.* not kept"):
        fetch(changed)
    assert [path for path in (cache_folder() / "packages").glob("*.whl")] == []


@pytest.mark.parametrize("entry", ["../escape.py", "fixture/../../escape.py", "/escape.py", "..\\escape.py"])
def test_a_wheel_whose_entries_point_outside_is_refused_and_deleted(
    package: Package, entry: str, tmp_path: Path
) -> None:
    wheel = tmp_path / "index" / package.wheel
    with zipfile.ZipFile(wheel, "a") as file:
        file.writestr(entry, "raise SystemExit")
    hostile = Package(package.name, package.version, package.wheel, sha256_of(wheel))
    with pytest.raises(
        BadInput, match=r"has an entry .*escape\.py', which points outside of its folder: it was not kept"
    ):
        fetch(hostile)
    assert not [*tmp_path.rglob("*escape*"), *cache_folder().rglob("*escape*")]
    assert not [*(cache_folder() / "packages").glob("*.whl")]


def test_a_damaged_copy_in_the_cache_is_fetched_again(package: Package, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = fetch(package)
    wheel.write_bytes(wheel.read_bytes()[:100])
    assert sha256_of(fetch(package)) == package.sha256
    assert "damaged" in capsys.readouterr().err


def test_without_an_index_the_message_names_the_missing_wheel_and_where_to_put_it(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    with pytest.raises(BadInput, match=r"could not download litlab-fixture==1.0 .* or put litlab_fixture-1.0.* into"):
        fetch(package)


def test_a_list_of_packages_is_read_in_its_order(tmp_path: Path) -> None:
    file = tmp_path / "packages.txt"
    file.write_text(
        "# wheel, sha256, licence\nb_c-1.0.post1-py3-none-any.whl 12ab MIT\n# more\na-2-py2.py3-none-any.whl 34 BSD or MIT\n"
    )
    assert read_package_list(file) == [
        (Package("b-c", "1.0.post1", "b_c-1.0.post1-py3-none-any.whl", "12ab"), "MIT"),
        (Package("a", "2", "a-2-py2.py3-none-any.whl", "34"), "BSD or MIT"),
    ]


@pytest.fixture
def packages(package: Package) -> list[Package]:
    """Five wheels in that index."""
    names = ("fixture_0", "fixture_1", "fixture_2", "fixture.3", "fixture_4")
    wheels = [write_wheel(Path(os.environ["PIP_FIND_LINKS"]), "py3-none-any", name=name) for name in names]
    return [package_of(wheel.name, sha256_of(wheel)) for wheel in wheels]


def test_many_wheels_are_returned_in_order_whether_cached_or_not(
    packages: list[Package], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wheels, "PER_PIP", 2)
    there = fetch(packages[2])
    capsys.readouterr()
    paths = fetch_all(packages, tmp_path)
    assert [(path.name, sha256_of(path)) for path in paths] == [(one.wheel, one.sha256) for one in packages]
    assert paths[2] == there
    said = capsys.readouterr().err
    assert said.count("fetching 2 packages from") == 1 and said.count("fetching fixture") == 2  # one is cached


@pytest.mark.parametrize("colour", ["0", "1"])
def test_packages_missing_from_the_index_are_named_and_the_others_are_downloaded(
    packages: list[Package], tmp_path: Path, colour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", colour)
    for gone in (packages[0], packages[3]):
        (Path(os.environ["PIP_FIND_LINKS"]) / gone.wheel).unlink()
    message = (
        r"2 of 5 packages are unavailable \(fixture-0==1\.0, fixture\.3==1\.0\): pip could not download fixture-0==1\.0 "
        r"\(Could not find .*\): check the network .* put fixture_0-1\.0-.* into .*; or remove those that no index serves from"
    )
    with pytest.raises(BadInput, match=message):
        fetch_all(packages, tmp_path)
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert len(fetch_all([packages[i] for i in (1, 2, 4)], tmp_path)) == 3


def test_if_all_downloads_fail_only_a_few_are_tried(
    packages: list[Package], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    monkeypatch.setattr(wheels, "MAX_FAILED", 2)
    with pytest.raises(
        BadInput, match=r"at least 2 of 5 packages are unavailable \(fixture-0==1\.0, fixture-1==1\.0\)"
    ):
        fetch_all(packages, tmp_path)
    assert capsys.readouterr().err.count("from the package index") == 3  # all at once, then two one by one


def test_one_wrong_file_among_many_is_refused(packages: list[Package], tmp_path: Path) -> None:
    packages[1] = dataclasses.replace(packages[1], sha256="0" * 64)
    with pytest.raises(BadInput, match=r"served a fixture_1-1.0-py3-none-any.whl with sha256 .*: it was not kept"):
        fetch_all(packages, tmp_path)
