"""Videos to patches.

open_video: opens a file or frames in memory.
container: reads the header and packets of a file.
matroska: checks that a Matroska or WebM file is complete.
frame_decoder: decodes the wanted frames of a file.
settings: sampling rates, limits of pixels and frames.
sampling: rules for choosing frames.
resize: the size to which frames are resized.
video_transform: does all of this for one video.
"""
