"""Give every training stage one state, optimizer, mesh, checkpoint format and loop."""
