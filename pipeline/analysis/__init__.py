"""Properties of images, read from releases and folders, however the images were made."""
