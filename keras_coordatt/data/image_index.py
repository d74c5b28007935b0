"""Finds the images that annotations name, wherever they are in a folder."""

from __future__ import annotations

import collections
import os
from pathlib import Path, PurePosixPath

from keras_coordatt.data.reading import IMAGE_SUFFIXES


class ImageIndex:
    """The images in a folder and its subfolders.

    Annotations name images in many ways: by a path relative to another folder, by an
    absolute path of another machine, with backslashes, without an ending. `find`
    returns the image whose path agrees with the longest part of the name, counted from
    its end.

    Args:
        path: The folder. Hidden folders are left out.
    """

    def __init__(self, path: Path):
        self._path = path
        self._images = collections.defaultdict(list)
        for folder, subfolders, files in os.walk(path):
            subfolders[:] = sorted(f for f in subfolders if not f.startswith("."))
            for name in files:
                image = Path(folder, name)
                if not name.startswith(".") and is_image(name):
                    self._images[image.stem].append(image)

    def find(self, name: str, near: Path | None = None) -> Path:
        """Finds an image.

        Args:
            name: Its name or path, with or without an ending.
            near: Of images that agree equally, one in this folder is taken.

        Returns:
            The image.

        Raises:
            ValueError: If there is none, or there are several.
        """
        wanted = PurePosixPath(name.replace("\\", "/"))
        stem = wanted.stem if is_image(wanted.name) else wanted.name
        parents = wanted.parts[:-1]

        def agreement(image):
            # Another ending is better than no image.
            same_name = image.name == wanted.name or stem == wanted.name
            pairs = zip(reversed(image.parts[:-1]), reversed(parents), strict=False)
            shared = [a == b for a, b in pairs]
            length = (*shared, False).index(False)
            return same_name, length, near is not None and near in image.parents

        found = self._images.get(stem, [])
        best = max(map(agreement, found), default=None)
        found = [image for image in found if agreement(image) == best]
        if not found:
            raise ValueError(f"there is no image {name!r} in {self._path}")
        if len(found) > 1:
            raise ValueError(f"{name!r} may be any of {', '.join(map(str, found))}")
        return found[0]


def is_image(name: str) -> bool:
    """Returns whether a name has the ending of an image file."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
