"""What images are like: reads releases and folders of images, and never asks how they came."""
