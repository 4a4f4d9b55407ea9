"""Files that people bring: pictures, arrays, records and weights, of every wrong kind."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import damage
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from verdict import Case, sampled

from simudy.victim.data import Folder, Npz

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (16, 8, 8), dtype=np.uint8)
LABELS = np.arange(16) % 2


# --- arrays


def npz(**arrays: object) -> Callable[[Path], object]:
    return lambda path: np.savez(path, **arrays)  # type: ignore[arg-type]


def raw_npz(header: str, body: bytes = b"\0" * 64) -> Callable[[Path], object]:
    """An archive whose array says of itself what it likes."""

    def write(path: Path) -> None:
        said = header.encode().ljust(118) + b"\n"
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(said)) + said + body
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", content)
            archive.writestr("labels.npy", content)

    return write


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as file:
            for _ in range(300):
                file.write(b"\0" * 2**20)
        archive.writestr("labels.npy", b"\0")


def encrypted(path: Path) -> None:
    npz(images=PICTURES, labels=LABELS)(path)
    content = bytearray(path.read_bytes())
    for at in range(len(content) - 4):
        if content[at : at + 4] in (b"PK\x01\x02", b"PK\x03\x04"):
            content[at + (8 if content[at + 2] == 1 else 6)] |= 1
    path.write_bytes(bytes(content))


def objects(path: Path) -> None:
    np.savez(path, images=np.array([{}, None] * 8, dtype=object), labels=LABELS)


ARRAYS: dict[str, Callable[[Path], object]] = {
    "empty": npz(),
    "labels_2^31": npz(images=PICTURES, labels=np.r_[2**31, LABELS[1:]]),
    "labels_2^63": npz(images=PICTURES, labels=np.full(16, 2**63, np.uint64)),
    "labels_negative": npz(images=PICTURES, labels=LABELS - 1),
    "labels_float": npz(images=PICTURES, labels=LABELS / 2),
    "labels_text": npz(images=PICTURES, labels=LABELS.astype(str)),
    "labels_0d": npz(images=PICTURES, labels=np.int64(3)),
    "images_0d": npz(images=np.float32(0.5), labels=LABELS),
    "images_2d": npz(images=PICTURES[0], labels=LABELS[:8]),
    "images_5d": npz(images=PICTURES[:, None, None], labels=LABELS),
    "images_none": npz(images=PICTURES[:0], labels=LABELS[:0]),
    "images_flat": npz(images=PICTURES[:, :0], labels=LABELS),
    "images_tiny": npz(images=PICTURES[:, :1, :1], labels=LABELS),
    "images_uint16": npz(images=PICTURES.astype(np.uint16), labels=LABELS),
    "images_int64": npz(images=PICTURES.astype(np.int64), labels=LABELS),
    "images_bool": npz(images=PICTURES > 9, labels=LABELS),
    "images_complex": npz(images=PICTURES * 1j, labels=LABELS),
    "images_nan": npz(images=np.full((16, 8, 8), np.nan), labels=LABELS),
    "images_longdouble": npz(images=PICTURES.astype(np.longdouble) / 255, labels=LABELS),
    "images_structured": npz(images=np.zeros((16, 8, 8), "u1,f4"), labels=LABELS),
    "images_dates": npz(images=np.zeros((16, 8, 8), "M8[s]"), labels=LABELS),
    "images_text": npz(images=PICTURES.astype(str), labels=LABELS),
    "one_class": npz(images=PICTURES, labels=LABELS * 0 + 7),
    "fewer_labels": npz(images=PICTURES, labels=LABELS[:9]),
    "objects": objects,
    "bomb": bomb,
    "encrypted": encrypted,
    "huge_shape": raw_npz("{'descr':'|u1','fortran_order':False,'shape':(99999999999,9,9)}"),
    "huge_shape2": raw_npz("{'descr':'<f8','fortran_order':False,'shape':(1000000000,8,8)}"),
    "negative_shape": raw_npz("{'descr':'|u1','fortran_order':False,'shape':(-1,8,8)}"),
    "code_in_head": raw_npz("{'descr':__import__('os').system('touch canary'),'shape':(1,)}"),
    "deep_head": raw_npz("(" * 110),
    "npy": lambda path: path.write_bytes(_npy(PICTURES)),
}


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _npz(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, array)
    return buffer.getvalue()


# --- pictures


def png(width: int, height: int, *, bits: int = 8, kind: int = 2, body: bytes = b"") -> bytes:
    """A PNG that says of itself what it likes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


