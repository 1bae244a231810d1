"""How the playground was made: its networks, their pre-training, and the measure of what they learned."""
