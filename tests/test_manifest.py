"""No byte of a manifest can change unseen, and it never points outside its folder."""

import pytest

from lmcli.artifacts import files, layout, manifest
from lmcli.errors import DataError


@pytest.fixture
def artifact(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["lmcli", "data", "build"])
    folder = tmp_path / "thing"
    files.write_file(folder / "a.bin", b"a" * 50)
    files.write_file(folder / "b.bin", b"b" * 50)
    manifest.write(folder, "thing", "thing", {"tokenizer": "0" * 64}, {"eos_id": 2})
    return folder


def test_every_flipped_byte_of_the_manifest_itself_is_found(artifact):
    path = artifact / layout.MANIFEST
    good = path.read_bytes()
    for i in range(len(good)):
        mask = 0x20 if i % 3 == 0 and good[i : i + 1].isalpha() else 1
        path.write_bytes(good[:i] + bytes([good[i] ^ mask]) + good[i + 1 :])
        assert manifest.verify(artifact), good[max(0, i - 20) : i + 1]
    for i in range(0, len(good) - 1, 7):  # without its last newline it says the same
        path.write_bytes(good[:i])
        assert manifest.verify(artifact), i


@pytest.mark.parametrize("name", ["../other/x", "/etc/passwd", "a//b", "./a.bin"])
def test_a_file_outside_the_folder_is_never_looked_at(artifact, name):
    value = files.read_sealed(artifact / layout.MANIFEST)
    value["files"] = {name: {"bytes": 1, "sha256": ""}}
    files.write_sealed(artifact / layout.MANIFEST, value)
    with pytest.raises(DataError, match="no file of this folder"):
        manifest.read(artifact)


def test_verify_names_every_damaged_file(artifact):
    (artifact / "a.bin").write_bytes(b"a")
    (artifact / "b.bin").unlink()
    found = manifest.verify(artifact)
    assert [p.split(": ")[1].split(";")[0] for p in found] == [
        "1 bytes, expected 50",
        "missing, but listed in the manifest",
    ]


def test_a_link_is_not_a_file(artifact, tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"a" * 50)
    (artifact / "a.bin").unlink()
    (artifact / "a.bin").symlink_to(tmp_path / "elsewhere")
    assert "a.bin: missing" in manifest.verify(artifact)[0]
