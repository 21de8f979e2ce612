"""Making a data set of cells from plates: download, illumination, nuclei, crops, Parquet."""
