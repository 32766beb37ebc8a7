"""All input and output of the controller: files, programs, SSH, the token. Decides nothing."""
