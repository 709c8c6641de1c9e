"""The data owner's side: the ClientApp, its store, its data and its training."""
