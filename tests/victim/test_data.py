"""Every source keeps its promises: balanced, disjoint, in range, and errors that name the
remedy.
"""

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import Dataset

from simudy.errors import SimudyError
from simudy.victim import data
from simudy.victim.data import (
    Cifar10,
    Faces,
    Folder,
    ImageSet,
    Normalisation,
    Npz,
    Pool,
    TorchDataset,
    split,
)

CONF = Path(__file__).parents[2] / "conf" / "data"
SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_cifar = pytest.mark.skipif(
    not (SHARED / "cifar-10-batches-bin").is_dir(), reason="CIFAR-10 is not here"
)


def hashes(images: ImageSet) -> set[str]:
    return {sha256(image.numpy().tobytes()).hexdigest() for image in images.images}


def counts(images: ImageSet) -> list[int]:
    return torch.bincount(images.labels, minlength=len(images.classes)).tolist()


def check(splits: data.Splits, n: int, heldout: int) -> None:
    """What is true of every source."""
    assert (len(splits.victim), len(splits.heldout)) == (n, heldout)
    for part in filter(None, (splits.victim, splits.heldout, splits.pretrain)):
        assert part.images.dtype == torch.float32 and part.labels.dtype == torch.int64
        assert part.images.min() >= 0 and part.images.max() <= 1
        assert part.images.std() > 0.05
    assert not hashes(splits.victim) & hashes(splits.heldout)
    assert len(hashes(splits.victim)) == n
    assert max(counts(splits.victim)) - min(counts(splits.victim)) <= 1


