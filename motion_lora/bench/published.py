"""The published tables, beside which ours are printed."""

from __future__ import annotations

# Sources: Customize-A-Video Tables 1 and 2 (arXiv 2402.14780), read from the paper; the figures of Separate Motion
# from Appearance (arXiv 2501.16714) and of MotionDirector are second-hand.
PUBLISHED = """\
These are other metrics on other data (natural video, CLIP and LPIPS), so only the order of the rows can be compared.

Customize-A-Video, Table 1 (53 clips of LOVEU-TGVE-2023; text alignment up, LPIPS between frames down, diversity up):

| method | text | temporal | diversity |
| --- | --- | --- | --- |
| ModelScope (base) | 31.705 | 0.175 | 0.636 |
| MotionDirector, same rank | 32.500 | 0.163 | 0.606 |
| MotionDirector, same parameters | 31.842 | 0.166 | 0.595 |
| temporal LoRA, no absorber | 31.687 | 0.166 | 0.613 |
| spatial-LoRA absorber | 31.913 | 0.163 | 0.618 |
| textual-inversion absorber | 32.632 | 0.160 | 0.621 |
| dual absorber | 32.193 | 0.164 | 0.631 |

Customize-A-Video, Table 2 (user study, motion fidelity / diversity, 1 to 5): ModelScope 2.03 / 2.97, MotionDirector
3.33 / 3.50, dual absorber 3.72 / 3.72.

Separate Motion from Appearance (second-hand): motion / appearance alignment / leakage of a LoRA on the key alone 64.3 /
25.52 / 21.33, on all linear layers 64.1 / 21.26 / 21.66; text alignment MotionDirector 27.55, + TAP 27.91, + highway
28.32, + phased integration 28.52.
"""