FILES: dict[str, bytes] = {
    "empty.png": b"",
    "noise.png": bytes(range(256)),
    "bomb.png": png(60_000, 60_000, body=b"\0" * 2**20),
    "wide.png": png(2**31 - 1, 1),
    "flat.png": png(0, 0),
    "short.png": png(8, 8, body=b"\0"),
    "odd_bits.png": png(8, 8, bits=3),
    "odd_kind.png": png(8, 8, kind=9),
    "text.jpg": b"not a picture",
    "head.jpg": b"\xff\xd8\xff\xe0",
    "webp.webp": b"RIFF\x10\0\0\0WEBPVP8 ",
    "bmp.bmp": b"BM"
    + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, -8, -(2**31), 1, 24, *[0] * 6),
    **{
        f"{kind}.png": encoded(Image.fromarray(PICTURES[0]).convert(kind), "PNG")
        for kind in ("1", "P", "LA", "RGBA", "RGB")
    },
    "cmyk.jpg": encoded(Image.new("CMYK", (8, 8)), "JPEG"),
}


def folder_of(name: str, content: bytes) -> Callable[[Path], object]:
    def prepare(folder: Path) -> None:
        for label in ("a", "b"):
            (folder / "pictures" / label).mkdir(parents=True)
            for i in range(8):
                picture = Image.fromarray(PICTURES[i])
                picture.save(folder / "pictures" / label / f"{i}.png")
        (folder / "pictures/a" / f"00{name}").write_bytes(content)

    return prepare


# --- weights


def net() -> dict[str, torch.Tensor]:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 2)).state_dict()


def saved(held: object) -> Callable[[Path], object]:
    return lambda path: torch.save(held, path)


def quantised(tensor: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to drop them
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


def altered(name: str, alter: Callable[[torch.Tensor], object]) -> Callable[[Path], object]:
    return lambda path: torch.save({**net(), name: alter(net()[name])}, path)


WEIGHTS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("weights"),
    "zip": lambda path: path.write_bytes(_npz(PICTURES)),
    "list": saved([1, 2]),
    "int_keys": saved({1: torch.ones(2), 2: torch.ones(3)}),
    "nested": saved({"a": {"b": {"c": {"d": {"e": net()}}}}}),
    "none": saved(None),
    "tensor": saved(torch.ones(3)),
    "sparse": altered("1.weight", lambda t: t.to_sparse()),
    "meta": altered("1.weight", lambda t: t.to("meta")),
    "quantised": altered("1.weight", quantised),
    "complex": altered("1.weight", lambda t: t.to(torch.complex64)),
    "int": altered("1.weight", lambda t: t.int()),
    "bool": altered("1.weight", lambda t: t > 0),
    "half": altered("1.weight", lambda t: t.half()),
    "nan": altered("1.weight", lambda t: t * torch.nan),
    "inf": altered("3.bias", lambda t: t + torch.inf),
    "shape": altered("1.weight", lambda t: t.T.contiguous()),
    "0d": altered("1.bias", lambda t: t.sum()),
    "word": altered("1.bias", lambda t: "word"),
    "huge": altered("1.weight", lambda t: t * 1e38),
}


def audit(write: Callable[[Path], object], suffix: str) -> Callable[[Path], object]:
    def prepare(folder: Path) -> None:
        torch.manual_seed(0)
        (folder / "net_of_hostile_test.py").write_text(
            "from torch import nn\n"
            "class Net(nn.Sequential):\n"
            "    def __init__(self):\n"
            "        super().__init__(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 2))\n"
        )
        save_file(net(), folder / "initial.safetensors")
        (folder / f"final{suffix}").write_bytes(b"")
        write(folder / f"final{suffix}")

    return prepare


AUDIT = (
    *("~model.width", "model._target_=net_of_hostile_test.Net", "evidence.shape=[1,8,8]"),
    *("evidence.classes=2", "evidence.n=2", "evidence.initial=initial.safetensors"),
    *("dummy.images=pixels", "gradient=mixed"),
)


def good_net(path: Path) -> None:
    torch.manual_seed(1)
    torch.save({k: v + 0.01 * torch.randn_like(v) for k, v in net().items()}, path)


def both(
    first: Callable[[Path], object], name: str, write: Callable[[Path], object]
) -> Callable[[Path], object]:
    def prepare(folder: Path) -> None:
        first(folder)
        write(folder / name)

    return prepare


