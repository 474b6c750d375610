"""Images made ready for a batch, in the loader's workers: read, transformed, and errors carried home.

torch re-raises a worker's exception with a traceback as its message. Errors for the user are therefore returned as
values, travel with the batch, and are raised by the loader in the main process as the one line that they are.
"""

from typing import NamedTuple

from torch.utils.data import Dataset, default_collate, get_worker_info

from utils.errors import DataError, MissingError, RunError
from utils.seed import seed_host, seeded


class Sample(NamedTuple):
    """A tensor (3, H, W), its label, errors of images left out for it, and remarks (kind, name)."""

    image: object
    label: int
    left_out: list
    notes: list


class Batch(NamedTuple):
    """Images (B, 3, H, W), labels int64 (B,), errors of images left out [(name, text)], and remarks (kind, name)."""

    images: object
    labels: object
    left_out: list
    notes: list


def stacked(images, labels):
    """(images (B, 3, H, W), labels (B, ...)) of lists of tensors, all of one size, and of labels."""
    return default_collate(images), default_collate(labels)


def collate(samples, stack=stacked):
    """A Batch, or the first error among the samples.

    stack: lists of their images and of their labels -> what a batch has of each.
    """
    for sample in samples:
        if isinstance(sample, RunError):
            return sample
    images, labels = stack([sample.image for sample in samples], [sample.label for sample in samples])
    left_out = [item for sample in samples for item in sample.left_out]
    notes = [item for sample in samples for item in sample.notes]
    return Batch(images, labels, left_out, notes)


def bad_image_limit(size):
    """How many different images may be left out of a training set: 1 %, at least 10."""
    return max(10, size // 100)


class EvalSamples(Dataset):
    """Images for evaluation by index; one that cannot be read is always an error.

    transform: PIL image -> tensor (3, H, W), or, if `joint`, (PIL image, label) -> (tensor, label).
    """

    def __init__(self, images, transform, joint=False):
        self.images, self.transform, self.joint = images, transform, joint

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        notes = []
        try:
            example = self.images.example(index, lambda *note: notes.append(note))
        except RunError as error:
            return error
        return Sample(*self.transformed(*example), [], notes)

    def transformed(self, image, label):
        """(tensor, label) of a PIL image and its label."""
        return self.transform(image, label) if self.joint else (self.transform(image), label)


class TrainSamples(EvalSamples):
    """Augmented training images by key (epoch, number); what is drawn depends on (seed, epoch, number) alone.

    The number is the image's index, plus the size of the set for each time that the image came in the epoch before.

    With `skip_bad` an image that cannot be read is replaced by the next one by index, the same way in every run and on
    every process, so that no batch changes its size. Otherwise it is an error.
    """

    def __init__(self, images, transform, seed, skip_bad=False, joint=False):
        super().__init__(images, transform, joint)
        self.seed = int(seed)
        self.attempts = min(len(images), bad_image_limit(len(images)) + 1) if skip_bad else 1

    def __getitem__(self, key):
        epoch, number = key
        left_out, notes = [], []
        try:
            example = self.read(number % len(self.images), left_out, notes)
        except RunError as error:
            return error
        return Sample(*self.augment(*example, epoch, number), left_out, notes)

    def augment(self, image, label, epoch, number):
        """(tensor, label) of a PIL image and its label."""
        keys = self.seed, "augment", epoch, number
        if get_worker_info():  # nobody reads a worker's generators afterwards, and restoring is most of the cost
            seed_host(*keys)
            return self.transformed(image, label)
        with seeded(*keys):
            return self.transformed(image, label)

    def read(self, index, left_out, notes):
        """Image and label of `index`, or of the next index that can be read; adds what was left out and remarked."""
        for step in range(self.attempts):
            place = (index + step) % len(self.images)
            try:
                return self.images.example(place, lambda *note: notes.append(note))
            except (DataError, MissingError) as error:
                if self.attempts == 1:
                    raise
                left_out.append((self.images.name(place), str(error)))
        raise DataError(f"{self.attempts} images in a row cannot be read; the last: {left_out[-1][1]}")
