"""One test made several times, each with requests of its own: how much its figures vary from run to run."""
