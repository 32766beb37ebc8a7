"""All input and output of the controller: files, SSH, the Hub. Decides nothing."""
