"""One request over the wire: the endpoint, the streaming client, and the record of what happened."""
