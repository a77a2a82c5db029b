"""What pictures are like: reads releases and folders of pictures, and never asks how they came."""
