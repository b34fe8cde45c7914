"""The commands of the command line that work on files, one module each; they call the public API."""
