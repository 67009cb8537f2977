"""Images to patches.

decode: opens and decodes files and objects to RGB.
rgb: converts Pillow modes and arrays to 8-bit RGB.
resize: the size to which an image is resized.
patches: cuts and normalises patches.
image_transform: does all of this for one image.
unpatch: turns patches back into images.
"""
