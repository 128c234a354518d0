"""Image files of every kind and condition, and folders of them."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trials import images
from trials.data import prepare
from trials.datasets import DatasetSource, left_aside, list_images
from trials.errors import DatasetError
from trials.images import FolderContent, fitted, read_folder, read_image, resized, splined, squared

RGB = (3, 8, 8)


def gradient(side: int = 8) -> Image.Image:
    """A colour picture that no flip or rotation leaves as it is."""
    y, x = np.mgrid[:side, :side] * (255 // (side - 1))
    return Image.fromarray(np.stack([y, x, (x + y) // 2], axis=-1).astype(np.uint8))


def channels_first(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)


def read(folder: Path, shape: tuple[int, int, int] = RGB) -> tuple[np.ndarray, FolderContent]:
    """The images that are used, and the rest."""
    files = list_images(folder)
    out = np.zeros((len(files), *shape), np.uint8)
    content = read_folder(folder, files, out)
    return out[: len(content.labels)], content


def fill(folder: Path, n: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        gradient().save(folder / f"good{i:03}.png")
    return folder


# One file


@pytest.mark.parametrize("suffix", ["png", "PNG", "ppm", "webp", "jpg"])
def test_formats_come_as_they_were_saved(suffix: str, tmp_path: Path) -> None:
    picture, path = gradient(), tmp_path / f"a.{suffix}"
    picture.save(path, lossless=True)  # read by WEBP alone
    close = 40 if suffix == "jpg" else 0
    assert np.abs(read_image(path, RGB).astype(int) - channels_first(picture)).max() <= close
    assert np.array_equal(
        read_image(tmp_path / path.name, (1, 8, 8))[0], np.asarray(Image.open(path).convert("L"))
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(orientation: int, tmp_path: Path) -> None:
    turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
             7: "TRANSVERSE", 8: "ROTATE_270"}  # fmt: skip
    upright = gradient(64)
    stored = upright.transpose(Image.Transpose[turns[orientation]]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95)
    difference = read_image(tmp_path / "a.jpg", (3, 64, 64)).astype(int) - channels_first(upright)
    assert np.abs(difference).mean() < 4


def test_damaged_metadata_spoils_no_picture(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xffnonsense")
    assert np.array_equal(read_image(tmp_path / "a.png", RGB), channels_first(gradient()))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_is_white(mode: str, tmp_path: Path) -> None:
    black = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    black.paste((0, 0, 0, 0), (0, 0, 4, 8))
    path = tmp_path / "a.png"
    if mode in ("P", "PA"):
        paletted = Image.new("P", (8, 8), 1)
        paletted.putpalette([10, 200, 10, 0, 0, 0])
        paletted.paste(0, (0, 0, 4, 8))
        paletted.save(path, transparency=0 if mode == "P" else bytes([0, 255]))
    else:
        black.convert(mode).save(path)
    image = read_image(path, RGB)
    assert (image[:, :, :4] == 255).all()
    assert (image[:, :, 4:] == 0).all()


def test_half_transparent_is_half_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 128)).save(tmp_path / "a.webp", lossless=True)
    assert np.abs(read_image(tmp_path / "a.webp", RGB).astype(int) - 127).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "pgm"])
def test_sixteen_bits_are_read_as_eight(suffix: str, tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    path = tmp_path / f"a.{suffix}"
    if suffix == "png":
        Image.fromarray(levels).save(path)
    else:
        path.write_bytes(b"P5 8 8 65535\n" + levels.astype(">u2").tobytes())
    assert np.array_equal(read_image(path, (1, 8, 8))[0], np.rint(levels / 257))
    assert (read_image(path, RGB) == read_image(path, (1, 8, 8))).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_other_kinds_of_pixels(mode: str, tmp_path: Path) -> None:
    picture = gradient().convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture.save(path)
    difference = read_image(path, RGB).astype(int) - channels_first(picture)
    assert np.abs(difference).mean() < (8 if mode == "CMYK" else 1e-9)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_the_first_frame_of_an_animation(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    assert (read_image(path, RGB) == np.array([255, 0, 0])[:, None, None]).all()


def test_large_photographs_keep_their_look_when_decoded_small(tmp_path: Path) -> None:
    big = gradient(256).resize((1024, 1024), Image.Resampling.BILINEAR)
    big.save(tmp_path / "a.jpg", quality=95)
    big.save(tmp_path / "a.png")
    reduced, whole = (read_image(tmp_path / name, RGB).astype(int) for name in ("a.jpg", "a.png"))
    assert np.abs(reduced - whole).max() <= 3


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def bad_files(folder: Path) -> dict[str, str]:
    """Files that are no good, and words of the reason."""
    folder.mkdir(exist_ok=True)
    gradient(64).save(folder / "whole.png")
    content = (folder / "whole.png").read_bytes()
    (folder / "whole.png").unlink()
    (folder / "truncated.png").write_bytes(content[: len(content) // 2])
    gradient(64).save(folder / "cut.jpg")
    content = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(content[: len(content) // 2])
    (folder / "text.png").write_text("this is text")
    (folder / "empty.jpg").touch()
    (folder / "bomb.png").write_bytes(png_header(50_000, 50_000))
    (folder / "large.png").write_bytes(png_header(10_000, 9_500))  # Pillow warns of this one only
    Image.new("RGB", (4, 4)).save(folder / "gif.png", format="GIF")
    (folder / "float.ppm").write_bytes(b"Pf 2 2 -1.0\n" + bytes(16))
    os.mkfifo(folder / "pipe.png")
    (folder / "broken.png").symlink_to(folder / "nowhere")
    return {
        "bomb.png": "more than 50,000,000 pixels",
        "broken.png": "no such file",
        "cut.jpg": "truncated",
        "empty.jpg": "empty",
        "float.ppm": "floating-point",
        "gif.png": "known format",
        "large.png": "10000x9500 is more than 50,000,000 pixels",
        "pipe.png": "not a file",
        "text.png": "not an image of a known format",
        "truncated.png": "truncated",
    }


def test_bad_files_are_left_out_each_with_its_reason(tmp_path: Path) -> None:
    reasons = bad_files(tmp_path)
    fill(tmp_path, 3)
    found, content = read(tmp_path)
    assert (found == channels_first(gradient())).all()
    assert len(found) == 3
    assert len(content.skipped) == len(reasons) == 10
    for line, (name, words) in zip(content.skipped, reasons.items(), strict=True):
        assert line.startswith(f"{name}: ")
        assert words in line.lower()
        assert "\n" not in line


def test_a_file_that_may_not_be_read_is_a_bad_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 3)

    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(images, "open", refuse, raising=False)
    with pytest.raises(
        DatasetError, match=r"at least 2 usable images, has 0\n  good000\.png: Permission denied"
    ):
        read(tmp_path)


@pytest.mark.parametrize(("n_good", "n_bad", "fits"), [(3, 10, True), (3, 11, False), (380, 20, True),
                                                       (379, 21, False)])  # fmt: skip
def test_more_bad_files_than_a_twentieth_are_refused(
    n_good: int, n_bad: int, fits: bool, tmp_path: Path
) -> None:
    for i in range(n_good):
        Image.new("L", (1, 1)).save(tmp_path / f"{i:03}.pgm")
    for i in range(n_bad):
        (tmp_path / f"bad{i:02}.png").touch()
    if fits:
        assert len(read(tmp_path)[1].skipped) == n_bad
        return
    with pytest.raises(DatasetError) as raised:
        read(tmp_path)
    lines = str(raised.value).splitlines()
    assert f"more than {max(10, (n_good + n_bad) // 20)} of {n_good + n_bad} images are unusable" in lines[0]
    assert lines[1:] == [f"  bad{i:02}.png: empty" for i in range(10)]


# Folders


def test_hidden_and_foreign_files_are_no_images(tmp_path: Path) -> None:
    fill(tmp_path / "deep" / "er", 2)
    fill(tmp_path / ".hidden", 2)
    (tmp_path / "._good.png").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder.png").mkdir()
    assert [file.path for file in list_images(tmp_path)] == ["deep/er/good000.png", "deep/er/good001.png"]


def test_a_folder_without_images_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DatasetError, match=r"no images in .*looked for \.png, \.jpg"):
        list_images(tmp_path)


def test_images_of_kinds_that_are_not_read_are_counted_and_told(tmp_path: Path) -> None:
    for name in ("a.gif", "b.GIF", "deep/c.tiff", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    told = [
        f"{n} of kind {kind}, which is not read: PNG or JPEG is" for n, kind in ((2, ".gif"), (1, ".tiff"))
    ]
    assert left_aside(tmp_path) == told
    with pytest.raises(DatasetError, match=r"no images in .*; 2 of kind \.gif"):
        list_images(tmp_path)
    fill(tmp_path, 2)
    prepared = prepare(
        DatasetSource(folder=str(tmp_path), size=8), cache_dir=tmp_path / "cache", data_dir=tmp_path
    )
    assert (prepared.n_images, list(prepared.skipped)) == (2, told)
    (tmp_path / "a.gif").unlink()
    again = prepare(
        DatasetSource(folder=str(tmp_path), size=8), cache_dir=tmp_path / "cache", data_dir=tmp_path
    )
    assert again.skipped[0].startswith("1 of kind .gif")


def test_subfolders_are_classes_when_all_images_lie_in_them(tmp_path: Path) -> None:
    fill(tmp_path / "b" / "c", 2)
    fill(tmp_path / "a", 3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "only_bad").mkdir()
    (tmp_path / "only_bad" / "x.png").touch()
    _, content = read(tmp_path)
    assert (content.labels.tolist(), content.n_classes) == ([0, 0, 0, 1, 1], 2)
    gradient().save(tmp_path / "loose.png")
    _, content = read(tmp_path)
    assert (content.labels.tolist(), content.n_classes) == ([0] * 6, 0)


@pytest.mark.parametrize(("n", "classes"), [(255, 255), (256, 0)])
def test_at_most_255_classes(n: int, classes: int, tmp_path: Path) -> None:
    for i in range(n):
        (tmp_path / f"{i:03}").mkdir()
        Image.new("L", (1, 1)).save(tmp_path / f"{i:03}" / "a.pgm")
    _, content = read(tmp_path)
    assert content.n_classes == classes
    assert content.labels.tolist() == (list(range(n)) if classes else [0] * n)


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    fill(tmp_path / "outside", 2)
    root = fill(tmp_path / "root" / "real", 2).parent
    (root / "linked").symlink_to(tmp_path / "outside")
    (root / "again").symlink_to(root / "real")
    (root / "real" / "up").symlink_to(root)
    (tmp_path / "outside" / "there").symlink_to(root)
    (root / "itself").symlink_to(root / "itself")
    (root / "itself.png").symlink_to(root / "itself.png")
    assert [file.path for file in list_images(root)] == [
        "itself.png", "linked/good000.png", "linked/good001.png", "real/good000.png", "real/good001.png",
    ]  # fmt: skip


def test_names_that_are_no_text_are_told_as_escapes(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    (tmp_path / os.fsdecode(b"\xff\n\x1b[31m.png")).touch()
    _, content = read(tmp_path)
    assert content.skipped == (r"\udcff\n\x1b[31m.png: empty",)


def test_a_folder_that_may_not_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "a", 2)

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DatasetError, match="cannot be read: Permission denied"):
        list_images(tmp_path)


def test_progress_ends_with_all(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    files, steps = list_images(tmp_path), list[tuple[int, int]]()
    out = np.zeros((5, *RGB), np.uint8)
    read_folder(tmp_path, files, out, progress=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (5, 5)
    assert steps == sorted(steps)


# Shapes


@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    size=st.integers(4, 24),
    channels=st.sampled_from([1, 3]),
)
def test_any_size_becomes_the_shape_and_one_colour_stays_it(
    width: int, height: int, size: int, channels: int
) -> None:
    picture = Image.new("RGB", (width, height), (90, 90, 90))
    image = fitted(picture, (channels, size, size))
    assert image.shape == (channels, size, size)
    assert image.dtype == np.uint8
    assert (image == 90).all()


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1), (1, 200_000), (3, 7)])
def test_extreme_strips(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size, "teal").save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", (3, 32, 32))
    assert (image == np.array([0, 128, 128])[:, None, None]).all()


def test_a_picture_lies_in_the_middle_of_its_square() -> None:
    rng = np.random.default_rng(0)
    for height, width in ((5, 12), (12, 5), (1, 6), (6, 1), (7, 8)):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        padded = squared(image)
        side = max(height, width)
        assert padded.shape == (side, side, 3)
        top, left = (side - height) // 2, (side - width) // 2
        assert np.array_equal(padded[top : top + height, left : left + width], image)


def test_the_padding_reflects_and_fades_into_the_mean_of_the_border() -> None:
    image = np.random.default_rng(0).integers(0, 256, (10, 20), dtype=np.uint8)
    padded = squared(image).astype(float)  # 5 rows above and below
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).mean()
    for distance in range(1, 6):
        for row, mirrored in ((5 - distance, distance - 1), (14 + distance, 10 - distance)):
            fade = distance / 5
            expected = (1 - fade) * image[mirrored] + fade * border
            assert np.abs(padded[row] - expected).max() <= 0.51


def test_a_square_of_the_right_size_is_left_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 16, 16), dtype=np.uint8)
    assert np.array_equal(resized(image, (3, 16, 16)), image)
    assert np.array_equal(resized(image[:1], (3, 16, 16)), image[[0, 0, 0]])


def test_shrinking_averages_and_does_not_pick() -> None:
    stripes = np.zeros((1, 64, 64), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(resized(stripes, (1, 8, 8)).astype(int) - 128)[:, 1:-1, 1:-1].max() <= 8


def test_colour_becomes_grey_by_luma() -> None:
    pure = np.zeros((3, 3, 3), np.uint8)
    pure[range(3), :, range(3)] = 255  # column c is pure colour c
    assert resized(pure, (1, 3, 3))[0, 0].tolist() == [76, 150, 29]


@given(size=st.integers(2, 100))
def test_splines_give_any_size_and_meet_the_corners(size: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    small = splined(image, size)
    assert small.shape == (3, size, size)
    corner = np.ix_(range(3), (0, -1), (0, -1))
    assert np.array_equal(small[corner], image[corner])
