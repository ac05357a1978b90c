"""What every room stands on: errors, settings, cameras, images, files. Imports no other room."""
