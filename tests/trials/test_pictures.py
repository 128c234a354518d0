"""Grids, captions, PNG and GIF files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from trials.pictures import (
    GREY,
    MAX_FRAMES,
    MAX_SIDE,
    animate,
    captioned,
    cells,
    evenly,
    grid,
    pairs,
    write_gif,
    write_png,
)


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def read_gif(path: Path) -> tuple[list[NDArray[np.uint8]], list[int]]:
    """Its frames (H, W, 3), and for how many milliseconds each is shown."""
    with Image.open(path) as image:
        assert image.format == "GIF"
        assert image.info["loop"] == 0
        frames = [
            (np.asarray(frame.convert("RGB")), frame.info["duration"])
            for frame in ImageSequence.Iterator(image)
        ]
    return [frame for frame, _ in frames], [ms for _, ms in frames]


@given(
    n=st.integers(1, 20), channels=st.sampled_from([1, 3]), side=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    columns=st.none() | st.integers(1, 12), repeated=st.integers(1, 2),
)  # fmt: skip
def test_cells_reads_back_what_grid_laid_out(
    n: int, channels: int, side: tuple[int, int], columns: int | None, repeated: int
) -> None:
    # Images of repeated pixels, as a growing net makes them, look like larger pixels of smaller images.
    images = noise(n, channels, *side).repeat(repeated, 2).repeat(repeated, 3)
    sheet = grid(images, columns=columns)
    found = cells(sheet, 4)
    assert min(4, n) <= len(found) <= 4  # the last row may have empty cells
    for cell, image in zip(found, images, strict=False):
        factor = cell.shape[0] // image.shape[1]
        expected = np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3))
        assert np.array_equal(cell, expected.repeat(factor, 0).repeat(factor, 1))


def test_cells_of_black_and_of_smooth_images_are_told_too() -> None:
    ramp = np.linspace(0, 255, 28).astype(np.uint8)
    images = np.stack(
        [
            np.zeros((1, 28, 28), np.uint8),
            np.full((1, 28, 28), 255, np.uint8),
            ramp[None, None] * np.ones((1, 28, 1), np.uint8),
        ]
    )
    black, white, smooth = cells(grid(images), 3)
    assert black.max() == 0
    assert white.min() == 255
    assert np.array_equal(np.unique(smooth), ramp)


def test_a_sheet_of_grey_images_is_no_reason_to_fail() -> None:
    sheet = grid(np.full((16, 1, 28, 28), GREY, np.uint8))
    assert all((cell == GREY).all() for cell in cells(sheet, 4))
    nothing = noise(50, 50, 3)
    assert np.array_equal(cells(nothing, 4)[0], nothing)


@given(n=st.integers(1, 300), most=st.integers(1, 60))
def test_what_is_chosen_evenly_has_the_ends_and_no_gaps(n: int, most: int) -> None:
    chosen = evenly(range(n), most)
    assert len(chosen) == min(n, most)
    assert chosen[-1] == n - 1
    if len(chosen) > 1:
        gaps = np.diff(chosen)
        assert chosen[0] == 0
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1  # each is within half a place of where it should be


def test_captions_stand_on_white_around_the_unchanged_picture() -> None:
    picture = noise(120, 200, 3)
    plain = captioned(picture)
    assert np.array_equal(plain, picture)
    full = captioned(picture, title="a title", rows=["one", "two"], columns=["1", "2", "3"])
    assert np.array_equal(full[-120:, -200:], picture)
    margin = full.shape[0] - 120, full.shape[1] - 200
    assert margin[0] >= 40  # two lines
    assert margin[1] >= 25
    left = full[-120:, : margin[1]]
    above = full[: margin[0], -200:]
    assert (full[-120:, margin[1] - 3 : margin[1]] == 255).all()  # letters do not touch the picture
    for half in np.split(left, 2):
        assert half.min() < 100  # a caption for each row
    for third in np.array_split(above[-21:], 3, axis=1):
        assert third.min() < 100


def test_a_title_wider_than_the_picture_is_not_cut_off() -> None:
    wide = captioned(noise(20, 20, 3), title="a much longer title than the picture is wide")
    assert (wide[:, -3:] == 255).all()
    assert wide.shape[1] > 200


def test_each_image_of_a_pair_stands_below_the_other() -> None:
    above = np.arange(5, dtype=np.uint8)[:, None, None, None] + np.zeros((5, 1, 8, 8), np.uint8)
    sheet = pairs(above, above + 100, [f"{i}" for i in range(5)], columns=3)
    rows = [np.unique(row[(row < 5) | ((row >= 100) & (row < 105))]) for row in sheet[..., 0]]

    # Captions have shades of their own: only rows with nothing but these values, gaps and white.
    def first(value: int) -> int:
        return next(
            i
            for i, (row, line) in enumerate(zip(rows, sheet[..., 0], strict=True))
            if value in row and (line == value).sum() > 8
        )

    assert first(0) < first(100) < first(3) < first(103)
    columns = [int(np.flatnonzero((sheet[first(value)] == value).all(axis=1))[0]) for value in (1, 101)]
    assert columns[0] == columns[1]


def test_grey_frames_keep_every_brightness_and_the_last_is_held(tmp_path: Path) -> None:
    frames = [np.broadcast_to(noise(32, 40, 1, seed=i), (32, 40, 3)) for i in range(5)]
    write_gif(tmp_path / "a.gif", frames, ms=120, last_ms=1500)
    shown, ms = read_gif(tmp_path / "a.gif")
    assert all(np.array_equal(a, b) for a, b in zip(shown, frames, strict=True))
    assert ms == [120] * 4 + [1500]


def test_colour_frames_share_one_palette_that_suits_them_all(tmp_path: Path) -> None:
    tints = np.array([(200, 30, 30), (30, 200, 30), (30, 30, 200)])
    frames = [(noise(40, 40, 1, seed=i) * (tint / 255)).astype(np.uint8) for i, tint in enumerate(tints)]
    write_gif(tmp_path / "a.gif", frames)
    shown, _ = read_gif(tmp_path / "a.gif")
    colours = np.unique(np.concatenate([frame.reshape(-1, 3) for frame in shown]), axis=0)
    assert len(colours) <= 256
    for made, true in zip(shown, frames, strict=True):
        # Dithering moves single pixels, and leaves the mean of an area nearly where it was.
        assert np.abs(made.mean((0, 1)) - true.mean((0, 1))).max() < 4
        assert 0 < np.abs(made.astype(int) - true).mean() < 20


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    write_png(path, noise(8, 8, 3))
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_png(path, np.zeros((8, 8, 7), np.uint8))
    assert path.read_bytes() == before


def test_an_animation_has_few_small_frames_the_first_and_the_last_among_them(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(90)]
    for i, path in enumerate(paths):
        write_png(path, np.full((300, 620, 3), 2 * i, np.uint8))
    assert animate(tmp_path / "a.gif", paths)
    frames, ms = read_gif(tmp_path / "a.gif")
    assert len(frames) == MAX_FRAMES
    assert max(frames[0].shape) == MAX_SIDE
    assert [frame[0, 0, 0] for frame in (frames[0], frames[-1])] == [0, 178]
    assert set(ms[:-1]) == {120}  # 125 cut to hundredths of a second: 8 a second
    assert ms[-1] == 1500


def test_nothing_is_animated_with_fewer_than_two_pictures(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", noise(8, 8, 3))
    assert not animate(tmp_path / "a.gif", [tmp_path / "a.png"])
    assert not animate(tmp_path / "a.gif", [])
    assert not (tmp_path / "a.gif").exists()


def test_pictures_of_another_size_than_the_last_are_left_out_of_an_animation(tmp_path: Path) -> None:
    for i, side in enumerate((8, 16, 16)):
        write_png(tmp_path / f"{i}.png", noise(side, side, 3, seed=i))
    assert animate(tmp_path / "a.gif", [tmp_path / f"{i}.png" for i in range(3)])
    assert [frame.shape for frame in read_gif(tmp_path / "a.gif")[0]] == [(16, 16, 3)] * 2
