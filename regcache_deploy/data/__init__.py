"""Images and their labels: folders on disk, or the embedded demo's digits.

`sets` picks the images of a run. `scan` finds files, `preprocess` decodes one, `folder` and
`demo_images` build `images.Images`, `class_names` ties folder names to the classes of a
zero-shot head.
"""