def coded(n: int, classes: int, *, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images that can be told apart: image i holds i in its first value; label i mod
    classes.
    """
    images = np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)
    images.reshape(n, -1)[:, 0] = np.arange(n)
    return images, np.arange(n) % classes


def codes(images: ImageSet) -> list[int]:
    return (images.images.flatten(1)[:, 0] * 255).round().int().tolist()


# --- selection
# ------------------------------------------------------------


def pool(labels: list[int], classes: int) -> Pool:
    images = torch.arange(len(labels)).float().div(255)[:, None, None, None].expand(-1, 1, 2, 2)
    return Pool(torch.tensor(labels), tuple(map(str, range(classes))), images.__getitem__)


def test_first_of_each_class_dealt_in_turn_and_remainder_to_the_first_classes():
    source = pool([1, 1, 0, 2, 2, 2, 0, 1, 0, 0, 2, 1], 3)
    parts = split(source, source.order(None), n=4, heldout=3, pretrain=3)
    assert parts.pretrain is not None
    assert codes(parts.victim) == [2, 0, 3, 6]
    assert codes(parts.heldout) == [8, 1, 4]
    assert codes(parts.pretrain) == [9, 7, 5]


def test_classes_that_run_short_are_taken_whole_and_said(caplog):
    caplog.set_level("INFO")
    source = pool([0, 1, 1, 1, 0, 1, 1, 1], 2)
    parts = split(source, source.order(None), n=6, heldout=2)
    assert codes(parts.victim) == [0, 1, 4, 2, 3, 5] and codes(parts.heldout) == [6, 7]
    assert "data.n: the classes are uneven, 2 to 4 images of each" in caplog.messages
    with pytest.raises(
        SimudyError, match=r"Source\(heldout=3\), and there are 2 images left: lower it"
    ):
        split(source, source.order(None), n=6, heldout=3)


def test_labels_that_no_image_has_are_passed_over(caplog):
    caplog.set_level("INFO")
    source = pool([7, 0, 3, 3, 0, 7, 0, 3, 7], 9)
    parts = split(source, source.order(None), n=6, heldout=3)
    assert codes(parts.victim) == [1, 2, 0, 4, 3, 5] and codes(parts.heldout) == [6, 7, 8]
    assert parts.victim.labels.tolist() == [0, 3, 7] * 2 and not caplog.messages


def test_shuffle_depends_on_the_seed_alone_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first, again, other = (Faces(shuffle=True).load(seed=s) for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.victim.images, again.victim.images)
    assert not torch.equal(first.victim.images, other.victim.images)
    assert torch.equal(Faces().load(seed=1).victim.images, Faces().load(seed=2).victim.images)
    check(first, 20, 20)


def test_labels_outside_the_classes_are_refused():
    for labels in ([0, 3], [-1, 0], []):
        with pytest.raises(SimudyError):
            pool(labels, 3)


# --- normalisation
# ------------------------------------------------------------


def test_normalisation_is_inverted_exactly_and_standardises():
    images = (
        torch.rand(7, 3, 5, 4, dtype=torch.float64) * torch.tensor([0.2, 0.5, 1.0])[:, None, None]
    )
    norm = Normalisation.of(images)
    values = norm.normalise(images)
    torch.testing.assert_close(norm.denormalise(values), images, rtol=0, atol=1e-15)
    torch.testing.assert_close(
        values.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        values.std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64)
    )
    torch.testing.assert_close(norm.normalise(images[0]), values[0])
    assert Normalisation.of(torch.ones(2, 1, 3, 3)) == Normalisation((1.0,), (1.0,))


def test_normalisation_is_measured_on_the_heldout_images():
    parts = Faces().load(seed=0)
    assert parts.normalisation == Normalisation.of(parts.heldout.images)
    assert parts.normalisation != Normalisation.of(parts.victim.images)


# --- faces
# ------------------------------------------------------------


def test_faces():
    parts = Faces().load(seed=0)
    check(parts, 20, 20)
    assert parts.victim.shape == (1, 25, 25) and parts.victim.classes == ("face", "not a face")
    assert counts(parts.victim) == counts(parts.heldout) == [10, 10]
    check(Faces(n=3, heldout=80, size=16).load(seed=0), 3, 80)
    assert Faces(n=3, size=16).load(seed=0).victim.shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("source", "remedy"),
    [
        (Faces(n=202), r"Source\(n=\d+\), and there are \d+ images left"),
        (Faces(n=120), r"Source\(heldout=\d+\), and there are \d+ images left"),
        (Faces(n=0), r"Source\(n=0\): give"),
        (Faces(heldout=0), r"set Source\(heldout=1\)"),
        (Faces(heldout=-1), r"Source\(heldout=-1\): give 0"),
        (Faces(size=0), r"Source\(size=0\): give"),
    ],
)
def test_faces_errors(source: Faces, remedy: str):
    with pytest.raises(SimudyError, match=remedy):
        source.load(seed=0)


# --- CIFAR-10
# ------------------------------------------------------------


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """A tiny CIFAR-10: 100 records, class i mod 10, plane order as in the original."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    images, labels = coded(100, 10, shape=(3, 32, 32))
    records = np.concatenate([labels[:, None].astype(np.uint8), images.reshape(100, -1)], 1)
    (folder / "data_batch_1.bin").write_bytes(records.tobytes())
    names = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    (folder / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    return tmp_path


def tiny(root: Path, **options: Any) -> Cifar10:
    layout: dict[str, Any] = {
        "victim_records": (0, 40),
        "heldout_records": (40, 80),
        "pretrain_records": (80, 100),
    }
    return Cifar10(str(root), **(layout | options))


def test_cifar_reads_planes_and_ranges(cifar: Path):
    parts = tiny(cifar).load(seed=0)
    check(parts, 20, 20)
    assert parts.pretrain is not None
    assert codes(parts.victim) == list(range(20)) and codes(parts.heldout) == list(range(40, 60))
    assert codes(parts.pretrain) == list(range(80, 100))
    images, _ = coded(100, 10, shape=(3, 32, 32))
    assert torch.equal(parts.victim.images[7] * 255, torch.tensor(images[7]).float())
    assert parts.victim.classes[8] == "ship"
    assert parts.normalisation.mean == (0.4914, 0.4822, 0.4465)


def test_cifar_options(cifar: Path):
    parts = tiny(
        cifar, n=5, heldout=6, size=16, grey=True, binary=True, pretrain_records=None
    ).load(seed=0)
    assert parts.pretrain is None and parts.victim.shape == (1, 16, 16)
    assert parts.victim.classes == ("vehicle", "animal")
    assert counts(parts.victim) == [3, 2] and counts(parts.heldout) == [3, 3]
    assert len(parts.normalisation.mean) == 1
    first = tiny(cifar, n=5, binary=True).load(seed=0).victim
    assert codes(first) == [0, 2, 1, 3, 8]  # airplane, bird, automobile, cat, ship
    assert codes(tiny(cifar / "cifar-10-batches-bin").load(seed=0).victim) == list(range(20))


def test_grey_is_luma_and_resize_averages():
    colours = torch.eye(3)[:, :, None, None].expand(-1, -1, 4, 4)
    luma = torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(data.to_grey(colours)[:, 0, 0, 0], luma)
    stripes = (
        (torch.arange(16) % 4 == 0).float().expand(1, 1, 16, 16)
    )  # sampling without averaging would miss them
    torch.testing.assert_close(
        data.resize(stripes, 4)[..., 1:3], torch.full((1, 1, 4, 2), 0.25), rtol=0, atol=0.05
    )
    assert data.resize(stripes, 16) is stripes and data.resize(stripes, None) is stripes


def damage(folder: Path, kind: str) -> None:
    batch = folder / "data_batch_1.bin"
    whole = batch.read_bytes()
    if kind == "truncated":
        batch.write_bytes(whole[:-100])
    elif kind == "empty":
        batch.write_bytes(b"")
    elif kind == "label":
        batch.write_bytes(b"\x0a" + whole[1:])
    elif kind == "names":
        (folder / "batches.meta.txt").unlink()
    else:
        batch.unlink()


@pytest.mark.parametrize("kind", ["truncated", "empty", "label", "names", "gone"])
def test_cifar_damaged_files_name_the_remedy(cifar: Path, kind: str):
    tiny(cifar).load(seed=0)
    damage(cifar / "cifar-10-batches-bin", kind)
    with pytest.raises(SimudyError, match="fetch the binary version"):
        tiny(cifar).load(seed=0)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"victim_records": (0, 200)}, r"Cifar10\(victim_records="),
        ({"victim_records": (0, 10, 20)}, r"Cifar10\(victim_records="),
        ({"heldout_records": (39, 80)}, r"Cifar10\(heldout_records="),
        ({"pretrain_records": (0, 10)}, r"Cifar10\(pretrain_records="),
        ({"n": 41}, r"Source\(n=\d+\), and there are \d+ images left"),
        ({"heldout": 41}, r"Source\(heldout=\d+\), and there are \d+ images left"),
    ],
)
def test_cifar_options_that_cannot_be_met(cifar: Path, options: dict, remedy: str):
    with pytest.raises(SimudyError, match=remedy):
        tiny(cifar, **options).load(seed=0)


