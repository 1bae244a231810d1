"""What changes a replica of a base: LoRAs, stacks of them, other weights, the appearance highway."""
