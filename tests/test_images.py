"""Reading images: folders, JPEG strings laid end to end, CIFAR-10, and everything that can be wrong with them."""

import io
import sys

import numpy as np
import pytest

from mintage.data.images import CIFAR10, read_cifar10, read_images
from mintage.errors import UserError

Image = pytest.importorskip("PIL.Image")


def picture(seed=0, size=(8, 6), mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def jpeg(seed, size=(8, 8)):
    buffer = io.BytesIO()
    picture(seed, size).save(buffer, "JPEG")
    return buffer.getvalue()


def write_npz(path, count, **arrays):
    strings = [jpeg(i) for i in range(count)]
    offsets = np.cumsum([0, *map(len, strings)])
    np.savez(path, **({"jpeg": np.frombuffer(b"".join(strings), np.uint8), "offsets": offsets} | arrays))
    return path


@pytest.fixture
def folder(tmp_path):
    for place, name in enumerate(["cat/b.png", "cat/a.png", "dog/c.png"]):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(place).save(path)
    return tmp_path / "pictures"


# -- folders -------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_in_order_with_its_sub_folders_as_classes(folder):
    images = read_images(folder)
    assert [name.split("/")[-1] for name in images.names] == ["a.png", "b.png", "c.png"]
    assert images.classes == ("cat", "dog")
    assert images.labels.tolist() == [0, 0, 1]
    assert np.array_equal(images.pixels[1], np.asarray(picture(0)))
    assert images.stacked().shape == (3, 6, 8, 3)


def test_an_image_beside_the_sub_folders_leaves_all_without_a_class(folder):
    picture(7).save(folder / "loose.png")
    images = read_images(folder)
    assert len(images) == 4
    assert images.labels is None
    assert images.classes == ()


def test_one_image_and_other_modes_are_rgb(tmp_path):
    picture(1, mode="L").save(tmp_path / "grey.PNG")
    images = read_images(tmp_path / "grey.PNG")
    assert images.pixels[0].shape == (6, 8, 3)
    assert images.labels is None


def test_a_broken_image_is_named_or_skipped_by_choice(folder):
    (folder / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff not an image")
    with pytest.raises(UserError, match=r"broken\.jpg is not a readable image") as caught:
        read_images(folder)
    assert "\n" not in str(caught.value)
    images = read_images(folder, on_error="skip")
    assert len(images) == 3
    assert images.labels.tolist() == [0, 0, 1]
    assert [name.split("/")[-1] for name in images.skipped] == ["broken.jpg"]


def test_a_truncated_image_is_broken(tmp_path):
    (tmp_path / "half.jpg").write_bytes(jpeg(0, (64, 64))[:400])
    with pytest.raises(UserError, match=r"half\.jpg"):
        read_images(tmp_path)
    with pytest.raises(UserError, match="none of the 1 images"):
        read_images(tmp_path, on_error="skip")


def test_a_limit_is_spread_over_the_whole(tmp_path):
    for i in range(10):
        picture(i).save(tmp_path / f"{i}.png")
    assert [name[-5] for name in read_images(tmp_path, limit=3).names] == ["0", "3", "6"]
    assert len(read_images(tmp_path, limit=99)) == 10


def test_images_of_different_sizes_do_not_stack(tmp_path):
    picture(0, (8, 8)).save(tmp_path / "a.png")
    picture(0, (9, 8)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match="2 different sizes"):
        read_images(tmp_path).stacked()


def test_bad_sources_are_told(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_images(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no images"):
        read_images(tmp_path)
    with pytest.raises(UserError, match="'refuse' or 'skip'"):
        read_images(tmp_path, on_error="ignore")
    with pytest.raises(UserError, match="limit=0"):
        read_images(tmp_path, limit=0)


def test_pillow_is_named_where_it_is_missing(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UserError, match=r"mintage\[vision\]"):
        read_images(folder)


# -- JPEG strings end to end ---------------------------------------------------------------------------------------


def test_strings_end_to_end_keep_labels_and_split(tmp_path):
    path = write_npz(
        tmp_path / "x.npz", 4, labels=np.array([3, 1, 2, 0], np.uint8), is_test=np.array([0, 1, 0, 0]),
        classes=np.array(list("abcd")),
    )  # fmt: skip
    images = read_images(path)
    assert images.names[2] == "x.npz#2"
    assert images.labels.tolist() == [3, 1, 2, 0]
    assert images.is_test.tolist() == [False, True, False, False]
    assert images.classes == tuple("abcd")
    assert np.array_equal(images.pixels[3], np.asarray(Image.open(io.BytesIO(jpeg(3)))))
    part = images.take([3, 0])
    assert part.labels.tolist() == [0, 3]
    assert part.names == ["x.npz#3", "x.npz#0"]


def test_names_of_single_images_name_the_classes(tmp_path):
    path = write_npz(tmp_path / "x.npz", 2, labels=np.array([2, 0]), name=np.array(["tench", "goose"]))
    assert read_images(path).classes == ("goose", "", "tench")


def test_a_broken_string_is_named_or_skipped(tmp_path):
    good = jpeg(0)
    data = np.frombuffer(good + b"junk" + good, np.uint8)
    offsets = np.array([0, len(good), len(good) + 4, 2 * len(good) + 4])
    np.savez(tmp_path / "x.npz", jpeg=data, offsets=offsets, labels=np.arange(3))
    with pytest.raises(UserError, match=r"x\.npz#1"):
        read_images(tmp_path / "x.npz")
    images = read_images(tmp_path / "x.npz", on_error="skip")
    assert images.skipped == ("x.npz#1",)
    assert images.labels.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"offsets": np.array([0, 10**9])}, "offsets do not divide"),
        ({"offsets": np.array([5, 2, 1])}, "offsets do not divide"),
        ({"labels": np.arange(3)}, "3 labels for 2 images"),
        ({"is_test": np.zeros(5, bool)}, "5 is_test for 2 images"),
    ],
)
def test_damaged_tables_are_told(tmp_path, arrays, message):
    with pytest.raises(UserError, match=message):
        read_images(write_npz(tmp_path / "x.npz", 2, **arrays))


