"""LoRA files: the own format, and those of other tools, read by content, written with a proof, told apart from what
they only look like.

`reader.load_any` reads every supported format, `absorbers.load_any_absorber` also what only holds a look;
`writers` write, `inspection` reports.
"""
