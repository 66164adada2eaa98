"""Images and their labels: folders on disk, or the embedded demo's digits.

`sets` picks the images of a run. `scan` finds files, `preprocess` decodes one, `folder` and
`demo_images` build `images.Images`, `class_names` ties folder names to the classes of a
zero-shot head.
"""

from .demo_images import load_demo_images
from .folder import load_folder
from .images import Images
from .sets import load_sets

__all__ = ["Images", "load_demo_images", "load_folder", "load_sets"]
