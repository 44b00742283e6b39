"""tensorflow-datasets and what it needs: quiet, imported, and known to work."""

import contextlib
import io
import logging
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cutnmix_jax import process
from cutnmix_jax.errors import installation
from cutnmix_jax.streams import handlers_kept

_BUILDING = threading.Lock()  # standard output belongs to the process


@contextlib.contextmanager
def quiet(level: int = logging.ERROR) -> Iterator[None]:
    """Silences absl's log below a level: tfds reports every step, and that OpenCV would decode faster."""
    import absl.logging  # noqa: F401  which makes the logger of a class of its own

    with process.quieter("absl", level), handlers_kept():
        yield


def imported() -> Any:
    """The package `tensorflow_datasets`, once all that it reads records with is imported.

    Raises:
      UsageError: some of it cannot be imported.
    """
    try:
        with quiet(logging.FATAL):
            import tensorflow_datasets as tfds
            import tree  # type: ignore[import-untyped] # noqa: F401
            from array_record.python import array_record_module  # type: ignore[import-untyped] # noqa: F401
            from PIL import Image  # noqa: F401
            from tensorflow_datasets import public_api  # noqa: F401  # raises what the import of tfds itself only logs
    except Exception as error:
        raise installation(error) from error
    return tfds


def build(builder: Any, download_dir: Path | None = None, **config: Any) -> None:
    """Has a builder of tfds write its data set, by its `DownloadConfig`; only a terminal is shown how far it is."""
    import tensorflow_datasets as tfds

    chosen = tfds.download.DownloadConfig(try_download_gcs=False, **config)
    with _BUILDING, contextlib.redirect_stdout(io.StringIO()):
        before = getattr(tfds.core.utils.tqdm_utils, "_active", True)  # there is no other way to ask
        tfds.display_progress_bar(sys.stderr.isatty())
        try:
            builder.download_and_prepare(download_dir=download_dir, download_config=chosen)
        finally:
            tfds.display_progress_bar(before)


def png(image: np.ndarray) -> io.BytesIO:
    """An image [H, W, 3] uint8 as an open file of PNG, which tfds stores as it is; an array needs TensorFlow."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    stream.seek(0)
    return stream


def failure() -> Exception | None:
    """What tfds raises when it writes one image and reads it again; None where it does both. A tenth of a second.

    A library that is broken, or of a version that does not fit, raises on whole records what others raise on damaged
    ones.
    """
    try:
        _write_and_read()
    except OSError:  # a full disk tells nothing of the libraries
        return None
    except Exception as error:
        return error
    return None


def _write_and_read() -> None:
    import tensorflow_datasets as tfds

    class Probe(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """One image with the features of CIFAR."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            image = tfds.features.Image(shape=(32, 32, 3))
            features = {"id": tfds.features.Text(), "image": image, "label": tfds.features.ClassLabel(names=["a"])}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            yield 0, {"id": "train_00000", "image": png(np.zeros((32, 32, 3), np.uint8)), "label": 0}

    with tempfile.TemporaryDirectory() as folder:
        written = Probe(data_dir=folder, file_format="array_record")
        build(written)
        read = tfds.builder_from_directory(written.data_path).as_data_source("train")
        read.__getitems__([0])