def test_files_that_are_something_else_are_told(tmp_path):
    np.savez(tmp_path / "other.npz", pixels=np.zeros(3))
    with pytest.raises(UserError, match="holds pixels; expected jpeg and offsets"):
        read_images(tmp_path / "other.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(UserError, match=r"cannot read .*text\.npz"):
        read_images(tmp_path / "text.npz")


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "x.npz", jpeg=np.array([{"a": 1}], dtype=object), offsets=np.arange(2))
    with pytest.raises(UserError, match="cannot read"):
        read_images(tmp_path / "x.npz")


# -- CIFAR-10 ------------------------------------------------------------------------------------------------------


def test_cifar10_joins_both_files_and_keeps_the_test_images_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("MINTAGE_DATA", str(tmp_path))
    monkeypatch.setenv("MINTAGE_CACHE", str(tmp_path / "cache"))
    classes = np.array(CIFAR10)
    write_npz(tmp_path / "cifar10_jpeg.npz", 3, labels=np.arange(3), is_test=np.array([0, 1, 0]), classes=classes)
    with pytest.raises(UserError, match=r"cifar10_train_rest_jpeg\.npz is not on this machine"):
        read_cifar10()
    rest = tmp_path / "cifar10_train_rest_jpeg.npz"
    write_npz(rest, 2, labels=np.array([8, 9]), is_test=np.zeros(2), classes=classes)
    train, test = read_cifar10()
    assert train.labels.tolist() == [0, 2, 8, 9]
    assert test.labels.tolist() == [1]
    assert test.names == ["cifar10_jpeg.npz#1"]
    assert train.classes == test.classes == CIFAR10
    write_npz(rest, 2, labels=np.array([8, 9]), is_test=np.zeros(2), classes=np.array(["x"]))
    with pytest.raises(UserError, match="is not CIFAR-10"):
        read_cifar10()


def test_without_a_data_folder_the_next_step_is_told(monkeypatch, tmp_path):
    monkeypatch.delenv("MINTAGE_DATA", raising=False)
    monkeypatch.setenv("MINTAGE_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'mintage\[data\]' .* or mintage data get cifar10 --from FOLDER"):
        read_cifar10()


def test_without_a_data_folder_the_hub_is_read(monkeypatch, tmp_path):
    monkeypatch.setenv("MINTAGE_CACHE", str(tmp_path))

    class Hub:
        @staticmethod
        def load_dataset(name, split):
            assert name == "uoft-cs/cifar10"
            return {"img": [picture(i, (32, 32)) for i in range(2)], "label": [4, 5 if split == "test" else 6]}

    monkeypatch.delenv("MINTAGE_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", Hub)
    train, test = read_cifar10()
    assert train.labels.tolist() == [4, 6]
    assert test.labels.tolist() == [4, 5]
    assert train.stacked().shape == (2, 32, 32, 3)
