"""Archives: a folder and a handler become NAME-DIGEST.tar.gz, and archives are read, bounded, whoever made them."""
