"""The published tables, beside which ours are printed."""

from __future__ import annotations

# Sources: Customize-A-Video Tables 1 and 2 (arXiv 2402.14780), read from the paper; the figures of MotionDirector
# (arXiv 2310.08465) and of Separate Motion from Appearance (arXiv 2501.16714) are second-hand, from a summary.
PUBLISHED = """\
These are other metrics on other data (natural video, CLIP and LPIPS), so only the order of the rows can be compared.

Customize-A-Video, Table 1 (53 clips of LOVEU-TGVE-2023, read from the paper). Text: CLIPScore of the frames with the
prompt, higher is better. Temporal: LPIPS of neighbouring frames, lower is better. Diversity: LPIPS of frames at the
same time in 4 videos of one prompt, higher is better; a dash where the paper has none.

| method | text | temporal | diversity |
| --- | --- | --- | --- |
| ModelScope (base) | 31.705 | 0.175 | 0.636 |
| Tune-A-Video | 31.149 | 0.185 | - |
| Tune-A-Video, without DDIM inversion | 30.304 | 0.206 | 0.348 |
| Video-P2P | 31.001 | 0.162 | - |
| Video-P2P, without DDIM inversion | 30.876 | 0.251 | 0.469 |
| MotionDirector, same rank | 32.500 | 0.163 | 0.606 |
| MotionDirector, same parameters | 31.842 | 0.166 | 0.595 |
| temporal LoRA, no absorber | 31.687 | 0.166 | 0.613 |
| spatial-LoRA absorber | 31.913 | 0.163 | 0.618 |
| textual-inversion absorber | 32.632 | 0.160 | 0.621 |
| dual absorber | 32.193 | 0.164 | 0.631 |

Customize-A-Video, Table 2 (user study, 20 raters, read from the paper): mean of 1 to 5 stars, higher is better.

| method | motion fidelity | diversity |
| --- | --- | --- |
| ModelScope (base) | 2.03 | 2.97 |
| Tune-A-Video, without DDIM inversion | 2.29 | 2.23 |
| Video-P2P, without DDIM inversion | 2.29 | 2.01 |
| MotionDirector | 3.33 | 3.50 |
| dual absorber | 3.72 | 3.72 |

MotionDirector on UCF Sports Action (second-hand; 95 videos of 12 motions, 72 prompts). Appearance diversity: CLIP
cosine of the frames with the prompts, x 100. Temporal consistency: CLIP cosine of frames with each other, x 100; not
the LPIPS above. PickScore: automatic preference. Higher is better in all three. The summary adds that raters
preferred its motion fidelity in 76.47 %, but not to what.

| method | appearance diversity | temporal consistency | PickScore |
| --- | --- | --- | --- |
| MotionDirector on ZeroScope | 28.94 | 92.67 | 20.80 |

MotionDirector on LOVEU-TGVE-2023 (second-hand; 76 videos, 532 prompts): share of raters, in %, who preferred it to
the method of the row; above 50 is better, a dash where the summary has no figure.

| compared with | appearance diversity | motion fidelity |
| --- | --- | --- |
| VideoComposer | 72.83 | 61.24 |
| Control-A-Video | 78.43 | - |
| VideoCrafter | 71.11 | - |
| Tune-A-Video | 69.14 | 62.86 |

Separate Motion from Appearance, Table 1 (second-hand): which layers the temporal LoRA changes. Motion: score of a
motion classifier, higher is better. Appearance alignment: CLIP with the text asked for, higher is better. Leakage:
CLIP with the reference's look, lower is better; the query's is said to be comparable to the key's.

| LoRA on | motion | appearance alignment | leakage |
| --- | --- | --- | --- |
| key | 64.3 | 25.52 | 21.33 |
| value | 62.4 | 22.88 | - |
| feed-forward | 69.2 | 21.23 | - |
| all linear layers (MotionDirector) | 64.1 | 21.26 | 21.66 |

Separate Motion from Appearance, one clip (second-hand); each row adds to the one before. Text alignment: CLIP cosine
of the frames with the prompts. ViCLIP: a video model's similarity of video and text. Temporal consistency: CLIP
cosine of frames with each other. All x 100, higher is better.

| method | text alignment | ViCLIP | temporal consistency |
| --- | --- | --- | --- |
| MotionDirector | 27.55 | 25.54 | 93.56 |
| + attention purification (TAP) | 27.91 | - | 93.86 |
| + appearance highway | 28.32 | - | 93.71 |
| + phased integration | 28.52 | 26.52 | 93.83 |
"""
