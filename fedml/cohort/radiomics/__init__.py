"""Radiomics: numbers that describe the intensities, the shape and the texture of a region of an image, by the names of PyRadiomics."""
