"""Dictionaries of features: sparse, bilinear, lifted and neural-operator autoencoders; `interp` exports the names."""
