"""Reads DICOM files as series, masks and images of persons."""
