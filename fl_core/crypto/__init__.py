"""Named parameter sets, encrypted aggregation, sealing between parties and OS-random noise."""
