"""Value heads (the codec of a return) and the networks that feed them. Imports nothing else of the project."""
