"""Files, cameras, masks, scenes and test sets, read into checked arrays; import from the modules."""
