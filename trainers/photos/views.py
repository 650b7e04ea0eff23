"""Views of a photo that a trained model answers: their mean probability is its answer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from trainers.settings.model import Views, cut_pixels


@dataclass(frozen=True)
class TestView:
    """One view: mirrored or not, with a margin cut off on every side or not."""

    __test__ = False  # the name is the field's word, not a test class for pytest

    margin: float = 0.0  # share of a side that is cut off at each of its ends
    is_mirrored: bool = False


PLAIN_VIEW = TestView()


def views_of(settings: Views | None) -> tuple[TestView, ...]:
    """Return the views of a model, the photo as it is first."""
    if settings is None:
        return (PLAIN_VIEW,)
    views = [TestView(margin) for margin in (0.0, *settings.margins)]
    if settings.flip:
        views += [TestView(view.margin, is_mirrored=True) for view in views]
    return tuple(views)


def seen(photos: Tensor, view: TestView) -> Tensor:
    """Return photos (B, 3, H, W), 0 to 255 in any dtype, in a view of the same size."""
    height = int(photos.shape[2])
    width = int(photos.shape[3])
    top = cut_pixels(view.margin, height)
    left = cut_pixels(view.margin, width)
    if top or left:
        inside = photos[:, :, top : height - top, left : width - left].float()
        photos = F.interpolate(inside, size=(height, width), mode="bilinear", align_corners=False)
    return photos.flip(3) if view.is_mirrored else photos
