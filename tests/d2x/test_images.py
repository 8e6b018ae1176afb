"""Which files an input stands for."""

import pytest

from d2x.data.images import find_images


def test_folders_give_images_and_files_may_be_of_other_kinds_where_asked(tmp_path):
    for name in ("b.PNG", "a.jpg", "clip.avi", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_images([tmp_path])] == ["a.jpg", "b.PNG"]
    assert [path.name for path in find_images([tmp_path / "clip.avi", tmp_path / "a.jpg"], also={".avi"})] == [
        "clip.avi",
        "a.jpg",
    ]
    with pytest.raises(ValueError, match="clip.avi: not a kind of file that is read"):
        find_images([tmp_path / "clip.avi"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images in folder"):
        find_images([tmp_path / "empty"])
    with pytest.raises(FileNotFoundError, match="missing.png"):
        find_images([tmp_path / "missing.png"])
