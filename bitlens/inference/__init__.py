"""Networks at work, as functions: `videos` reconstructs, `images` enlarges and restores, `evaluation` scores; `tiling`
and `plausible` keep them within memory and look at what comes out. The verbs call these; import from the modules."""
