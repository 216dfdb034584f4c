"""DICOM files to series, masks and persons."""
