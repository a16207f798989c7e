"""Archives: made of a folder and a handler as NAME-DIGEST.tar.gz, and read within bounds, since anyone may have made
them."""
