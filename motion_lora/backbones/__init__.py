"""What is particular to a family of networks: how it is recognised, where its layers are, how its time is bypassed."""
