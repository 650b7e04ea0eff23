"""What a training minimises: losses, sizes of classes, ordered labels."""