def test_missing_folders_name_the_setting(tmp_path: Path):
    absent = str(tmp_path / "absent")
    for source in (Cifar10(absent), Folder(absent)):
        with pytest.raises(SimudyError, match=r"set \w+\(root=…\)"):
            source.load(seed=0)
    with pytest.raises(SimudyError, match=r"set Npz\(path=…\)"):
        Npz(absent).load(seed=0)


@needs_cifar
def test_real_cifar():
    parts = Cifar10(str(SHARED), n=100, heldout=200).load(seed=0)
    check(parts, 100, 200)
    assert parts.pretrain is not None
    assert (
        counts(parts.victim) == [10] * 10
        and counts(parts.heldout) == [20] * 10
        and len(parts.pretrain) == 8000
    )
    assert not (hashes(parts.victim) | hashes(parts.heldout)) & hashes(parts.pretrain)
    assert parts.victim.labels.tolist() == [i % 10 for i in range(100)]
    assert parts.pretrain.labels.tolist() == [i % 10 for i in range(2000, 10000)]
    values = parts.normalisation.normalise(parts.pretrain.images)
    torch.testing.assert_close(values.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=0.05)
    torch.testing.assert_close(values.std((0, 2, 3)), torch.ones(3), rtol=0, atol=0.05)


# --- folder, npz, torch
# ------------------------------------------------------------


