"""What libraries make of a spec, tried before anything is prepared or trained."""
