"""Reference clips: frames with their captions, from videos, GIFs, folders of images, or tensors.

A clip is sampled in time by picking, at every multiple of 1 / fps seconds, the nearest frame of the source: its speed
never changes. It is resized with its aspect kept, and cropped around the middle. Nothing is written anywhere.
"""

from __future__ import annotations

from .captions import CAPTION_TABLE, CaptionedFile, read_captions
from .clip import Clip, EncodedClip, clip_from_frames, encode_clips, read_clip, read_folder, read_frames
from .video import IMAGE_SUFFIXES, VIDEO_SUFFIXES

__all__ = [
    "CAPTION_TABLE",
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "CaptionedFile",
    "Clip",
    "EncodedClip",
    "clip_from_frames",
    "encode_clips",
    "read_captions",
    "read_clip",
    "read_folder",
    "read_frames",
]
