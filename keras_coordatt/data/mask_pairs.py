"""Finds the images and masks of a folder for segmentation."""

import re
from pathlib import Path

from keras_coordatt.data.folder import images_by_name
from keras_coordatt.data.reading import check_mask, find_faults, list_folder, read_mask
from keras_coordatt.data.split_names import name_splits, read_lists

# Names of folders of images and of masks.
_IMAGES = ("images", "Images", "image", "imgs", "JPEGImages")
_MASKS = ("masks", "Masks", "mask", "labels", "annotations", "SegmentationClass")
# Endings of the names of masks that are not those of their images.
_MASK_NAME = re.compile(r"[ _-]masks?$", re.IGNORECASE)


def find_pairs(path: Path) -> tuple[dict[str, list[tuple[Path, Path]]], list[str]]:
    """Finds the images and masks of each split.

    Args:
        path: The folder of all of them.

    Returns:
        Pairs of an image and its mask by the names of the splits; and the faults of
        files that have no partner, or are no masks.

    Raises:
        ValueError: If there are no folders of images and masks, or an image has two
            masks.
    """
    folders = find_mask_folders(path)
    if not folders:
        raise ValueError(
            f"`path` must have images and masks, in {path / 'images'} and "
            f"{path / 'masks'}, or in folders like {path / 'train' / 'masks'}. "
            f"Received: {path}"
        )
    found, faults = {}, []
    lists = path / "ImageSets" / "Segmentation"
    for split, (image_folder, mask_folder) in name_splits(folders).items():
        images, masks = _images_and_masks(image_folder, mask_folder)
        names = {split: sorted(images.keys() | masks.keys())}
        if lists.is_dir():
            names = read_lists(lists, images)
        elif mask_folder.name == "SegmentationClass":
            # Most images of VOC have no mask.
            names = {split: list(masks)}
        for split, listed in names.items():
            found[split] = []
            for name in listed:
                if name in images and name in masks:
                    found[split].append((images[name], masks[name]))
                else:
                    file = images.get(name, masks.get(name, name))
                    other = "a mask" if name in images else "an image"
                    faults.append(f"{file} must have {other} of the same name")
    pairs = {}
    for split, examples in found.items():
        _, wrong = find_faults(check_mask, [mask for _, mask in examples])
        faults += filter(None, wrong)
        kept = [x for x, fault in zip(examples, wrong, strict=True) if not fault]
        if kept:
            pairs[split] = kept
    return pairs, faults


def find_mask_folders(path: Path) -> dict[str, tuple[Path, Path]]:
    """Finds the folders of images and of masks of each split.

    Args:
        path: The folder of all of them.

    Returns:
        Both folders by the names of the splits, as the folders say them; they are one
        folder if masks are beside their images.
    """
    if pair := _find_pair(path):
        images, masks = pair
        if list_folder(masks)[0]:
            return {"train": pair}
        inner = {folder.name: folder for folder in list_folder(masks)[2]}
        return {
            name: (images / name, folder)
            for name, folder in inner.items()
            if (images / name).is_dir() and list_folder(folder)[0]
        }
    found = {}
    for folder in list_folder(path)[2]:
        pair = _find_pair(folder)
        if pair and list_folder(pair[1])[0]:
            found[folder.name] = pair
    return found


def _find_pair(path: Path) -> tuple[Path, Path] | None:
    """Returns a folder's subfolders of images and of masks, or the folder for both."""
    masks = [path / name for name in _MASKS if (path / name).is_dir()]
    masks = [folder for folder in masks if _has_masks(folder)]
    images = [path / name for name in _IMAGES if (path / name).is_dir()]
    # Otherwise, "masks" may be a class.
    if masks and (images or _lacks_images(masks[0])):
        return next(iter(images), path / "images"), masks[0]
    names = {file.stem for file in list_folder(path)[0]}
    are_pairs = any(
        _MASK_NAME.search(name) and _MASK_NAME.sub("", name) in names for name in names
    )
    return (path, path) if are_pairs else None


def _has_masks(folder: Path) -> bool:
    images, _, folders = list_folder(folder)
    return bool(images) or any(list_folder(inner)[0] for inner in folders)


def _lacks_images(folder: Path) -> bool:
    """Returns whether a folder without a folder of images beside it holds masks."""
    if folder.name not in ("masks", "SegmentationClass"):
        return False
    images, _, folders = list_folder(folder)
    inner = [file for subfolder in folders for file in list_folder(subfolder)[0]]
    try:
        read_mask([*images, *inner][0])
    except ValueError:
        # Photos, not masks.
        return False
    return True


def _images_and_masks(
    image_folder: Path, mask_folder: Path
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Returns images and masks by the names of the images."""
    images = images_by_name(image_folder)
    if image_folder == mask_folder:
        files = {n: f for n, f in images.items() if _MASK_NAME.search(n)}
        images = {n: f for n, f in images.items() if n not in files}
    else:
        files = images_by_name(mask_folder)
    masks = {}
    for name, file in files.items():
        name = name if name in images else _MASK_NAME.sub("", name)
        if name in masks:
            raise ValueError(
                f"{masks[name]} and {file} are both masks of the image {name!r}. "
                "Remove one of them"
            )
        masks[name] = file
    return images, masks