def write_pictures(
    root: Path, *, each: int, size: int = 8, suffix: str = ".png", inner: str = ""
) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (2, each, size, size, 3), dtype=np.uint8)
    for name, group in zip(("cat", "dog"), images, strict=True):
        (root / name / inner).mkdir(parents=True)
        for i, image in enumerate(group):
            Image.fromarray(image).save(root / name / inner / f"{i:03}{suffix}", format="PNG")
    return images


def test_folder_round_trip(tmp_path: Path):
    images = write_pictures(tmp_path, each=6)
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    parts = Folder(str(tmp_path), n=5, heldout=4, pretrain=2).load(seed=0)
    check(parts, 5, 4)
    assert parts.pretrain is not None and len(parts.pretrain) == 2
    assert parts.victim.classes == ("cat", "dog") and parts.victim.labels.tolist() == [
        0,
        1,
        0,
        1,
        0,
    ]
    expected = torch.tensor(images[[0, 1, 0, 1, 0], [0, 0, 1, 1, 2]]).permute(0, 3, 1, 2)
    assert torch.equal((parts.victim.images * 255).round(), expected.float())


def test_folder_in_tiny_imagenet_layout_resized_and_grey(tmp_path: Path):
    write_pictures(tmp_path, each=2, suffix=".JPEG", inner="images")
    parts = Folder(str(tmp_path), n=2, size=5, grey=True).load(seed=0)
    check(parts, 2, 2)
    assert parts.victim.shape == (1, 5, 5)


def test_folder_sizes_that_differ_ask_for_a_size(tmp_path: Path):
    write_pictures(tmp_path, each=2)
    Image.new("RGB", (9, 8), "red").save(tmp_path / "cat" / "000.png")
    with pytest.raises(SimudyError, match=r"set Folder\(size=…\)"):
        Folder(str(tmp_path), n=2).load(seed=0)
    assert Folder(str(tmp_path), n=2, size=8).load(seed=0).victim.shape == (3, 8, 8)


def test_folder_broken_or_absent_pictures(tmp_path: Path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(SimudyError, match="no pictures"):
        Folder(str(tmp_path), n=1).load(seed=0)
    (tmp_path / "cat" / "a.png").write_bytes(b"not a picture")
    with pytest.raises(SimudyError, match=r"a\.png"):
        Folder(str(tmp_path), n=1, heldout=0).load(seed=0)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3), (3, 8, 8), (1, 8, 8)])
@pytest.mark.parametrize("as_float", [False, True])
def test_npz_round_trip(tmp_path: Path, shape: tuple[int, ...], as_float: bool):
    images, labels = coded(12, 3, shape=shape)
    path = tmp_path / "mine.npz"
    np.savez(path, images=images / 255 if as_float else images, labels=labels)
    parts = Npz(str(path), n=4, heldout=3, pretrain=2).load(seed=0)
    check(parts, 4, 3)
    assert codes(parts.victim) == [0, 1, 2, 3] and codes(parts.heldout) == [6, 4, 5]
    assert parts.victim.shape == ((3 if 3 in shape else 1), 8, 8)
    expected = np.moveaxis(images[5], -1, 0) if shape[-1] == 3 else images[5].reshape(-1, 8, 8)
    held = parts.heldout.images * 255
    assert any(torch.equal(image.round(), torch.tensor(expected).float()) for image in held)


