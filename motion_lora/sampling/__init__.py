"""From a prompt, a base and a stack to a video."""
