"""Checkpoint layouts of autoencoders: ours, and those of SAE Lens, sparsify and dictionary_learning."""
