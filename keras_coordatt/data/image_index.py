"""Finds the images that annotations name, wherever they are in a folder."""

from __future__ import annotations

import collections
import os
from pathlib import Path, PurePosixPath

from keras_coordatt.data.mask_pairs import find_mask_folders
from keras_coordatt.data.reading import IMAGE_SUFFIXES
from keras_coordatt.data.split_names import SPLITS, split_name


class ImageIndex:
    """The images in a folder and its subfolders.

    Annotations name images in many ways: by a path relative to another folder, by an
    absolute path of another machine, with backslashes, without an ending. `find`
    returns the image whose path agrees with the longest part of the name, counted from
    its end. An image of the same name in another folder, or of another split, doesn't
    replace one that is missing.

    Args:
        path: The folder. Hidden folders and those of masks are left out.
    """

    def __init__(self, path: Path):
        self._path = path
        self._images = collections.defaultdict(list)
        # The ends of the paths of all folders of images: (c,), (b, c), (a, b, c).
        self._folders = set()
        self._splits = set()
        masks = {m for i, m in find_mask_folders(path).values() if m != i}
        for folder, subfolders, files in os.walk(path):
            subfolders[:] = sorted(f for f in subfolders if not f.startswith("."))
            if Path(folder) in masks:
                continue
            images = [
                Path(folder, name)
                for name in files
                if not name.startswith(".") and is_image(name)
            ]
            for image in images:
                self._images[image.stem].append(image)
            if images:
                parts = Path(folder).relative_to(path).parts
                self._folders.update(parts[i:] for i in range(len(parts)))
                self._splits |= _split_names(parts)

    def find(
        self, name: str, near: Path | None = None, split: str | None = None
    ) -> Path:
        """Finds an image.

        Args:
            name: Its name or path, with or without an ending.
            near: Of images that agree equally, one in this folder is taken.
            split: The split that the annotations say the image is of. If there are
                folders of this split, images of other splits are left out, unless
                `name` says its split itself.

        Returns:
            The image.

        Raises:
            ValueError: If there is none, or there are several.
        """
        found = self.candidates(name, near, split)
        if not found:
            others = ", ".join(map(str, self._same_name(name)))
            raise ValueError(
                f"there is no image {name!r} in {self._path}"
                + (f" ({others} is in another folder)" if others else "")
            )
        if len(found) > 1:
            raise ValueError(f"{name!r} may be any of {', '.join(map(str, found))}")
        return found[0]

    def candidates(
        self, name: str, near: Path | None = None, split: str | None = None
    ) -> list[Path]:
        """Returns the images that a name may be, all of which agree equally with it.

        Args:
            name, near, split: Same as in `find`.

        Returns:
            The images.
        """
        wanted = PurePosixPath(name.replace("\\", "/"))
        parents = wanted.parts[:-1]
        named = _split_names(parents)
        splits = named or {split} & self._splits

        def agreement(image):
            """Returns how well an image agrees, or `None` if it is another one."""
            pairs = zip(reversed(image.parts[:-1]), reversed(parents), strict=False)
            shared = [a == b for a, b in pairs]
            length = (*shared, False).index(False)
            if length < len(parents) and parents[-length - 1 :] in self._folders:
                # The folder that the name says exists, without the image.
                return None
            own = _split_names(image.relative_to(self._path).parts[:-1])
            if splits and own and not splits & own:
                return None
            # Another ending is better than no image.
            same_name = wanted.name in (image.name, image.stem)
            is_near = near is not None and near in image.parents
            return same_name, length, bool(splits & own), is_near

        found = {image: agreement(image) for image in self._same_name(name)}
        best = max(filter(None, found.values()), default=None)
        return [image for image in found if best and found[image] == best]

    def _same_name(self, name: str) -> list[Path]:
        """Returns the images of a name in all folders, whatever their ending."""
        file = PurePosixPath(name.replace("\\", "/")).name
        stem = os.path.splitext(file)[0] if is_image(file) else file
        return self._images.get(stem, [])


def _split_names(folders: tuple[str, ...]) -> set[str]:
    """Returns the splits that folders are named after."""
    return {split_name(folder) for folder in folders}.intersection(SPLITS)


def is_image(name: str) -> bool:
    """Returns whether a name has the ending of an image file."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
