"""The head's parts: decoders, pathways, fusion, readout."""