@pytest.mark.parametrize(
    ("arrays", "remedy"),
    [
        ({"images": np.zeros((4, 8, 8), np.uint8)}, "numpy.savez"),
        ({"images": np.zeros((4, 8, 8), np.int64), "labels": np.arange(4) % 2}, "uint8"),
        ({"images": np.full((4, 8, 8), 2.0), "labels": np.arange(4) % 2}, "divided by 255"),
        ({"images": np.full((4, 8, 8), np.nan), "labels": np.arange(4) % 2}, "divided by 255"),
        ({"images": np.zeros((4, 8, 8, 5), np.uint8), "labels": np.arange(4) % 2}, "c = 1 or 3"),
        (
            {"images": np.zeros((4, 8, 8), np.uint8), "labels": np.arange(3) % 2},
            "one integer per image",
        ),
        (
            {"images": np.zeros((4, 8, 8), np.uint8), "labels": np.arange(4) / 2},
            "one integer per image",
        ),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.arange(4) % 2 - 1}, "from 0"),
        ({"images": np.zeros((0, 8, 8), np.uint8), "labels": np.arange(0)}, "no image"),
    ],
)
def test_npz_errors(tmp_path: Path, arrays: dict, remedy: str):
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(SimudyError, match=remedy):
        Npz(str(tmp_path / "mine.npz"), n=2).load(seed=0)


def test_npz_that_is_no_archive(tmp_path: Path):
    (tmp_path / "mine.npz").write_bytes(b"not an archive")
    with pytest.raises(SimudyError, match=r"numpy\.savez"):
        Npz(str(tmp_path / "mine.npz")).load(seed=0)


class Listed(Dataset):
    """A torch dataset over arrays, handing out pictures of one kind."""

    def __init__(self, kind: str = "pil"):
        self.images, self.labels = coded(12, 3, shape=(8, 8, 3))
        self.kind = kind

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int):
        image = self.images[i]
        planes = torch.tensor(image).permute(2, 0, 1)
        kinds = {
            "pil": Image.fromarray(image),
            "array": image,
            "uint8": planes,
            "float": planes / 255,
        }
        return kinds[self.kind], int(self.labels[i])


@pytest.mark.parametrize("kind", ["pil", "array", "uint8", "float"])
def test_torch_dataset(kind: str):
    parts = TorchDataset(Listed(kind), n=4, heldout=3, pretrain=1).load(seed=0)
    check(parts, 4, 3)
    assert codes(parts.victim) == [0, 1, 2, 3] and parts.victim.classes == ("0", "1", "2")
    assert parts.victim.shape == (3, 8, 8)


def test_torch_dataset_converts_palettes():
    colours = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]] * 4, dtype=np.uint8))
    pictures = [(colours.convert("P"), 0), (colours.rotate(180).convert("P"), 0)]
    victim = TorchDataset(pictures, n=1).load(seed=0).victim
    assert victim.images[0, :, 0].T.tolist() == [[1, 0, 0], [0, 0, 1]]


def test_torch_dataset_takes_targets_unless_they_are_transformed():
    listed = Listed()
    listed.targets, listed.classes = [0, 0, 1] * 4, ["a", "b"]  # type: ignore[attr-defined]
    victim = TorchDataset(listed, n=4).load(seed=0).victim
    assert codes(victim) == [0, 2, 1, 5] and victim.classes == ("a", "b")
    listed.target_transform = lambda label: label  # type: ignore[attr-defined]
    assert codes(TorchDataset(listed, n=4).load(seed=0).victim) == [0, 1, 2, 3]


# --- configuration
# ------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_configuration_matches_the_source(path: Path):
    config = OmegaConf.load(path)
    missing = {str(key): "given" for key in config if OmegaConf.is_missing(config, key)}
    built = instantiate(config, **missing, _convert_="all")
    defaults = type(built)(**missing)
    assert set(config) - {"_target_"} == set(vars(defaults))
    for name, value in vars(built).items():
        default = getattr(defaults, name)
        assert value == (list(default) if isinstance(default, tuple) else default), name


def test_real_labels_of_a_dataset_are_no_classes():
    dataset = torch.utils.data.TensorDataset(torch.rand(4, 1, 8, 8), torch.rand(4))
    with pytest.raises(SimudyError, match="one class number per image"):
        TorchDataset(dataset, n=2).load(seed=0)