def more_images() -> Iterator[Case]:
    """Images beside the weights: true ones, held-out ones, candidates, references."""
    whole = {f"array_{name}": write for name, write in ARRAYS.items()}
    for name, how in damage.ANY_FILE.items():

        def spoilt(path: Path, how=how) -> None:
            npz(images=PICTURES[:, None], labels=LABELS)(path)
            how(path)

        whole[name] = spoilt
    good = npz(images=PICTURES[:2, None], labels=LABELS[:2])
    for name, write in whole.items():
        argv = (*AUDIT, "evidence.final=final.pt")
        files = audit(good_net, ".pt")
        yield Case(f"truth_{name}", (*argv, "evidence.truth=t.npz"), both(files, "t.npz", write))
        truth = both(files, "t.npz", good)
        others = (*argv, "evidence.truth=t.npz", "evidence.heldout=h.npz")
        yield Case(f"heldout_{name}", others, both(truth, "h.npz", write))
        asked = (*argv, "task=membership", "membership.candidates=c.npz")
        asked = (*asked, "membership.reference=r.npz")
        yield Case(f"candidates_{name}", asked, both(both(files, "r.npz", good), "c.npz", write))
        yield Case(f"reference_{name}", asked, both(both(files, "c.npz", good), "r.npz", write))


def cases() -> Iterator[Case]:
    own = ("data=npz", "data.path=a.npz", "~data.size")
    good = damage.ANY_FILE
    for name, write in ARRAYS.items():
        yield Case(f"npz_{name}", own, lambda folder, write=write: write(folder / "a.npz"))
    for name, how in good.items():

        def spoilt(folder: Path, how=how) -> None:
            npz(images=PICTURES, labels=LABELS)(folder / "a.npz")
            how(folder / "a.npz")

        yield Case(f"npz_{name}", own, spoilt)
    pictures = ("data=folder", "data.root=pictures", "data.grey=true")
    for name, content in FILES.items():
        yield Case(f"picture_{name}", pictures, folder_of(name, content))
    whole = encoded(Image.fromarray(PICTURES[0]), "JPEG")
    for seed in range(40):
        spoiled = bytearray(whole)
        for at in np.random.default_rng(seed).integers(0, len(whole), 5):
            spoiled[at] ^= 1 << (seed % 8)
        yield Case(f"jpg_flip{seed}", pictures, folder_of("x.jpg", bytes(spoiled)))
    for name, write in WEIGHTS.items():
        yield Case(f"weights_{name}", (*AUDIT, "evidence.final=final.pt"), audit(write, ".pt"))
    for suffix in (".pt", ".safetensors"):
        for name, how in good.items():

            def broken(path: Path, how=how, suffix=suffix) -> None:
                (save_file if suffix != ".pt" else torch.save)(net(), path)
                how(path)

            argv = (*AUDIT, f"evidence.final=final{suffix}")
            yield Case(f"weights{suffix}_{name}", argv, audit(broken, suffix))
    yield from more_images()
    for name, write in WEIGHTS.items():
        argv = (
            *AUDIT,
            "recipe.epochs=2",
            "evidence.final=final.pt",
            "evidence.checkpoints=[mid.pt]",
        )
        yield Case(f"checkpoint_{name}", argv, both(audit(good_net, ".pt"), "mid.pt", write))
    for size in ("-1", "0", "100000", "1e9", f"{2**40}"):
        for data in ("faces", "folder"):
            root = ("data.root=pictures",) if data == "folder" else ()
            argv = (f"data={data}", *root, f"data.size={size}")
            yield Case(
                f"{data}.size={size}", argv, folder_of("x.png", FILES["P.png"]), refused=True
            )


@pytest.mark.parametrize("case", sampled(list(cases()), share=20))
def test_a_file(attempt, case):
    options = [word for word in case.argv if not word.startswith("~")]
    dropped = [word[1:] for word in case.argv if word.startswith("~")]
    attempt(case._replace(argv=options), without=dropped)


# --- taken for what it is


def test_16_bits_are_not_clipped(tmp_path):
    deep = RNG.integers(0, 2**16, (16, 8, 8), dtype=np.uint16)
    for i, image in enumerate(deep):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "ab"[i % 2] / f"{i:02}.png")
    pixels = Folder(str(tmp_path), n=4, grey=True).load(seed=0).victim.images
    wanted = torch.from_numpy(deep[[0, 1, 2, 3]].astype(np.float32) / 65535)
    assert (pixels[:, 0] - wanted).abs().max() < 1 / 255


def test_big_endian_arrays_are_read_right(tmp_path):
    pixels = RNG.random((16, 8, 8)).astype(">f4")
    np.savez(tmp_path / "a.npz", images=pixels, labels=LABELS.astype(">i4"))
    read = Npz(str(tmp_path / "a.npz"), n=2).load(seed=0).victim
    assert torch.equal(read.images[:, 0], torch.from_numpy(pixels[:2].astype("<f4")))
    assert read.labels.tolist() == [0, 1]
