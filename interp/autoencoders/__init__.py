"""Dictionaries of features: sparse, bilinear, lifted and neural-operator autoencoders; their names stand in `interp`."""
