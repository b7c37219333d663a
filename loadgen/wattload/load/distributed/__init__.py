"""One load over several processes or hosts: the master, its workers, and their messages."""
