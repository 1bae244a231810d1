"""Videos, pictures and captions in and out, and pictures for people: sheets, plots, tables.

A clip is sampled in time by picking, at every multiple of 1 / fps seconds, the nearest frame of the source: its speed
never changes. It is resized with its aspect kept, and cropped around the middle. What is written is written atomically.
"""
