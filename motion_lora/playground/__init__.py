"""The playground: a tiny world and a tiny text-to-video model of it, in the layout of the real ones.

It runs through the same code as they do. It is the base that users start on without a download, and the instrument on
which claims are measured.
"""
